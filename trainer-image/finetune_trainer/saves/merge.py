"""The model with its adapter merged in: whole weights that plain transformers loads, and servers that know no adapters.

Sums are made in fp32, a layer at a time, in place: the learner can't train afterwards. Quantized weights are merged
into what they stand for, which the model was trained over.
"""

from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from peft.utils.integrations import dequantize_bnb_weight

from finetune_trainer.learning import adapter
from finetune_trainer.learning.model import Learner
from finetune_trainer.saves import weights
from finetune_trainer.sources.modelfolder import ModelFolder

FOLDER = "merged"


@torch.no_grad()
def write(learner: Learner, model: ModelFolder, target: Path) -> None:
    """Merge, and write weights, config and tokenizer. Raises OSError."""
    network = learner.network.get_base_model()
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLayer):
            _replace(network, name, _merged(layer))
    if learner.bits is not None:
        for name, layer in list(network.named_modules()):
            if _is_quantized(layer):
                _replace(network, name, _plain(layer, _dequantized(layer)))
        _forget_quantization(network)
    network.to(learner.stored_dtype)
    network.save_pretrained(target)
    weights.copy_tokenizer(model, target)


def _merged(layer: Any) -> torch.nn.Module:
    """The layer without an adapter that computes what it computes with one."""
    base = layer.get_base_layer()
    if _is_quantized(base):
        weight = _dequantized(base)
        if adapter.NAME in layer.lora_variant:  # DoRA
            return _plain(base, layer.lora_variant[adapter.NAME].merge_safe(layer, adapter.NAME, weight))
        return _plain(base, weight + layer.get_delta_weight(adapter.NAME).float())
    base.float()
    layer.merge(safe_merge=True, adapter_names=[adapter.NAME])
    found: torch.nn.Module = base
    return found


def _is_quantized(layer: torch.nn.Module) -> bool:
    return type(getattr(layer, "weight", None)).__name__ in ("Params4bit", "Int8Params")


def _dequantized(layer: Any) -> torch.Tensor:
    """What the weights of 4 or 8 bits stand for."""
    found: torch.Tensor = dequantize_bnb_weight(layer.weight, state=getattr(layer, "state", None))
    return found.float()


def _plain(layer: Any, weight: torch.Tensor) -> torch.nn.Linear:
    plain = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=layer.bias is not None, device="meta")
    plain.weight = torch.nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = torch.nn.Parameter(layer.bias.float(), requires_grad=False)
    return plain


def _replace(network: torch.nn.Module, name: str, layer: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, layer)


def _forget_quantization(network: Any) -> None:
    """Nothing in its config may say any more that the weights are quantized."""
    network.hf_quantizer = None
    for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized", "quantization_method"):
        if hasattr(network, mark):
            delattr(network, mark)
    del network.config.quantization_config
