"""A log record as lines of text: JSON for programs, or words for a terminal. No line is longer than 1 KiB.

What can't be seen, or would change how a terminal shows the rest (escape sequences, text that runs backwards), is
written as an escape. What is too long for a line goes on in the next, told by `part`.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

LIMIT = 1024
"""Bytes of a line, its end included."""
MOST_PARTS = 16
"""Lines of one record: of a longer one the middle is left out."""
_FIELD = 200
"""Characters of a field in a record that is too long."""

Line = dict[str, Any]


def as_json(record: logging.LogRecord) -> list[str]:
    """The record as JSON objects, one a line; nearly always one."""
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    who = _short(getattr(record, "event", record.name), _FIELD)
    head: Line = {"time": _time(record), "level": record.levelname.lower(), "event": who}
    said = {"message": _message(record)}
    if record.exc_info:
        said["traceback"] = logging.Formatter().formatException(record.exc_info)
    line = encoded({**head, **said, **fields})
    if _size(line) <= LIMIT:
        return [line]
    return _parts(head, said, fields)


def as_text(record: logging.LogRecord) -> list[str]:
    """The record for people at a terminal: time, what happened, and how bad it is if it is bad."""
    told = _message(record)
    if record.exc_info:
        told += "\n" + logging.Formatter().formatException(record.exc_info)
    bad = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
    clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
    first, *others = told.splitlines() or [""]
    lines = (f"{clock} {bad}{first}", *(f"         {line}" for line in others))
    return [next(_cut(visible(line), LIMIT - 1)) if line else "" for line in lines[: MOST_PARTS * 4]]


def encoded(line: Line) -> str:
    """As JSON in which every character can be seen; a number that JSON hasn't is text."""
    try:
        text = json.dumps(line, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(json.loads(json.dumps(line, default=str), parse_constant=str), ensure_ascii=False)
    return visible(text)


def visible(text: str) -> str:
    """With JSON's escape for each character that can't be seen or steers a terminal: C0, DEL, C1, U+2028, bidi, lone
    surrogates.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escape(each) for each in text)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError) as error:  # arguments that don't fit, in a library's call
        return f"{record.msg} ({record.args}: {error})"


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _parts(head: Line, said: Mapping[str, str], fields: Mapping[str, Any]) -> list[str]:
    """Several lines: the fields in the first, cut, then the message and the traceback piece by piece."""
    first = {**head, "part": MOST_PARTS, "message": ""}
    for key, value in fields.items():
        shown = value if isinstance(value, int | float | None) else _short(value, _FIELD)
        if _size(encoded({**first, key: shown})) < LIMIT // 2:
            first[key] = shown
    room = LIMIT - _size(encoded(first)) - len("traceback")
    pieces = [(key, piece) for key, text in said.items() for piece in _cut(_inner(text), room)]
    if len(pieces) > MOST_PARTS:
        half = MOST_PARTS // 2
        left_out = ("message", f"({len(pieces) - MOST_PARTS + 1} lines are left out)")
        pieces = [*pieces[:half], left_out, *pieces[1 - half :]]
    lines = []
    for number, (key, piece) in enumerate(pieces):
        base = {**(first if number == 0 else head), "part": number + 1}
        base.pop("message", None)
        lines.append(f'{encoded(base)[:-1]}, "{key}": "{piece}"}}')
    return lines


def _inner(text: str) -> str:
    """As it stands between the quotes of a JSON string."""
    return visible(json.dumps(text, ensure_ascii=False))[1:-1]


def _cut(text: str, size: int) -> Iterator[str]:
    """Pieces of at most `size` bytes; an escape isn't torn, a character neither."""
    if len(text.encode()) <= size:
        yield text
        return
    piece: list[str] = []
    length = 0
    for unit in _units(text):
        taken = len(unit.encode())
        if length + taken > size:
            yield "".join(piece)
            piece, length = [], 0
        piece.append(unit)
        length += taken
    yield "".join(piece)


def _units(text: str) -> Iterator[str]:
    """What may not be torn: a character, or an escape of two or six."""
    at = 0
    while at < len(text):
        width = 1 if text[at] != "\\" else 6 if text[at + 1 : at + 2] == "u" else 2
        yield text[at : at + width]
        at += width


def _short(value: object, length: int) -> str:
    text = str(value)
    return text if len(text) <= length else text[: length - 3] + "..."


def _size(line: str) -> int:
    return len(line.encode()) + 1
