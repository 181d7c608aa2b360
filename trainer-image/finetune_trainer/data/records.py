"""What a record must hold for each task, and what is said of one that doesn't. Pure: one row in, a record or a problem
out.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.data import Columns, Task
from finetune_trainer.data import messages
from finetune_trainer.data.messages import Message, Problem

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands."""

    file: str
    line: int
    unit: str = "line"
    """What is counted: lines of a text, or rows of a table."""

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.line}"


@dataclass(frozen=True)
class Conversation:
    """Messages, some of which are learned."""

    messages: tuple[Message, ...]
    learned: frozenset[int]
    """Indices of the messages to learn."""


@dataclass(frozen=True)
class Document:
    """Raw text, all of which is learned."""

    text: str
    begins: bool = True
    """Whether a text begins here: only then does it get the tokens that the model expects at a beginning."""
    ends: bool = True
    """Whether a text ends here: only then does it get the token that ends it."""


@dataclass(frozen=True)
class Preference:
    """Two continuations of one prompt."""

    chosen: Conversation
    rejected: Conversation


Record = Conversation | Document | Preference


def decode(line: bytes) -> Any:
    """The value in a line of JSON. Raises Problem."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem(f"not UTF-8: byte 0x{line[error.start]:02x} at column {error.start + 1}") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Problem(f"not JSON: {error.msg} at column {error.colno}; each line must be one JSON object") from error
    except (ValueError, RecursionError) as error:
        raise Problem("not JSON that can be read: nested too deeply, or a number too long") from error


def parse(row: Any, *, task: Task, columns: Columns) -> tuple[Record, tuple[str, ...]]:
    """The record in a row, and the keys that nobody asked for. Raises Problem."""
    if not isinstance(row, dict):
        raise Problem(f"{messages.kind(row)} where an object {{…}} is expected")
    ignored = check_names(row, task=task, columns=columns)
    match task:
        case Task.CONTINUED_PRETRAIN:
            return Document(messages.filled(row[columns.text], columns.text)), ignored
        case Task.CHAT_COMPLETION:
            return _chat(row, columns), ignored
        case Task.PREFERENCE:
            return _preference(row, columns), ignored
        case _:
            return _instruction(row, columns), ignored


def check_names(names: Iterable[str], *, task: Task, columns: Columns) -> tuple[str, ...]:
    """The names beyond those of the task, which must be there. Raises Problem."""
    needed, optional = wanted(task, columns)
    return messages.unused(names, needed, optional=optional)


def wanted(task: Task, columns: Columns) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names that a task's records need, and those that they may have."""
    match task:
        case Task.CONTINUED_PRETRAIN:
            return (columns.text,), ()
        case Task.CHAT_COMPLETION:
            return (columns.messages,), ()
        case Task.PREFERENCE:
            return (columns.chosen, columns.rejected), (columns.prompt,)
        case _:
            return (columns.prompt, columns.response), (columns.history,)


def _instruction(row: Row, columns: Columns) -> Conversation:
    prompt = messages.text(row[columns.prompt], columns.prompt)
    response = messages.filled(row[columns.response], columns.response)
    earlier = _history(row.get(columns.history), columns.history)
    turns = [turn for pair in (*earlier, (prompt, response)) for turn in zip(("user", "assistant"), pair, strict=True)]
    written = tuple({"role": role, "content": content} for role, content in turns)
    return Conversation(written, frozenset({len(written) - 1}))


def _history(value: Any, name: str) -> list[tuple[str, str]]:
    if value is None:
        return []
    pairs = value if isinstance(value, list) else None
    if pairs is None or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise Problem(f"'{name}' must be a list of [prompt, response] pairs")
    texts = [[messages.text(part, f"{name}[{n}][{m}]") for m, part in enumerate(pair)] for n, pair in enumerate(pairs)]
    return [(prompt, response) for prompt, response in texts]


def _chat(row: Row, columns: Columns) -> Conversation:
    said = messages.conversation(row[columns.messages], columns.messages)
    learned = messages.answers_in(said)
    if not learned:
        raise Problem(f"'{columns.messages}' has no assistant turn, so there is nothing to learn")
    messages.expect_answer_last(said, columns.messages)
    return Conversation(said, learned)


def _preference(row: Row, columns: Columns) -> Preference:
    names = columns.chosen, columns.rejected
    if type(row[names[0]]) is not type(row[names[1]]):
        one, other = (f"'{name}' is {messages.kind(row[name])}" for name in names)
        raise Problem(f"{one} and {other}; expected two texts, or two lists of messages")
    chosen, rejected = (_answer(row[name], name) for name in names)
    if chosen == rejected:
        raise Problem(f"'{names[0]}' and '{names[1]}' are equal, so there is nothing to prefer")
    if chosen[0]["role"] == "assistant":
        messages.unused(row, (columns.prompt, *names))
        asked = _prompt(row[columns.prompt], columns.prompt)
        chosen, rejected = (*asked, *chosen), (*asked, *rejected)
        shared = len(asked)
    else:  # whole conversations: what they share is the prompt
        shared = _shared(chosen, rejected, names)
    both = [Conversation(said, messages.answers_in(said, after=shared)) for said in (chosen, rejected)]
    return Preference(*both)


def _answer(value: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        return ({"role": "assistant", "content": messages.filled(value, name)},)
    said = messages.conversation(value, name)
    messages.expect_answer_last(said, name)
    return said


def _prompt(value: Any, name: str) -> tuple[Message, ...]:
    if isinstance(value, list):
        return messages.conversation(value, name)
    return ({"role": "user", "content": messages.text(value, name)},)


def _shared(chosen: tuple[Message, ...], rejected: tuple[Message, ...], names: tuple[str, str]) -> int:
    """How many messages both begin with, up to an answer."""
    count = 0
    while count < min(len(chosen), len(rejected)) - 1 and chosen[count] == rejected[count]:
        count += 1
    if count and chosen[count]["role"] == rejected[count]["role"] == "assistant":
        return count
    raise Problem(
        f"'{names[0]}' and '{names[1]}' are conversations that don't begin alike; expected the same messages up to the"
        " answers"
    )


def cells(row: Row, *, task: Task, columns: Columns) -> dict[str, Any]:
    """A row of a table, in which lists may be written as JSON."""
    lists = {columns.history, columns.messages} if task != Task.PREFERENCE else set()
    answers = {columns.prompt, columns.chosen, columns.rejected} if task == Task.PREFERENCE else set()
    found = dict(row)
    for name in (lists | answers) & found.keys():
        value = found[name]
        if isinstance(value, str) and name == columns.history and not value.strip():
            found[name] = None
        elif isinstance(value, str) and value.lstrip().startswith("["):
            found[name] = _listed(value, of_messages=name in answers)
    return found


def _listed(text: str, *, of_messages: bool) -> Any:
    """The list that a text holds, or the text itself."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    wanted = not of_messages or (bool(value) and all(isinstance(item, dict) and "role" in item for item in value))
    return value if wanted else text
