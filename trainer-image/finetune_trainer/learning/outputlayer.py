"""The output layer: computes only where something is learned, and losses instead of logits where a model allows that.

With a large vocabulary, logits would take most of the memory.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch.nn import functional

from finetune_trainer.learning import attention, loss

logger = logging.getLogger(__name__)

PROBE_LENGTH = 9
"""Tokens with which it is tried what a model does with its logits."""

Computes = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Something of hidden rows, weight and bias."""


class TargetsOnly:
    """A model's output layer, told where something is learned."""

    positions: torch.Tensor
    takes_losses = False
    """Whether losses may take the place of logits."""

    def __init__(self, network: Any) -> None:
        layer = network.get_output_embeddings()
        self._computes: Computes | None = None
        if layer is None:
            return
        layer.register_forward_pre_hook(self._pick)
        if type(layer) is torch.nn.Linear:
            layer.forward = MethodType(self._forward, layer)  # type: ignore[method-assign]
            mixed = layer.weight.dtype == torch.bfloat16  # under an adapter of fp32
            with torch.autocast(layer.weight.device.type, torch.bfloat16, enabled=mixed):
                self.takes_losses = _gives_plain_logits(network, self)

    @contextmanager
    def computing(self, computes: Computes | None) -> Iterator[None]:
        """In this block the layer gives this instead of logits."""
        self._computes = computes
        try:
            yield
        finally:
            self._computes = None

    def picked(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits at the positions, for models whose output layer is none of its own too."""
        flat = logits.flatten(0, -2)
        return flat if len(flat) == len(self.positions) else flat[self.positions]

    def _pick(self, _layer: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden, *rest = arguments
        return (hidden.flatten(0, -2)[self.positions][None], *rest)

    def _forward(self, layer: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        if self._computes is None:
            return functional.linear(hidden, layer.weight, layer.bias)
        return self._computes(hidden[0], layer.weight, layer.bias)


def tolerance(logits: torch.Tensor) -> float:
    """How far logits may differ by rounding alone."""
    return float(logits.float().std()) * (1e-3 if logits.dtype == torch.float32 else 0.15)


def _gives_plain_logits(network: Any, head: TargetsOnly) -> bool:
    """Whether the model does nothing with its logits but return them, so that losses may take their place."""
    length = PROBE_LENGTH
    ids = (torch.arange(length, device=network.device) * 7 + 3) % network.config.get_text_config().vocab_size
    head.positions, targets = torch.arange(length - 1, device=network.device), ids[1:]
    packed = {"segments": (length,), "position_ids": torch.arange(length, device=network.device)[None]}
    inputs = packed if network.config._attn_implementation == attention.NAME else {}
    trains = network.training
    network.eval()
    try:
        with torch.no_grad():
            logits = network(input_ids=ids[None], use_cache=False, **inputs).logits
            with head.computing(partial(loss.each, targets=targets)):
                found = network(input_ids=ids[None], use_cache=False, **inputs).logits
    except Exception as error:  # noqa: BLE001 - whatever a model's code can't do with losses, it can with logits
        logger.info("computing losses in the output layer was tried and failed: %s", error)
        return False
    finally:
        network.train(trains)
    expected = functional.cross_entropy(head.picked(logits).float(), targets, reduction="none")
    return found.shape == expected.shape and bool((found - expected).abs().max() < tolerance(logits))
