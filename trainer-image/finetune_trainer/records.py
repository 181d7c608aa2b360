"""What a line of a data file must hold, and what is said of one that doesn't. Pure: one line in, a conversation or a
problem out.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.data import Columns, Task

ROLES = ("system", "user", "assistant", "tool")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """What one record says."""

    messages: tuple[Message, ...]
    learned: frozenset[int]
    """Indices of the messages to learn."""
    ignored: tuple[str, ...] = ()
    """Keys that nobody asked for."""


class Problem(Exception):
    """What is wrong with a record."""


def parse(line: bytes, *, task: Task, columns: Columns) -> Conversation:
    """Read one line. Raises Problem."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem(f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}") from error
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise Problem(f"not JSON: {error.msg} at column {error.colno}; each line must be one JSON object") from error
    except (ValueError, RecursionError) as error:
        raise Problem("not JSON that can be read: nested too deeply, or a number too long") from error
    if not isinstance(row, dict):
        raise Problem(f"{_kind(row)} where an object {{…}} is expected")
    if task == Task.CHAT_COMPLETION:
        return _chat(row, columns)
    return _instruction(row, columns)


def _instruction(row: Mapping[str, Any], columns: Columns) -> Conversation:
    ignored = _unused(row, (columns.prompt, columns.response), optional=(columns.history,))
    prompt, response = _text(row[columns.prompt], columns.prompt), _text(row[columns.response], columns.response)
    if not response.strip():
        raise Problem(f"'{columns.response}' is empty")
    earlier = _history(row.get(columns.history), columns.history)
    turns = [turn for pair in (*earlier, (prompt, response)) for turn in zip(("user", "assistant"), pair, strict=True)]
    messages = tuple({"role": role, "content": content} for role, content in turns)
    return Conversation(messages, frozenset({len(messages) - 1}), ignored)


def _history(value: Any, name: str) -> list[tuple[str, str]]:
    if value is None:
        return []
    pairs = value if isinstance(value, list) else None
    if pairs is None or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise Problem(f"'{name}' must be a list of [prompt, response] pairs")
    texts = [[_text(part, f"{name}[{n}][{m}]") for m, part in enumerate(pair)] for n, pair in enumerate(pairs)]
    return [(prompt, response) for prompt, response in texts]


def _chat(row: Mapping[str, Any], columns: Columns) -> Conversation:
    ignored = _unused(row, (columns.messages,))
    messages = row[columns.messages]
    if not isinstance(messages, list) or not messages:
        what = "is empty" if messages == [] else f"is {_kind(messages)}"
        raise Problem(f"'{columns.messages}' {what}; expected a list of {{role, content}} objects")
    for number, message in enumerate(messages):
        _check_message(message, f"{columns.messages}[{number}]")
    learned = frozenset(n for n, message in enumerate(messages) if message["role"] == "assistant")
    if not learned:
        raise Problem(f"'{columns.messages}' has no assistant turn, so there is nothing to learn")
    if messages[-1]["role"] != "assistant":
        raise Problem(f"the last message is from {messages[-1]['role']}; expected assistant")
    return Conversation(tuple(messages), learned, ignored)


def _check_message(message: Any, name: str) -> None:
    if not isinstance(message, dict):
        raise Problem(f"{name} is {_kind(message)}; expected an object with 'role' and 'content'")
    calls = message.get("tool_calls") is not None
    _unused(message, ("role",) if calls else ("role", "content"), where=f"{name}: ")
    if message["role"] not in ROLES:
        raise Problem(f"{name}: role {message['role']!r} is unknown; expected {', '.join(ROLES)}")
    content = _text(message.get("content") or "" if calls else message["content"], f"{name}.content")
    if message["role"] == "assistant" and not content.strip() and not calls:
        raise Problem(f"{name}.content is empty")


def _unused(
    row: Mapping[str, Any], needed: Sequence[str], *, optional: Sequence[str] = (), where: str = ""
) -> tuple[str, ...]:
    """Keys beyond those needed, which must all be there."""
    missing = [key for key in needed if key not in row]
    unused = tuple(key for key in row if key not in needed and key not in optional)
    if not missing:
        return unused
    expected = " and ".join(f"'{key}'" for key in needed)
    near = [key for key in unused if difflib.get_close_matches(key, missing, cutoff=0.5)] or list(unused)
    if near:
        names = ", ".join(f"'{key[:60]}'" for key in near[:3])
        raise Problem(f"{where}unknown key {names}; expected {expected}")
    raise Problem(f"{where}key '{missing[0]}' is missing; expected {expected}")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise Problem(f"'{name}' is {_kind(value)}; expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Problem(f"'{name}' holds half of a surrogate pair, which is no character") from error
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
