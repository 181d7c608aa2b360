"""The parts of a record: keys, texts, messages. Each is checked, and what is wrong is said with its key. Pure."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ROLES = ("system", "user", "assistant", "tool")

Message = Mapping[str, Any]


class Problem(Exception):
    """What is wrong with a record."""


def kind(value: Any) -> str:
    """What a value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    names |= {int: "a number", float: "a number", bytes: "binary"}
    return names.get(type(value), f"a {type(value).__name__}")


def text(value: Any, name: str) -> str:
    """A value that must be text. Raises Problem."""
    if not isinstance(value, str):
        raise Problem(f"'{name}' is {kind(value)}; expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Problem(f"'{name}' holds half of a surrogate pair, which is no character") from error
    return value


def filled(value: Any, name: str) -> str:
    """A value that must be text with something in it. Raises Problem."""
    if not text(value, name).strip():
        raise Problem(f"'{name}' is empty")
    return str(value)


def conversation(value: Any, name: str) -> tuple[Message, ...]:
    """A value that must be a list of messages. Raises Problem."""
    if not isinstance(value, list) or not value:
        what = "is empty" if value == [] else f"is {kind(value)}"
        raise Problem(f"'{name}' {what}; expected a list of {{role, content}} objects")
    for number, message in enumerate(value):
        _check(message, f"{name}[{number}]")
    # a table has all keys in every row: a template must not take `tool_calls: null` for calls
    return tuple({k: v for k, v in message.items() if v is not None or k == "content"} for message in value)


def expect_answer_last(messages: Sequence[Message], name: str) -> None:
    """Raise Problem unless the assistant has the last word."""
    if messages[-1]["role"] != "assistant":
        raise Problem(f"the last message of '{name}' is from {messages[-1]['role']}; expected assistant")


def answers_in(messages: Sequence[Message], *, after: int = 0) -> frozenset[int]:
    """Indices of the assistant's turns from `after` on."""
    return frozenset(n for n, message in enumerate(messages) if n >= after and message["role"] == "assistant")


def unused(
    names: Iterable[str], needed: Sequence[str], *, optional: Sequence[str] = (), where: str = ""
) -> tuple[str, ...]:
    """Names beyond those needed, which must all be there. Raises Problem."""
    given = tuple(names)
    missing = [name for name in needed if name not in given]
    others = tuple(name for name in given if name not in needed and name not in optional)
    if not missing:
        return others
    expected = " and ".join(f"'{name}'" for name in needed)
    near = [name for name in others if difflib.get_close_matches(name, missing, cutoff=0.5)] or list(others)
    if near:
        shown = ", ".join(f"'{name[:60]}'" for name in near[:3])
        raise Problem(f"{where}unknown key {shown}; expected {expected}")
    raise Problem(f"{where}key '{missing[0]}' is missing; expected {expected}")


def _check(message: Any, name: str) -> None:
    if not isinstance(message, dict):
        raise Problem(f"{name} is {kind(message)}; expected an object with 'role' and 'content'")
    calls = message.get("tool_calls") is not None
    unused(message, ("role",) if calls else ("role", "content"), where=f"{name}: ")
    if message["role"] not in ROLES:
        raise Problem(f"{name}: role {message['role']!r} is unknown; expected {', '.join(ROLES)}")
    content = text(message.get("content") or "" if calls else message["content"], f"{name}.content")
    if message["role"] == "assistant" and not content.strip() and not calls:
        raise Problem(f"{name}.content is empty")
