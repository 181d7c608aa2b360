"""Reads the lines of a file that grows, a bounded block at a time, from where it was left.

A new attempt shortens the history by the steps that it does again, or replaces it: then it is read from its beginning.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

BLOCK = 16 << 10

Line = dict[str, Any]


class Lines:
    """A file with one JSON object a line."""

    def __init__(self, path: Path, *, key: str, doubts: Callable[[Line, int], bool]) -> None:
        """`doubts` tells of the first line beyond a key whether one may have been missed: then all is read again."""
        self._path = path
        self._key = key
        self._doubts = doubts
        self._offset = 0
        self._inode = -1

    def after(self, last: int) -> list[Line]:
        """Some of the lines whose key is beyond `last`; none if there are none yet. Raises OSError."""
        begun = self._offset
        found = self._next(last)
        if begun and found and self._doubts(found[0], last):
            self._offset = 0
            found = self._next(last)
        return found

    def _next(self, last: int) -> list[Line]:
        while block := self._block():
            lines = [line for line in map(self._parsed, block.splitlines()) if line and line[self._key] > last]
            if lines:
                return lines
        return []

    def _block(self) -> bytes:
        """Whole lines; nothing at the end."""
        try:
            with self._path.open("rb") as file:
                about = os.fstat(file.fileno())
                if about.st_ino != self._inode or about.st_size < self._offset:
                    self._inode, self._offset = about.st_ino, 0
                file.seek(self._offset)
                block = file.read(BLOCK)
        except FileNotFoundError:
            return b""
        whole = block[: block.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole

    def _parsed(self, line: bytes) -> Line | None:
        """The line; None for what is torn."""
        try:
            found = json.loads(line)
        except ValueError:
            return None
        return found if isinstance(found, dict) and isinstance(found.get(self._key), int) else None


def steps(path: Path) -> Lines:
    """A file with a line for each step."""
    return Lines(path, key="step", doubts=lambda line, last: line["step"] != last + 1)


def evaluations(path: Path) -> Lines:
    """A short file with a line for some steps."""
    return Lines(path, key="step", doubts=lambda _, __: True)


def readings(path: Path) -> Lines:
    """A file that is never shortened, with a line for some moments."""
    return Lines(path, key="time", doubts=lambda _, __: False)
