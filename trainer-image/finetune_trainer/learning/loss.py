"""Cross-entropy over an output layer whose logits are never there all at once: a few rows at a time, gradient included.

With a vocabulary of 128,000, 8,192 targets have 4 GiB of logits in fp32, and as much again of gradients. Here rows go
through the layer in pieces of at most PIECE logits. The gradient of the sum is computed on the way, so that the
backward pass does no second matrix product; single losses, which people weigh afterwards, are computed again there.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

PIECE = {"cpu": 2**22, "cuda": 2**27}
"""Logits that are there at once: on CPU what a cache holds, on CUDA enough rows to fill the device."""


def summed(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, targets: torch.Tensor
) -> torch.Tensor:
    """The sum of the losses; hidden has a row for each target."""
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias))
    total: torch.Tensor = _Summed.apply(hidden, weight, bias, targets, _dtype(hidden), learns)  # type: ignore[no-untyped-call]
    return total


def each(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, targets: torch.Tensor
) -> torch.Tensor:
    """The loss of each target."""
    pieces = [
        checkpoint(_plain, hidden[rows], weight, bias, targets[rows], use_reentrant=False, preserve_rng_state=False)
        for rows in _pieces(hidden, weight)
    ]
    return torch.cat(pieces)


def _plain(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor
) -> torch.Tensor:
    return functional.cross_entropy(functional.linear(hidden, weight, bias).float(), targets, reduction="none")


def _dtype(hidden: torch.Tensor) -> torch.dtype:
    """What the matrix products are computed in."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _pieces(hidden: torch.Tensor, weight: torch.Tensor) -> Iterator[slice]:
    rows = max(1, PIECE.get(hidden.device.type, PIECE["cuda"]) // len(weight))
    return (slice(start, start + rows) for start in range(0, len(hidden), rows))


class _Summed(torch.autograd.Function):
    """The sum, and in the forward pass already the gradients of what is trained."""

    @staticmethod
    def forward(  # noqa: PLR0917 - a Function's arguments have no names
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        dtype: torch.dtype,
        learns: bool,  # noqa: FBT001
    ) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(dtype)
            offset = None if bias is None else bias.to(dtype)
            total = torch.zeros((), device=hidden.device)
            grads = [
                torch.zeros_like(given, dtype=given.dtype)
                if learns and given is not None and given.requires_grad
                else None
                for given in (hidden, weight, bias)
            ]
            for rows in _pieces(hidden, weight):
                inputs = hidden[rows].to(dtype)
                said = functional.log_softmax(functional.linear(inputs, matrix, offset), 1, dtype=torch.float32)
                aims = targets[rows, None]
                right = said.gather(1, aims)
                total -= right.sum()
                if learns:
                    wrong = said.exp_()  # the gradient of the logits: what was said minus what is right
                    wrong.scatter_add_(1, aims, torch.full_like(right, -1.0))
                    _add(grads, rows, wrong, inputs, matrix)
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[Any, ...]:
        grads = (None if grad is None else grad * gradient.to(grad.dtype) for grad in ctx.saved_tensors)
        return (*grads, None, None, None)


def _add(
    grads: list[torch.Tensor | None], rows: slice, wrong: torch.Tensor, inputs: torch.Tensor, matrix: torch.Tensor
) -> None:
    """Add what one piece gives."""
    of_hidden, of_weight, of_bias = grads
    if of_bias is not None:
        of_bias += wrong.sum(0).to(of_bias.dtype)
    rounded = wrong.to(matrix.dtype)
    if of_hidden is not None:
        of_hidden[rows] = (rounded @ matrix).to(of_hidden.dtype)
    if of_weight is not None:
        of_weight += (rounded.t() @ inputs).to(of_weight.dtype)
