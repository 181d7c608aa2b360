"""QLoRA on CPU: the gradients are those over the weights that the bits stand for, in 4 bits exactly."""

from pathlib import Path
from typing import Any

import bitsandbytes.functional
import pytest
import torch

from finetune_trainer import preflight
from finetune_trainer.data import batch
from finetune_trainer.data.dataset import Dataset
from finetune_trainer.distributed import Device
from finetune_trainer.learning import model
from tests.trainer_builders import parsed

CPU = Device("cpu", "cpu", 1)


@pytest.mark.parametrize("dora", [False, True], ids=["LoRA", "DoRA"])
def test_in_4_bits_loss_and_gradient_are_those_over_the_dequantized_weights(tmp_path: Path, *, dora: bool) -> None:
    """After an evaluation too: it must not leave the weights in a form that has no backward pass."""
    quantized, plain, data = _both(tmp_path, bits=4, dora=dora)
    with quantized.only_looking():
        looked = quantized.loss(_tensors(quantized, data))
    loss, gradient = _gradient(quantized, data)
    expected, reference = _gradient(plain, data)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert float(looked) == pytest.approx(loss, rel=1e-6)
    # What adds up to little is as inexact as what adds up to much: rounding is that of the greatest numbers.
    assert torch.allclose(gradient, reference, atol=1e-6 * float(reference.abs().max()))


def test_in_8_bits_they_are_nearly_so(tmp_path: Path) -> None:
    """LLM.int8 rounds activations too."""
    quantized, plain, data = _both(tmp_path, bits=8)
    loss, gradient = _gradient(quantized, data)
    expected, reference = _gradient(plain, data)
    assert loss == pytest.approx(expected, rel=1e-3)
    assert torch.nn.functional.cosine_similarity(gradient, reference, dim=0) > 0.99


@pytest.mark.parametrize("precision", ["FP32", "BF16"])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_frozen_weights_have_so_many_bits_and_the_adapter_32(tmp_path: Path, bits: int, precision: str) -> None:
    learner, _ = _load(tmp_path, bits, precision=precision)
    assert learner.packed
    assert {weight.dtype for weight in learner.trained.values()} == {torch.float32}
    stored = {m.base_layer.weight.dtype for m in learner.network.modules() if hasattr(m, "base_layer")}
    assert stored == {torch.uint8 if bits == 4 else torch.int8}
    assert f"8,192 of 115,008 parameters over weights of {bits} bits in {precision}" in learner.describe()


def _both(folder: Path, *, bits: int, dora: bool = False) -> tuple[model.Learner, model.Learner, Dataset]:
    """A quantized model, and one with the weights that its bits stand for; their adapters are the same."""
    quantized, data = _load(folder, bits, lora={"dora": dora})
    config = parsed(folder, {"method": {"type": "LoRA", "lora": {"rank": 4, "dropout": 0.0, "dora": dora}}})
    plain = model.load(preflight.check(config).model, config, CPU, most_tokens=100)
    torch.manual_seed(1)
    for name, weight in quantized.trained.items():
        weight.data += torch.randn_like(weight) * 0.02
        plain.trained[name].data.copy_(weight.data)
    modules = dict(plain.network.named_modules())
    for name, layer in quantized.network.named_modules():
        if name.endswith("base_layer"):
            modules[name].weight.data.copy_(_dequantized(layer))
    return quantized, plain, data


def _dequantized(layer: Any) -> torch.Tensor:
    weight = layer.weight
    if weight.dtype == torch.uint8:
        found: torch.Tensor = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        return found
    scale = layer.state.SCB if weight.SCB is None else weight.SCB
    result: torch.Tensor = weight.data.float() * scale[:, None] / 127
    return result


def _load(
    folder: Path, bits: int, *, precision: str = "FP32", lora: dict[str, Any] | None = None
) -> tuple[model.Learner, Dataset]:
    method = {"type": "QLoRA", "lora": {"rank": 4, "dropout": 0.0} | (lora or {}), "quantization": {"bits": bits}}
    config = parsed(folder, {"method": method, "training": {"precision": precision}})
    prepared = preflight.check(config)
    return model.load(prepared.model, config, CPU, most_tokens=100), prepared.data


def _tensors(learner: model.Learner, data: Dataset) -> batch.Tensors:
    return batch.build(data, range(6), packed=learner.packed, device=learner.device)


def _gradient(learner: model.Learner, data: Dataset) -> tuple[float, torch.Tensor]:
    loss = learner.loss(_tensors(learner, data))
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [weight.grad.flatten() for weight in learner.trained.values() if weight.grad is not None]
    return float(loss.detach()), torch.cat(gradients)
