"""A file that grows at its end, on a volume that may be full, read-only or gone for a while. Never raises OSError.

What can't be written is lost and counted; that is told once, and once more when writing works again. A record is
there whole or not at all.
"""

import logging
import os
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)


class Appending:
    """One such file."""

    def __init__(self, path: Path, *, what: str) -> None:
        """`what` it holds is how people are told of it."""
        self.path = path
        self.lost = 0
        self._what = what
        self._torn: tuple[int, int] | None = None
        """The file, by its inode, and where its last whole record ends, if a part of one may come after it."""

    def add(self, record: bytes) -> bool:
        """Append a record; whether it is there."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                found = os.fstat(file.fileno())
                if self._torn is not None and self._torn[0] == found.st_ino:
                    file.truncate(self._torn[1])
                self._torn = found.st_ino, file.seek(0, os.SEEK_END)
                _write(file, record)
        except OSError as error:
            self.failed(error)
            return False
        self._torn = None
        if self.lost:
            logger.warning("%s can be written again; %d records were lost", self._what, self.lost)
            self.lost = 0
        return True

    def failed(self, error: OSError) -> None:
        """One record is lost."""
        self.lost += 1
        if self.lost == 1:
            logger.warning("%s can't be written, the training goes on without: %s", self._what, error)


def _write(file: BinaryIO, record: bytes) -> None:
    """All of it: a disk that is nearly full takes a part."""
    left = memoryview(record)
    while left:
        left = left[file.write(left) :]
