"""Norm, rotation and gated activation with backward passes of their own: the models' formulas in half the operations.

Step by step, autograd keeps what each operation makes and goes over the tensors again for each of them. What is given
back differs from the models' own code by rounding alone; the gated activation is the same bit for bit.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

Rotation = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""(query, key, cos, sin), and which dimension of cos and sin the heads are put in."""


def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """SiLU(gate) * up, of the same shape each."""
    if gate.dtype != up.dtype:
        return functional.silu(gate) * up
    product: torch.Tensor = _Gated.apply(gate, up)  # type: ignore[no-untyped-call]
    return product


def norm(inputs: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Each row by its root mean square, times the weight: (..., size), (size,).

    https://arxiv.org/abs/1910.07467 (4)
    """
    with torch.autocast(inputs.device.type, enabled=False):
        if inputs.device.type == "cuda" and inputs.dtype == weight.dtype:
            return functional.rms_norm(inputs, weight.shape, weight, epsilon)  # one kernel there; many on CPU
        normed: torch.Tensor = _Norm.apply(inputs, weight, epsilon)  # type: ignore[no-untyped-call]
    return normed


def rotation(own: Rotation) -> Rotation:
    """Of query and key, (batch, heads, tokens, size). What is out of the usual is left to `own`, the model's function.

    https://arxiv.org/abs/2104.09864 (34), but the two numbers of a pair lie half a head apart.
    """

    @wraps(own)
    def rotate(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *rest: Any, **named: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        usual = q.dtype == k.dtype == cos.dtype and q.shape[-1] == k.shape[-1] == cos.shape[-1] and cos.ndim == 3
        if rest or named or not usual:
            return own(q, k, cos, sin, *rest, **named)
        rotated: tuple[torch.Tensor, torch.Tensor] = _Rotated.apply(q, k, cos[:, None], sin[:, None])  # type: ignore[no-untyped-call]
        return rotated

    return rotate


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate, up = ctx.saved_tensors
        of_up = functional.silu(gate).mul_(gradient)
        return torch.ops.aten.silu_backward(gradient * up, gate), of_up


class _Norm(torch.autograd.Function):
    """With r = 1 / root mean square and h = weight * gradient, inputs get r h - r^3 inputs mean(h * inputs)."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = _wide(inputs)
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = scale.square_().div_(inputs.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(inputs, weight, scale)
        normed = (wide * scale).to(inputs.dtype)
        return torch.mul(normed, weight, out=normed if normed.dtype == weight.dtype else None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        inputs, weight, scale = ctx.saved_tensors
        of_inputs = of_weight = None
        with torch.autocast(inputs.device.type, enabled=False):
            wide, gradient = _wide(inputs), _wide(gradient)
            if ctx.needs_input_grad[1]:
                of_weight = (gradient * wide * scale).flatten(0, -2).sum(0).to(weight.dtype)
            if ctx.needs_input_grad[0]:
                weighed = gradient * weight
                share = (weighed * wide).sum(-1, keepdim=True).mul_(scale**3).div_(-inputs.shape[-1])
                of_inputs = weighed.mul_(scale).addcmul_(wide, share).to(inputs.dtype)
        return of_inputs, of_weight, None


class _Rotated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos, sin)
        first, second = sin.chunk(2, -1)
        return _turned(query, cos, first, second, sign=-1), _turned(key, cos, first, second, sign=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_query: torch.Tensor, of_key: torch.Tensor) -> tuple[Any, ...]:
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, -1)
        return *(_turned(one, cos, second, first, sign=1) for one in (of_query, of_key)), None, None


def _turned(
    inputs: torch.Tensor, cos: torch.Tensor, first: torch.Tensor, second: torch.Tensor, *, sign: int
) -> torch.Tensor:
    """To each half the other is added, times `first` and `sign` or `second` and its opposite."""
    turned = inputs * cos
    half = inputs.shape[-1] // 2
    turned[..., :half].addcmul_(inputs[..., half:], first, value=sign)
    turned[..., half:].addcmul_(inputs[..., :half], second, value=-sign)
    return turned


def _wide(numbers: torch.Tensor) -> torch.Tensor:
    """In at least fp32, as the models' own norms compute."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))
