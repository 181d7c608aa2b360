"""A JSON array read one item at a time, so that a file of any size needs the memory of its largest item."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from finetune_trainer.data.messages import Problem

BLOCK = 1 << 20
_BLANK = re.compile(r"[ \t\r\n]*")
_CUT = 8
"""An error so near to the end of what was read may be no error: a literal or an escape may go on."""


def items(file: TextIO, *, longest: int) -> Iterator[tuple[int, Any]]:
    """Each item with the line where it begins; a Problem ends the array."""
    window = _Window(file, longest)
    if window.ahead() != "[":
        yield window.line, Problem("not an array [...] of objects; for one object a line set format JSONL")
        return
    mark = window.skip()
    if window.ahead() == "]":
        mark = window.skip()
    while mark != "]":
        window.ahead()
        line, value = window.line, window.item()
        yield line, value
        if isinstance(value, Problem):
            return
        mark = window.ahead()
        if mark not in (",", "]"):
            yield window.line, Problem(f"not JSON: {_shown(mark)} where ',' or ']' is expected")
            return
        window.skip()
    if rest := window.ahead():
        yield window.line, Problem(f"not JSON: {_shown(rest)} after the end of the array")


def _shown(mark: str) -> str:
    return repr(mark) if mark else "the end of the file"


class _Window:
    """The part of the file that is being read."""

    def __init__(self, file: TextIO, longest: int) -> None:
        self._file = file
        self._longest = longest
        self._text = ""
        self._at = 0
        self._ended = False
        self.line = 1

    def ahead(self) -> str:
        """The next character that isn't blank, or none at the end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            assert blank is not None
            self._pass(blank.end())
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def skip(self) -> str:
        """Go on by a character, and return it."""
        mark = self._text[self._at]
        self._pass(self._at + 1)
        return mark

    def item(self) -> Any:
        """The value that begins here, or a Problem."""
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _CUT
                if unfinished and len(self._text) - self._at < self._longest and self._more():
                    continue
                below = self._text.count("\n", self._at, error.pos)
                return Problem(f"not JSON: {error.msg}{f', {below} lines below' if below else ''}")
            except (ValueError, RecursionError):
                return Problem("not JSON that can be read: nested too deeply, or a number too long")
            if end == len(self._text) and not isinstance(value, dict | list | str) and self._more():
                continue  # a number may go on
            self._pass(end)
            return value

    def _pass(self, end: int) -> None:
        self.line += self._text.count("\n", self._at, end)
        self._at = end

    def _more(self) -> bool:
        """Read on, and drop what is done."""
        if self._ended:
            return False
        block = self._file.read(max(BLOCK, len(self._text) - self._at))
        self._text, self._at = self._text[self._at :] + block, 0
        self._ended = not block
        return not self._ended
