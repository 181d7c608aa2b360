"""Fused norms, rotations and activations against the models' own code, and against numerical derivatives."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama import modeling_llama

from finetune_trainer.learning import fused, kernels
from finetune_trainer.learning.kernels import Kernels

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
ON_CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
)
NORM, ROTATION, GATED = "norm", "rotation", "gated"
FAMILIES = {
    "Llama": ({}, {NORM, ROTATION, GATED}),
    "Mistral": ({}, {NORM, ROTATION, GATED}),
    "Qwen2": ({}, {NORM, ROTATION, GATED}),
    "Qwen3": ({"head_dim": 8}, {NORM, ROTATION, GATED}),
    "Phi3": ({}, {NORM, ROTATION}),  # gate and up in one product
    "Gemma2": ({"head_dim": 8}, {ROTATION}),  # weights of norms count from one; GELU
    "Cohere": ({}, {GATED}),  # pairs side by side; norms that take the mean off
    "Glm": ({"head_dim": 8}, {NORM}),  # a part of a head is rotated, pairs side by side
}
"""Sizes beyond the usual ones, and what is fused."""


@pytest.fixture(autouse=True)
def _rotations_of_the_models_own() -> None:
    """As in a process that has loaded no other network."""
    for file, own in kernels._OWN_ROTATIONS.items():
        file.apply_rotary_pos_emb = own  # type: ignore[attr-defined]


def _network(family: str, dtype: torch.dtype, **more: Any) -> Any:
    config = getattr(transformers, f"{family}Config")(**SIZES, **more)
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    for name, weight in network.named_parameters():
        if "norm" in name:
            weight.data.add_(torch.randn_like(weight) * 0.3)
    return network


def _pass(network: Any) -> tuple[float, dict[str, torch.Tensor]]:
    ids = torch.randint(0, SIZES["vocab_size"], (3, 11), generator=torch.Generator().manual_seed(1)).to(network.device)
    network.zero_grad()
    loss = network(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return float(loss.detach()), {name: weight.grad.clone() for name, weight in network.named_parameters()}


def _fused(network: Any) -> set[str]:
    """What isn't computed by the model's own code."""
    own = {type(module).__name__ for module in network.modules() if "forward" in vars(module)}
    found = {NORM} if any("Norm" in name for name in own) else set()
    found |= {GATED} if any("MLP" in name for name in own) else set()
    file = sys.modules[type(network).__module__]
    return found | ({ROTATION} if file.apply_rotary_pos_emb is not kernels._OWN_ROTATIONS[file] else set())


@pytest.mark.parametrize(("family", "more", "expected"), [(name, *case) for name, case in FAMILIES.items()])
def test_a_fused_model_has_the_same_loss_and_gradient_of_every_weight(
    family: str, more: dict[str, Any], expected: set[str]
) -> None:
    network = _network(family, torch.float32, **more)
    loss, gradients = _pass(network)
    found = Kernels(network)
    found.fuse()
    assert _fused(network) == expected
    fused_loss, fused_gradients = _pass(network)
    assert fused_loss == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        assert torch.allclose(fused_gradients[name], gradient, rtol=1e-4, atol=1e-6), name
    found.restore()
    assert not _fused(network)
    assert all(torch.equal(again, gradients[name]) for name, again in _pass(network)[1].items())


@pytest.mark.parametrize("device", ["cpu", ON_CUDA])
@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_in_16_bits_it_is_as_near_to_fp32_as_the_own_code(family: str, device: str) -> None:
    exact_loss, exact = _pass(_network(family, torch.float32, **FAMILIES[family][0]).to(device))
    network = _network(family, torch.bfloat16, **FAMILIES[family][0]).to(device)
    off = []
    for compute in (Kernels(network).restore, Kernels(network).fuse):
        compute()
        loss, gradients = _pass(network)
        assert loss == pytest.approx(exact_loss, rel=0.02)
        off.append(sum(float((gradients[name].float() - exact[name]).norm()) for name in exact))
    assert off[1] < 1.1 * off[0]


def _drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn.requires_grad_()


def _angles() -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(5.0, dtype=torch.float64)[None, :, None] * torch.tensor([1.0, 0.1, 0.5, 0.2]).double()
    return angles.cos(), angles.sin()


def _rotate(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return fused.rotation(modeling_llama.apply_rotary_pos_emb)(q, k, *_angles())


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda x, weight: fused.norm(x, weight, 1e-5), [(2, 3, 6), (6,)]),
        (fused.gated, [(2, 3, 6), (2, 3, 6)]),
        (
            lambda q, k: fused.rotation(modeling_llama.apply_rotary_pos_emb)(q, k, *_angles()),
            [(2, 3, 5, 4), (2, 1, 5, 4)],
        ),
    ],
    ids=[NORM, GATED, ROTATION],
)
def test_gradients_are_those_of_differences(function: Callable[..., Any], inputs: list[tuple[int, ...]]) -> None:
    drawn = [_drawn(*shape, seed=number) for number, shape in enumerate(inputs)]
    assert torch.autograd.gradcheck(function, drawn)


def test_gated_is_equal_bit_for_bit() -> None:
    gate, up = (torch.randn(7, 9, generator=torch.Generator().manual_seed(n)).requires_grad_() for n in (1, 2))
    weights = torch.randn(7, 9, generator=torch.Generator().manual_seed(3))
    own = torch.nn.functional.silu(gate) * up
    expected = torch.autograd.grad(own, (gate, up), weights)
    found = fused.gated(gate, up)
    assert torch.equal(found, own)
    assert all(map(torch.equal, torch.autograd.grad(found, (gate, up), weights), expected))


def test_what_is_out_of_the_usual_is_left_to_the_models_function() -> None:
    calls = []

    def own(q: torch.Tensor, k: torch.Tensor, *rest: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append((rest, named))
        return q, k

    rotate = fused.rotation(own)
    q, k, angles = torch.randn(1, 2, 5, 8), torch.randn(1, 1, 5, 8), torch.randn(1, 5, 8)
    rotate(q, k, angles, angles)
    assert not calls
    rotate(q, k, angles, angles, unsqueeze_dim=2)
    rotate(q, k, angles, angles, None)
    rotate(q, k, angles[..., :4], angles[..., :4])
    rotate(q.bfloat16(), k.bfloat16(), angles, angles)
    rotate(q, k, angles[0], angles[0])
    assert len(calls) == 5


def test_less_is_kept_for_the_backward_pass() -> None:
    network = _network("Llama", torch.float32)
    kept = []
    for compute in (Kernels(network).restore, Kernels(network).fuse):
        compute()
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(input_ids=torch.arange(60)[None], use_cache=False)
        kept.append(sum(storages.values()))
    assert kept[1] < 0.85 * kept[0]
