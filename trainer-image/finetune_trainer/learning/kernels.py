"""What computes between a network's matrix products: norms, rotation and gated activation.

The places are found in the models of transformers. What is put there instead of a model's own code is tried on random
numbers first: where it gives something else, the model keeps its own.
"""

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MethodType, ModuleType
from typing import Any

import torch
from torch.func import functional_call

from finetune_trainer.learning import fused

logger = logging.getLogger(__name__)

_NORMS = ("RMSNorm", "LayerNorm")
_EPSILONS = ("variance_epsilon", "eps")
_ROTATION = "apply_rotary_pos_emb"
_GATED = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
_TRIED = (2, 3, 5)
"""Batch, heads and tokens of the numbers it is tried with."""

_OWN_ROTATIONS: dict[ModuleType, fused.Rotation] = {}
"""Of models' files: what is put there is there for every network of the process."""


@dataclass(frozen=True)
class _Place:
    """Where something is computed."""

    owner: Any
    name: str
    key: object
    """The same for places that compute the same."""
    own: Callable[..., Any]
    fused: Callable[..., Any] | None
    """None where nothing gives the same."""
    bound: Callable[[Callable[..., Any]], Any]
    """Makes of such a function what the place takes."""


class Kernels:
    """The places of one network, and what computes there."""

    def __init__(self, network: Any) -> None:
        self._places = tuple(_found(network))
        self._compiled: dict[object, Any] = {}

    def fuse(self) -> None:
        """Compute by the formulas of `fused`, where they give what the model's own code does."""
        for place in self._places:
            self._put(place, place.fused)

    def compile(self) -> None:
        """Compute by what torch.compile makes of the model's own code; it is made when it is first called."""
        for place in self._places:
            if place.key not in self._compiled:
                self._compiled[place.key] = torch.compile(place.own, dynamic=True)
            self._put(place, self._compiled[place.key])

    def restore(self) -> None:
        """Compute by the model's own code."""
        for place in self._places:
            self._put(place, None)

    def _put(self, place: _Place, function: Callable[..., Any] | None) -> None:
        if function is not None:
            setattr(place.owner, place.name, place.bound(function))
        elif inspect.ismodule(place.owner):
            setattr(place.owner, place.name, place.own)
        elif place.name in vars(place.owner):
            delattr(place.owner, place.name)


def _found(network: Any) -> Iterator[_Place]:
    """Forward methods of modules, and the function that a model's file has for the rotation."""
    alike: dict[object, Callable[..., Any] | None] = {}
    for module in network.modules():
        kind, file = type(module), sys.modules[type(module).__module__]
        if hasattr(file, _ROTATION) and file not in alike:
            own = _OWN_ROTATIONS.setdefault(file, getattr(file, _ROTATION))
            alike[file] = _rotation(own)
            yield _Place(file, _ROTATION, file, own, alike[file], lambda function: function)
        if "forward" in vars(module):  # somebody's own
            continue
        if kind.__name__.endswith(_NORMS):
            if kind not in alike:
                alike[kind] = _norm(module)
            yield _Place(module, "forward", kind, kind.forward, alike[kind], _method_of(module))
        elif _is_gated(kind):
            activation = module.act_fn
            silu = fused.gated if _is_silu(activation) else None
            key = (kind, type(activation))
            yield _Place(module, "forward", key, _gated_by(activation), silu, _between_products(module))


def _norm(module: Any) -> Callable[..., torch.Tensor] | None:
    """The forward method of a norm of this kind, if it is the usual one."""
    epsilon = next((name for name in _EPSILONS if hasattr(module, name)), None)
    weight = getattr(module, "weight", None)
    if epsilon is None or not isinstance(weight, torch.Tensor) or weight.ndim != 1:
        return None

    def forward(norm: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        return fused.norm(hidden_states, norm.weight, getattr(norm, epsilon))

    drawn = _Drawn(weight)
    inputs, changed = drawn(*_TRIED, *weight.shape), drawn(*weight.shape)
    return (
        forward
        if _same(
            lambda: functional_call(module, {"weight": changed}, inputs),
            lambda: fused.norm(inputs, changed, getattr(module, epsilon)),
        )
        else None
    )


def _rotation(own: fused.Rotation) -> fused.Rotation | None:
    drawn = _Drawn(torch.empty(()))
    q, k, cos, sin = (drawn(*shape, 8) for shape in (_TRIED, _TRIED, _TRIED[::2], _TRIED[::2]))
    found = fused.rotation(own)
    return (
        found if _same(lambda: torch.stack(own(q, k, cos, sin)), lambda: torch.stack(found(q, k, cos, sin))) else None
    )


class _Drawn:
    """Random numbers of a tensor's kind that leave no trace in torch's generators."""

    def __init__(self, like: torch.Tensor) -> None:
        self._like = like
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator).to(self._like)


def _same(own: Callable[[], torch.Tensor], other: Callable[[], torch.Tensor]) -> bool:
    """Whether both give the same, up to rounding."""
    try:
        with torch.no_grad():
            expected, found = own(), other()
    except Exception as error:  # noqa: BLE001 - whatever a model's code wants to be given, it keeps it
        logger.debug("kept a model's own code: %s", error)
        return False
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return False
    most = 8 * torch.finfo(found.dtype).eps
    return bool(torch.allclose(expected.float(), found.float(), rtol=most, atol=most))


def _is_gated(kind: type) -> bool:
    """Whether a module is the usual gated one, and nothing more: its source says so."""
    try:
        return _GATED in inspect.getsource(kind.forward)  # type: ignore[attr-defined]
    except (OSError, TypeError, AttributeError):
        return False


def _is_silu(activation: Any) -> bool:
    return type(activation).__name__ in {"SiLU", "SiLUActivation"}


def _gated_by(activation: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """What lies between the products; activations have no weights, so one is as good as another layer's."""

    def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return activation(gate) * up

    return gated


def _method_of(module: Any) -> Callable[[Callable[..., Any]], Any]:
    return lambda function: MethodType(function, module)


def _between_products(module: Any) -> Callable[[Callable[..., Any]], Any]:
    def bound(gated: Callable[..., torch.Tensor]) -> Any:
        def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = module.down_proj(gated(module.gate_proj(x), module.up_proj(x)))
            return found

        return MethodType(forward, module)

    return bound
