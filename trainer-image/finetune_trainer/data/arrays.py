"""Arrays that grow at the end: in memory, or in a file that is mapped when it is whole. The file has no name, so that
nothing is left of it when the process ends, however it ends.
"""

import os
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray


class Growing:
    """One array of numbers."""

    def __init__(self, dtype: Any, folder: Path | None) -> None:
        """In memory without a folder."""
        self._dtype = np.dtype(dtype)
        self._memory = bytearray()
        self._file: IO[bytes] | None = None if folder is None else tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._size = 0

    def __len__(self) -> int:
        return self._size // int(self._dtype.itemsize)

    def add(self, values: Any) -> None:
        """Append a buffer of numbers of this type. Raises OSError where the disk is full."""
        data = memoryview(values).cast("B")
        self._size += len(data)
        if self._file is None:
            self._memory += data
        else:
            self._file.write(data)

    def finish(self) -> NDArray[Any]:
        """The whole array; read-only if it is a file."""
        if self._file is None:
            return np.frombuffer(self._memory, dtype=self._dtype)
        self._file.flush()
        os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        if not self._size:
            return np.zeros(0, dtype=self._dtype)
        return np.memmap(self._file, dtype=self._dtype, mode="r")
