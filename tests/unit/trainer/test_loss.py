"""The loss in pieces is plain cross-entropy, gradients included, and all logits are never there at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from finetune_trainer.learning import loss

Loss = Callable[..., torch.Tensor]


@st.composite
def _problems(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "rows": draw(st.integers(0, 23)),
        "width": draw(st.integers(1, 9)),
        "vocabulary": draw(st.integers(1, 31)),
        "piece": draw(st.integers(1, 300)),
        "bias": draw(st.booleans()),
        "trained": draw(st.sets(st.sampled_from(("hidden", "weight", "bias")))),
        "weights": draw(st.sampled_from((1.0, 0.25, -3.0))),
        "seed": draw(st.integers(0, 9999)),
    }


@given(problem=_problems())
@settings(max_examples=60, deadline=None)
def test_loss_and_gradients_are_those_of_plain_cross_entropy(problem: dict[str, Any]) -> None:
    found = _computed(problem, lambda *layer, targets: loss.summed(*layer, targets=targets))
    expected = _computed(problem, _plain_sum)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@given(problem=_problems().filter(lambda problem: problem["rows"] > 0))
@settings(max_examples=30, deadline=None)
def test_single_losses_can_be_weighed(problem: dict[str, Any]) -> None:
    steps = torch.arange(1.0, problem["rows"] + 1)
    found = _computed(problem, lambda *layer, targets: (loss.each(*layer, targets=targets) * steps).sum())
    expected = _computed(problem, lambda *layer, targets: (_plain_each(*layer, targets=targets) * steps).sum())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("trained", [{"hidden"}, {"hidden", "weight"}], ids=["frozen layer", "trained layer"])
def test_no_tensor_ever_holds_all_logits(monkeypatch: pytest.MonkeyPatch, trained: set[str]) -> None:
    monkeypatch.setitem(loss.PIECE, "cpu", 2_000)
    sizes = {"rows": 64, "width": 4, "vocabulary": 500, "bias": False, "trained": trained, "weights": 1.0, "seed": 0}
    with _Largest() as pieces:  # type: ignore[no-untyped-call]
        _computed(sizes, lambda *layer, targets: loss.summed(*layer, targets=targets))
    with _Largest() as plain:  # type: ignore[no-untyped-call]
        _computed(sizes, _plain_sum)
    assert pieces.numbers <= 2_000
    assert plain.numbers == 64 * 500


def test_in_bf16_the_sum_is_fp32_and_near() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(200, 32).bfloat16().requires_grad_()
    weight, targets = torch.randn(300, 32).bfloat16(), torch.randint(300, (200,))
    total = loss.summed(hidden, weight, None, targets=targets)
    assert total.dtype == torch.float32
    expected = functional.cross_entropy(hidden.float() @ weight.float().t(), targets, reduction="sum")
    assert float(total.detach()) == pytest.approx(float(expected.detach()), rel=2e-3)


def test_autocast_decides_the_format_of_the_products() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(50, 32), torch.randn(300, 32), torch.randint(300, (50,))
    with torch.autocast("cpu", torch.bfloat16):
        found = loss.summed(hidden, weight, None, targets=targets)
    assert torch.equal(found, loss.summed(hidden.bfloat16(), weight.bfloat16(), None, targets=targets))


def test_without_gradient_nothing_is_kept() -> None:
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    with torch.no_grad():
        assert not loss.summed(hidden, weight, None, targets=torch.zeros(5, dtype=torch.long)).requires_grad


def _computed(problem: dict[str, Any], compute: Loss) -> list[torch.Tensor]:
    """The loss, weighed, and the gradients of what is trained."""
    torch.manual_seed(problem["seed"])
    rows, width, vocabulary = problem["rows"], problem["width"], problem["vocabulary"]
    tensors = {
        "hidden": torch.randn(rows, width),
        "weight": torch.randn(vocabulary, width),
        "bias": torch.randn(vocabulary) if problem["bias"] else None,
    }
    targets = torch.randint(vocabulary, (rows,))
    trained = [
        tensor.requires_grad_() for name, tensor in tensors.items() if name in problem["trained"] and tensor is not None
    ]
    with pytest.MonkeyPatch.context() as patch:
        if "piece" in problem:
            patch.setitem(loss.PIECE, "cpu", problem["piece"])
        total = compute(*tensors.values(), targets=targets) * problem["weights"]
    if trained:
        total.backward()
    return [total.detach(), *(torch.zeros(()) if tensor.grad is None else tensor.grad for tensor in trained)]


def _plain_each(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, targets: torch.Tensor
) -> torch.Tensor:
    return functional.cross_entropy(functional.linear(hidden, weight, bias), targets, reduction="none")


def _plain_sum(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, targets: torch.Tensor
) -> torch.Tensor:
    return _plain_each(hidden, weight, bias, targets=targets).sum()


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every tensor that any operator makes, in the backward pass too."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made
