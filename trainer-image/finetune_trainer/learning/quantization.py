"""Frozen weights in 4 or 8 bits, by bitsandbytes: NF4 with double quantization, or LLM.int8. On CUDA and on CPU."""

import importlib.util
from typing import Any

import torch

from finetune_api.method import Method, MethodType, Quantization
from finetune_trainer.errors import ConfigInvalid


def bits(method: Method) -> int | None:
    """How many bits a frozen weight has; None if it isn't quantized."""
    return (method.quantization or Quantization()).bits if method.type == MethodType.QLORA else None


def options(method: Method, computes_in: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What a model is loaded with for this method. Raises ConfigInvalid where it can't be."""
    wanted = bits(method)
    if wanted is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigInvalid("method.type QLoRA needs the package bitsandbytes, which this image has not; use LoRA")
    import transformers

    config = transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=wanted == 4,
        load_in_8bit=wanted == 8,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computes_in,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def keep_differentiable(network: torch.nn.Module) -> None:
    """Keep 4-bit layers on CPU from taking a form for generation alone.

    On CPUs with AVX512-BF16 the first pass in evaluation mode would repack the weights for a kernel without a backward
    pass, for good: later gradients would be wrong without an error.
    """
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # a plain attribute of Linear4bit
