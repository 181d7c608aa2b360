"""The model card, README.md of the output: of which model and licence, from what data, how, and how it went."""

import json
import platform
from importlib import metadata
from typing import Any

import yaml

from finetune_api.snapshot import EventType, Snapshot, TrainProgress
from finetune_api.trainer_config import TrainerConfig
from finetune_api.uris import Scheme, Uri
from finetune_trainer.sources import cards
from finetune_trainer.sources.modelfolder import ModelFolder

LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "safetensors")
UNKNOWN = "unknown"


def versions() -> dict[str, str]:
    """Of the libraries that decide what comes out."""
    return {name: metadata.version(name) for name in LIBRARIES}


def text(
    config: TrainerConfig, model: ModelFolder, last: Snapshot, *, merged: str = "", bits: int | None, ended_early: str
) -> str:
    """All of it. `merged` says in which number format the merged weights are, if there are any."""
    parts = (
        f"---\n{yaml.safe_dump(_head(config, model), sort_keys=False)}---\n\n# {config.run.name}\n",
        _what(config, merged=merged, bits=bits),
        f"## Licence\n\n{_licence_told(config, model)}\n",
        f"## Data\n\n{_data(config, last)}\n",
        f"## Result\n\n{_figures(last.progress, ended_early)}\n",
        f"## Hyperparameters\n\n```json\n{json.dumps(_settings(config), indent=2)}\n```\n",
        f"## Versions\n\n{_versions(bits)}\n",
    )
    return "\n".join(parts)


def _head(config: TrainerConfig, model: ModelFolder) -> dict[str, Any]:
    """What a hub reads."""
    found: dict[str, Any] = {"library_name": "peft" if config.method.adapter else "transformers"}
    if config.model.uri.startswith(f"{Scheme.HUB}://"):
        found["base_model"] = Uri.parse(config.model.uri).name
    found |= _licence(model)
    return found | {"pipeline_tag": "text-generation", "tags": ["finetune-operator"]}


def _licence(model: ModelFolder) -> dict[str, Any]:
    """What the card of the base model says, in a hub's own terms."""
    said = cards.head(model.path)
    known = {key: said[key] for key in ("license", "license_name", "license_link") if isinstance(said.get(key), str)}
    return known if "license" in known else {}


def _licence_told(config: TrainerConfig, model: ModelFolder) -> str:
    known = _licence(model)
    if not known:
        return (
            f"Licence of the base model: {UNKNOWN}. `{config.model.uri}` has no README.md that says; find out before"
            " this model is passed on."
        )
    named = known.get("license_name", known["license"])
    link = f" ({known['license_link']})" if "license_link" in known else ""
    return f"Licence of the base model, by its README.md: {named}{link}. What is made of it is bound by that as well."


def _what(config: TrainerConfig, *, merged: str, bits: int | None) -> str:
    start = f", from the adapter `{config.model.adapter_uri}`" if config.model.adapter_uri else ""
    kind = "PeftModel.from_pretrained(base, FOLDER)" if config.method.adapter else _load("FOLDER")
    told = f"{config.method.type} fine-tuning of `{config.model.uri}`{start} on `{config.dataset.train.uri}`"
    told += f" ({config.task}).\nLoad it with `{kind}`.\n"
    if merged:
        told += f"\n`merged/` is the same with the adapter merged in, in {merged}: `{_load('FOLDER/merged')}`.\n"
    if merged and bits:
        told += (
            f"The adapter was trained over weights of {bits} bits. It is merged into what these stand for"
            " (dequantized), not into the original weights, which the adapter has never seen.\n"
        )
    return told


def _load(folder: str) -> str:
    return f"AutoModelForCausalLM.from_pretrained({folder})"


def _data(config: TrainerConfig, last: Snapshot) -> str:
    found = [f"- Training: `{config.dataset.train.uri}`"]
    if config.dataset.eval is not None:
        found.append(f"- Evaluation: `{config.dataset.eval.uri}`")
    found += [f"- {told.message}" for told in last.milestones if told.type == EventType.DATA_VALIDATED and told.message]
    return "\n".join(found)


def _figures(progress: TrainProgress | None, ended_early: str) -> str:
    assert progress is not None
    found = [f"Steps: {progress.batch:,}, epochs: {progress.epoch:,}, tokens: {progress.tokens:,}"]
    figures = {"last step": progress.loss, "last evaluation": progress.eval_loss}
    found += [f"Loss of the {what}: {loss:.4f}" for what, loss in figures.items() if loss is not None]
    return "\n".join(f"- {line}" for line in (*found, ended_early) if line)


def _settings(config: TrainerConfig) -> dict[str, Any]:
    return {"task": config.task.value, "method": config.method.to_wire(), "training": config.training.to_wire()}


def _versions(bits: int | None) -> str:
    used = {"finetune-operator": metadata.version("finetune-operator"), "python": platform.python_version()}
    used |= versions() | ({"bitsandbytes": metadata.version("bitsandbytes")} if bits else {})
    return "\n".join(f"- {name} {version}" for name, version in used.items())
