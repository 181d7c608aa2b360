"""The LoRA adapter: peft's layers and file format, with the leaner pass of `lora` where that is possible."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from finetune_api.method import Lora, LoraBias
from finetune_trainer.data import bounded
from finetune_trainer.errors import ConfigInvalid, NotFound
from finetune_trainer.learning import lora
from finetune_trainer.sources import sizes

NAME = "default"
ALL_LINEAR = "all-linear"
SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_BIAS = {LoraBias.NONE: "none", LoraBias.ALL: "all", LoraBias.LORA_ONLY: "lora_only"}


def add(network: Any, adapter: Lora, *, seed: int) -> Any:
    """The network with a new adapter of fp32, its other weights frozen. Raises ConfigInvalid if no layer fits."""
    _refuse_unknown_names(network, adapter.target_modules)
    names = list(adapter.target_modules)
    settings = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # a float is scaled with just the same
        lora_dropout=adapter.dropout,
        target_modules=ALL_LINEAR if names == [ALL_LINEAR] else names,
        use_rslora=adapter.rs_lora,
        use_dora=adapter.dora,
        bias=_BIAS[adapter.bias],  # type: ignore[arg-type]  # one of its literals
        task_type="CAUSAL_LM",
    )
    adapted = _attached(network, settings, adapter, seed)
    biases = [name for name, weight in adapted.named_parameters() if weight.requires_grad and name.endswith(".bias")]
    if adapter.bias != LoraBias.NONE and not biases:
        raise ConfigInvalid(
            f"method.lora.bias {adapter.bias}: there is no bias vector to train in this model; use None"
        )
    return adapted


def load(network: Any, folder: Path, uri: str, wanted: Lora | None, *, seed: int) -> Any:
    """The network with the adapter of an earlier run, to go on with. Raises NotFound or ConfigInvalid.

    Its form is what it is; settings that say otherwise are refused, but for dropout, which is no part of the form.
    """
    try:
        described = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        settings = peft.LoraConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise NotFound(f"adapter {uri} is not one: {folder / SETTINGS} can't be read: {error}") from error
    if settings.peft_type != peft.PeftType.LORA:
        raise NotFound(f"adapter {uri} is of type {settings.peft_type.value}: this trainer goes on with LoRA only")
    if not (folder / WEIGHTS).is_file():
        raise NotFound(f"adapter {uri} has no weights: {folder / WEIGHTS} is not there; pickled ones are not loaded")
    if wanted is not None:
        _refuse_other_form(described, wanted, uri)
        settings.lora_dropout = wanted.dropout
    _refuse_excess(settings, network, folder, uri)
    settings.inference_mode = False
    adapted = _attached(network, settings, wanted or Lora(), seed)
    fill(adapted, folder, uri)
    return adapted


def fill(adapted: Any, folder: Path, uri: str) -> None:
    """Give the adapter the weights in a folder. Raises NotFound if they aren't its own."""
    try:
        tensors = load_file(folder / WEIGHTS)
        expected = {name: tensor.shape for name, tensor in state(adapted).items()}
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != expected:
            name = min(found.items() ^ expected.items())[0]
            raise NotFound(
                f"adapter {uri} doesn't fit this model: {name} is {found.get(name)}, not {expected.get(name)}"
            )
        peft.set_peft_model_state_dict(adapted, tensors)
    except (OSError, SafetensorError) as error:
        raise NotFound(f"adapter {uri} can't be loaded: {error}") from error


def state(adapted: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights under the names that its file has."""
    found: dict[str, torch.Tensor] = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return found


def _attached(network: Any, settings: peft.LoraConfig, adapter: Lora, seed: int) -> Any:
    torch.manual_seed(seed)
    try:
        adapted = peft.get_peft_model(network, settings, adapter_name=NAME)
    except ValueError as error:
        raise ConfigInvalid(
            f"method.lora.targetModules {', '.join(adapter.target_modules)}: {error}; {_linear_layers(network)}"
        ) from error
    lora.install(adapted, NAME)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()  # biases come in the frozen weights' format
    return adapted


def _refuse_unknown_names(network: Any, names: tuple[str, ...]) -> None:
    """Each name must be that of a module: peft is content with one that is."""
    if ALL_LINEAR in names:
        if len(names) > 1:
            raise ConfigInvalid(f"method.lora.targetModules: {ALL_LINEAR} is all of them; remove the other names")
        return
    modules = [name for name, _ in network.named_modules()]
    unknown = [name for name in names if not any(m == name or m.endswith(f".{name}") for m in modules)]
    if unknown:
        raise ConfigInvalid(
            f"method.lora.targetModules {', '.join(unknown)}: no module of this model has that name;"
            f" {_linear_layers(network)}"
        )


def _linear_layers(network: Any) -> str:
    linear = {name.rpartition(".")[2] for name, m in network.named_modules() if isinstance(m, torch.nn.Linear)}
    return f"this model's linear layers are {', '.join(sorted(linear))}; or use {ALL_LINEAR}"


def _refuse_excess(settings: peft.LoraConfig, network: Any, folder: Path, uri: str) -> None:
    """What its settings ask for must be in its weights, and their patterns must come to an end."""
    longest = sizes.held_by([folder / WEIGHTS], what=f"adapter {uri}").longest
    named = [pattern for pattern in (settings.target_modules, settings.exclude_modules) if isinstance(pattern, str)]
    modules, ranks = [name for name, _ in network.named_modules()], settings.rank_pattern or {}
    patterns = (*named, *ranks, *(settings.alpha_pattern or {}))

    def match() -> str:
        compiled = (re.compile(rf"(.*\.)?({pattern})") for pattern in patterns)
        return str(sum(pattern.fullmatch(name) is not None for pattern in compiled for name in modules))

    try:
        rank = max((settings.r, *ranks.values()))
        if rank > longest:
            raise NotFound(f"adapter {uri}: {SETTINGS} says r {rank:,}, but its weights have no side above {longest:,}")
        if patterns:
            bounded.Allowance().spend(match, messages=len(modules))
    except bounded.Exceeded as why:
        raise NotFound(f"adapter {uri}: a pattern of modules in {SETTINGS} {why}") from why
    except (TypeError, AttributeError, re.error) as error:
        raise NotFound(f"adapter {uri} is not one: {SETTINGS} can't be followed: {error}") from error


def _refuse_other_form(described: Mapping[str, Any], wanted: Lora, uri: str) -> None:
    """The first setting that contradicts the adapter. all-linear has become names when it was made."""
    form = {
        "rank": (described.get("r"), wanted.rank),
        "alpha": (described.get("lora_alpha"), wanted.alpha),
        "rsLora": (described.get("use_rslora", False), wanted.rs_lora),
        "dora": (described.get("use_dora", False), wanted.dora),
        "bias": (described.get("bias", "none"), _BIAS[wanted.bias]),
    }
    if wanted.target_modules != (ALL_LINEAR,):
        form["targetModules"] = (_last_parts(described.get("target_modules")), _last_parts(wanted.target_modules))
    for field, (there, asked) in form.items():
        if there != asked:
            raise ConfigInvalid(
                f"method.lora.{field} is {_shown(asked)}, but the adapter {uri} was made with {_shown(there)};"
                " set it to that, or start from the model without the adapter"
            )


def _last_parts(names: object) -> list[str]:
    """The modules' own names, in order; a pattern, as peft allows, is left as it is."""
    if isinstance(names, list | tuple):
        return sorted({str(name).rpartition(".")[2] for name in names})
    return [str(names)]


def _shown(value: object) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
