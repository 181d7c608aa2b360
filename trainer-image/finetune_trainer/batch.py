"""Records as tensors, in one of two layouts that give the same loss: end to end in one row, or one a row and padded.

A padded row needs no mask: what comes after a record can't be seen by it, and nothing is learned there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune_trainer.data import Dataset


@dataclass(frozen=True, eq=False)
class Tensors:
    """One forward pass."""

    inputs: dict[str, Any]
    """What the model is called with."""
    positions: torch.Tensor
    """Where, in the rows laid end to end, a token is predicted that is learned."""
    targets: torch.Tensor
    """Those tokens."""


def targets_in(data: Dataset, records: Sequence[int]) -> int:
    """How many tokens of these records are learned."""
    return sum(int(data.record(index)[1][1:].sum()) for index in records)


def build(data: Dataset, records: Sequence[int], *, packed: bool, device: torch.device) -> Tensors:
    """The tensors of a micro-batch."""
    rows = [data.record(index) for index in records]
    lengths = [len(tokens) for tokens, _ in rows]
    width = max(lengths)
    starts = np.cumsum([0, *lengths[:-1]]) if packed else np.arange(len(rows)) * width
    ids = np.zeros(sum(lengths) if packed else len(rows) * width, dtype=np.int64)
    positions = []
    for start, (tokens, learned) in zip(starts, rows, strict=True):
        ids[start : start + len(tokens)] = tokens
        positions.append(start + np.flatnonzero(learned[1:]))
    predicting = np.concatenate(positions)
    inputs: dict[str, Any] = {"input_ids": _put(ids.reshape(1 if packed else len(rows), -1), device)}
    if packed:
        inputs["position_ids"] = _put(np.concatenate([np.arange(length) for length in lengths])[None], device)
        inputs["segments"] = tuple(lengths)
        if device.type == "cuda":
            inputs["boundaries"] = _put(np.cumsum([0, *lengths], dtype=np.int32), device)
    return Tensors(inputs, _put(predicting, device), _put(ids[predicting + 1], device))


def _put(values: "np.typing.NDArray[Any]", device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
