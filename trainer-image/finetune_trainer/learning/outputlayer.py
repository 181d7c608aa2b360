"""The output layer: computes only where something is learned, and losses instead of logits where a model allows that.

With a large vocabulary, logits would take most of the memory. And since nothing looks at the other tokens any more
behind the last layer's attention, the last layer's MLP leaves them out, too.
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

WORTH_PICKING = 0.9
"""Share of tokens that are learned beyond which leaving out the others costs as much as it saves."""

Computes = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
"""Something of hidden rows, weight and bias."""


class TargetsOnly:
    """A model's output layer, told where something is learned."""

    positions: torch.Tensor
    takes_losses = False
    """Whether losses may take the place of logits."""
    picks_in_last_layer = False
    """Whether its MLP leaves out the other tokens."""

    def __init__(self, network: Any) -> None:
        layer = network.get_output_embeddings()
        self._computes: Computes | None = None
        if layer is None:
            return
        mixed = layer.weight.dtype == torch.bfloat16  # under an adapter of fp32
        with torch.autocast(layer.weight.device.type, torch.bfloat16, enabled=mixed):
            self.picks_in_last_layer = _LastMlp.put_in(network, self)
            layer.register_forward_pre_hook(self._pick)
            if type(layer) is torch.nn.Linear:
                layer.forward = MethodType(self._forward, layer)  # type: ignore[method-assign]
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


class _LastMlp:
    """Hooks around the last layer's MLP: it is given the tokens that are learned, and adds zero to others."""

    def __init__(self, head: TargetsOnly) -> None:
        self._head = head
        self._shape: torch.Size | None = None
        """Of all that was to be computed, while a part of it is."""

    @classmethod
    def put_in(cls, network: Any, head: TargetsOnly) -> bool:
        """If the model then gives the same logits for these tokens; returns whether it does."""
        mlp = _last_mlp(network)
        if mlp is None:
            return False
        ids = _ids(network, PROBE_LENGTH)
        head.positions = torch.arange(0, PROBE_LENGTH, 4, device=network.device)
        with _evaluating(network):
            expected = head.picked(_logits(network, ids))
            hooks = cls(head)
            handles = mlp.register_forward_pre_hook(hooks.pick), mlp.register_forward_hook(hooks.put_back)
            try:
                found = head.picked(_logits(network, ids))
                same = bool((found - expected).abs().max() < tolerance(expected))
            except Exception as error:  # noqa: BLE001 - whatever a model's code can't do with fewer tokens
                logger.info("leaving tokens out of the last layer's MLP was tried and failed: %s", error)
                same = False
        if not same:
            for handle in handles:
                handle.remove()
        return same

    def pick(self, _mlp: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Before it."""
        (hidden,) = arguments
        positions = self._head.positions
        if len(positions) > WORTH_PICKING * hidden[..., 0].numel():
            return arguments
        self._shape = hidden.shape
        return (hidden.flatten(0, -2).index_select(0, positions)[None],)

    def put_back(self, _mlp: torch.nn.Module, _: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        """Behind it."""
        if self._shape is None:
            return output
        shape, self._shape = self._shape, None
        rows = output.new_zeros(shape).flatten(0, -2)
        whole: torch.Tensor = rows.index_copy(0, self._head.positions, output[0]).view(shape)
        return whole


def _last_mlp(network: Any) -> Any:
    """Of the last layer; None where it isn't one, but experts, say."""
    count = network.config.get_text_config().num_hidden_layers
    for module in network.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            found = getattr(module[-1], "mlp", None)
            return found if type(found).__name__.endswith("MLP") else None
    return None


def _gives_plain_logits(network: Any, head: TargetsOnly) -> bool:
    """Whether the model does nothing with its logits but return them, so that losses may take their place."""
    ids = _ids(network, PROBE_LENGTH)
    head.positions, targets = torch.arange(PROBE_LENGTH - 1, device=network.device), ids[1:]
    try:
        with _evaluating(network):
            logits = _logits(network, ids)
            with head.computing(partial(loss.each, targets=targets)):
                found = _logits(network, ids)
    except Exception as error:  # noqa: BLE001 - whatever a model's code can't do with losses, it can with logits
        logger.info("computing losses in the output layer was tried and failed: %s", error)
        return False
    expected = functional.cross_entropy(head.picked(logits).float(), targets, reduction="none")
    return found.shape == expected.shape and bool((found - expected).abs().max() < tolerance(logits))


def _ids(network: Any, length: int) -> torch.Tensor:
    vocabulary: int = network.config.get_text_config().vocab_size
    return (torch.arange(length, device=network.device) * 7 + 3) % vocabulary


def _logits(network: Any, ids: torch.Tensor) -> torch.Tensor:
    packed = {"segments": (len(ids),), "position_ids": torch.arange(len(ids), device=ids.device)[None]}
    inputs = packed if network.config._attn_implementation == attention.NAME else {}
    logits: torch.Tensor = network(input_ids=ids[None], use_cache=False, **inputs).logits
    return logits


@contextmanager
def _evaluating(network: Any) -> Iterator[None]:
    """Without dropout and gradient."""
    trains = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(trains)
