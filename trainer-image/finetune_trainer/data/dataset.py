"""A data set as tokens, one record after the other: what the model is trained and evaluated on."""

import hashlib
from array import array
from collections.abc import Sequence as AnySequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.data.records import Place


@dataclass(frozen=True, eq=False)
class Sequence:
    """Tokens that the model sees in a row."""

    tokens: NDArray[np.int32]
    learned: NDArray[np.bool_]

    @property
    def prompt_length(self) -> int:
        """Tokens before the first that is learned."""
        return int(np.argmax(self.learned))


@dataclass(frozen=True, eq=False)
class Pair:
    """Two continuations of one prompt."""

    chosen: Sequence
    rejected: Sequence


class Places(AnySequence[Place]):
    """Where each record stands: a million take 12 MB."""

    def __init__(self, files: AnySequence[tuple[str, str]], file_of: "array[int]", lines: "array[int]") -> None:
        self._files, self._file_of, self._lines = files, file_of, lines

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, index: int) -> Place: ...
    @overload
    def __getitem__(self, index: slice) -> list[Place]: ...
    def __getitem__(self, index: int | slice) -> Place | list[Place]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        name, unit = self._files[self._file_of[index]]
        return Place(name, self._lines[index], unit)


@dataclass(frozen=True, eq=False)
class Dataset:
    """All records as tokens, one after the other. Of preference data each record is two sequences: chosen, rejected."""

    tokens: NDArray[np.int32]
    learned: NDArray[np.bool_]
    """Which tokens are targets of the loss."""
    ends: NDArray[np.int64]
    """Of each sequence."""
    places: AnySequence[Place]
    """Of each record."""
    paired: bool = False
    keys: NDArray[np.uint64] | None = None
    """Equal for equal records as they stood in the files; not in the records' order."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each record."""
        each = np.diff(self.ends, prepend=0)
        found: list[int] = (each.reshape(-1, 2).sum(axis=1) if self.paired else each).tolist()
        return found

    def record(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Tokens of a record, and which of them are learned."""
        assert not self.paired, "a preference record is a pair"
        return self._sequence(index)

    def pair(self, index: int) -> Pair:
        """The two sequences of a preference record."""
        assert self.paired, "only preference records are pairs"
        return Pair(Sequence(*self._sequence(2 * index)), Sequence(*self._sequence(2 * index + 1)))

    def digest(self) -> str:
        """Equal for equal data in equal order."""
        parts = (memoryview(part.data).cast("B") for part in (self.tokens, self.learned, self.ends))
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()

    def _sequence(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        start = int(self.ends[index - 1]) if index else 0
        stop = int(self.ends[index])
        return self.tokens[start:stop], self.learned[start:stop]
