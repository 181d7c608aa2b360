"""Copies of tensors in main memory, so that a training goes on while they are written. Made once, filled at each save.

On CUDA they are pinned: the copy runs on the device's own engine, in order with the steps, and nobody waits for it but
who reads it. Never grows beyond half of the memory that is free.
"""

import logging
from collections.abc import Callable, Mapping

import torch

from finetune_trainer import memory
from finetune_trainer.reporting import journal

logger = logging.getLogger(__name__)

Groups = Mapping[str, Mapping[str, torch.Tensor]]
"""Tensors by name, in groups."""


class Stage:
    """Room for the copies of some tensors."""

    def __init__(self, groups: Groups, *, pinned: bool) -> None:
        """As much room as these take, touched once: a page that is new costs more than one that is filled again."""
        self._pinned = pinned
        self._copies: dict[tuple[str, str], torch.Tensor] = {}
        for group, tensors in groups.items():
            for name, tensor in _once(tensors).items():
                self._copies[group, name] = self._room_for(tensor).zero_()

    def copy(self, groups: Groups) -> tuple[dict[str, dict[str, torch.Tensor]], Callable[[], None]]:
        """The tensors as they are now, valid until the next call, and what to call before they are read."""
        copies = {group: self._filled(group, tensors) for group, tensors in groups.items()}
        if not self._pinned:
            return copies, nothing_to_wait_for
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return copies, event.synchronize

    def _filled(self, group: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, tensor in _once(tensors).items():
            there = self._copies.get((group, name))
            if there is None or (there.shape, there.dtype) != (tensor.shape, tensor.dtype):
                there = self._copies[group, name] = self._room_for(tensor)
            there.copy_(tensor.detach(), non_blocking=True)
        return {name: self._copies[group, first] for name, first in _firsts(tensors).items()}

    def _room_for(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pinned)


def nothing_to_wait_for() -> None:
    """A copy that no device makes is there when the call is over."""


def reserve(groups: Groups, *, pinned: bool) -> Stage | None:
    """Room for these tensors; None, and a line in the log, where there is too little memory for it."""
    needed = sum(t.numel() * t.element_size() for tensors in groups.values() for t in _once(tensors).values())
    free = memory.free_bytes()
    if needed <= free // 2:
        return Stage(groups, pinned=pinned)
    journal.event(
        logger,
        "SAVES_WAIT",
        f"a copy of what is saved needs {needed / 2**30:.1f} GiB of main memory, and {free / 2**30:.1f} GiB are free:"
        " the training waits while a checkpoint is written",
    )
    return None


def _once(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without those that are another one's memory, as tied weights are."""
    return {first: tensors[first] for first in _firsts(tensors).values()}


def _firsts(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """For each name the first one that stands for the same memory."""
    known: dict[object, str] = {}
    return {name: known.setdefault(_place(tensor) or name, name) for name, tensor in tensors.items()}


def _place(tensor: torch.Tensor) -> object:
    """Where a tensor lies; nothing for one that is empty or has only a shape."""
    if tensor.is_meta or not tensor.numel():
        return None
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
