"""Records as tensors, in one of two layouts that give the same loss: end to end in one row, or one a row and padded.

A padded row needs no mask: what comes after a record can't be seen by it, and nothing is learned there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune_trainer.data.dataset import Dataset

Row = tuple["np.typing.NDArray[np.int32]", "np.typing.NDArray[np.bool_]"]
"""Tokens, and which of them are learned."""


@dataclass(frozen=True, eq=False)
class Tensors:
    """One forward pass."""

    inputs: dict[str, Any]
    """What the model is called with."""
    positions: torch.Tensor
    """Where, in the rows laid end to end, a token is predicted that is learned."""
    targets: torch.Tensor
    """Those tokens."""
    counts: tuple[int, ...]
    """How many of them each row has."""


def targets_in(data: Dataset, records: Sequence[int]) -> int:
    """How many tokens of these records are learned."""
    return sum(int(learned[1:].sum()) for _, learned in rows_of(data, records))


def rows_of(data: Dataset, records: Sequence[int]) -> list[Row]:
    """The token sequences of records: one each, or of a pair first the chosen and then the rejected one."""
    if not data.paired:
        return [data.record(index) for index in records]
    pairs = [data.pair(index) for index in records]
    return [(row.tokens, row.learned) for pair in pairs for row in (pair.chosen, pair.rejected)]


def cost(data: Dataset, records: Sequence[int], *, packed: bool) -> int:
    """Tokens of a forward pass over these records, padding included."""
    lengths = [len(tokens) for tokens, _ in rows_of(data, records)]
    return sum(lengths) if packed else max(lengths) * len(lengths)


def build(data: Dataset, records: Sequence[int], *, packed: bool, device: torch.device) -> Tensors:
    """The tensors of a micro-batch."""
    rows = rows_of(data, records)
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
    counts = tuple(map(len, positions))
    return Tensors(inputs, _put(predicting, device), _put(ids[predicting + 1], device), counts)


def _put(values: "np.typing.NDArray[Any]", device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
