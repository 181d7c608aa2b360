"""Conversations as text, and which parts of it are learned. Pure.

What is learned is found by rendering: an assistant turn is what the text has more than the conversation before it. That
holds for any template whose earlier text stays as it is when turns are added; where it doesn't, less is learned and it
is said.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import ext, nodes, parser, runtime, sandbox

from finetune_api.data import Template
from finetune_trainer.data import bounded
from finetune_trainer.data.messages import Message, Problem
from finetune_trainer.data.records import Conversation

Span = tuple[int, int]

TODAY = datetime(2024, 7, 26, tzinfo=UTC)
"""The date in templates that ask for one: always the same, or an attempt on another day would have other data."""

_OPEN, _CLOSE = "\ue000generation\ue001", "\ue001generation\ue000"


_REFUSALS = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RuntimeError, SyntaxError, TypeError,
    ValueError,
)  # fmt: skip

LONGEST, LONGER = 1 << 17, 16
"""Characters that a template may write in any case, and how many times as many as a conversation has."""


@dataclass(frozen=True)
class Text:
    """A rendered conversation."""

    text: str
    learned: tuple[Span, ...]
    """Character ranges of what is learned."""
    special: bool
    """Whether the tokenizer adds its own first and last tokens: a chat template has put them already."""
    reduced: bool = False
    """Whether earlier assistant turns could not be told apart, so that only the last one is learned."""


@dataclass(frozen=True)
class ChatTemplate:
    """A model's own way to write a conversation."""

    source: str
    special: Mapping[str, str]
    allowance: bounded.Allowance = field(default_factory=bounded.Allowance, compare=False, repr=False)
    """What all that it writes may take."""

    def write(self, conversation: Conversation) -> Text:
        """The conversation as text. Raises Problem where the template refuses it, Exceeded where it takes too much."""
        messages = conversation.messages
        if "endgeneration" in self.source:
            text, marked = _unmark(self.render(messages, marked=True))
            turns = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
            if len(marked) == len(turns):
                learned = (span for n, span in zip(turns, marked, strict=True) if n in conversation.learned)
                return Text(text, tuple(learned), special=False)
        text = self.render(messages)
        spans = [self._span(messages, index, text) for index in sorted(conversation.learned)]
        certain = tuple(span for span in spans if span is not None)
        if len(certain) == len(spans):
            return Text(text, certain, special=False)
        last = spans[-1] or self._last_answer(messages, text)
        return Text(text, (last,), special=False, reduced=len(spans) > 1)

    def render(self, messages: Sequence[Message], *, prompt: bool = False, marked: bool = False) -> str:
        """The text of some messages, with the beginning of an answer if `prompt`."""
        variables: dict[str, Any] = {**self.special, "add_generation_prompt": prompt, "tools": None, "documents": None}
        try:
            text = self.allowance.spend(
                lambda: _compiled(self.source).render(messages=list(messages), **variables), messages=len(messages)
            )
        except _REFUSALS as error:
            raise Problem(f"the model's chat template refuses it: {str(error)[:300]}") from error
        if len(text) > LONGEST and len(text) > LONGER * len(repr(messages)):
            raise bounded.Exceeded(f"writes {len(text):,} characters for a conversation of {len(repr(messages)):,}")
        return text if marked else text.replace(_OPEN, "").replace(_CLOSE, "")

    def _span(self, messages: Sequence[Message], index: int, text: str) -> Span | None:
        """Where the answer at `index` is, if the text up to it stays the same when turns are added."""
        try:
            upto = self.render(messages[: index + 1])
            before = self.render(messages[:index], prompt=True) if index else ""
        except Problem:  # a template may refuse the first part of what it accepts as a whole
            return None
        return (len(before), len(upto)) if text.startswith(upto) and upto.startswith(before) else None

    def _last_answer(self, messages: Sequence[Message], text: str) -> Span:
        answer = str(messages[-1]["content"]).strip()
        start = text.rfind(answer) if answer else -1
        if start < 0:
            raise Problem("the model's chat template changes the last answer, so that it can't be found in the text")
        return start, len(text)


def plain(conversation: Conversation, template: Template) -> Text:
    """The conversation for a model without a chat template: each prompt, a line break, its response."""
    bare = not (template.prefix or template.instruction or template.response)
    text, learned = template.prefix, []
    for index, message in enumerate(conversation.messages):
        content = str(message["content"])
        if message["role"] == "assistant":
            text += "\n" if bare else template.response
            if index in conversation.learned:
                learned.append((len(text), len(text) + len(content)))
            text += content
        else:
            text += ("\n" if bare and index else "") + template.instruction + content
    return Text(text, tuple(learned), special=True)


def _unmark(marked: str) -> tuple[str, list[Span]]:
    """The text without marks, and the ranges that were between them."""
    text, spans = "", []
    for part in marked.split(_OPEN):
        inside, closed, after = part.partition(_CLOSE)
        if closed:
            spans.append((len(text), len(text) + len(inside)))
        text += inside + after
    return text, spans


class _Generation(ext.Extension):
    """The tag {% generation %}, with which a template itself says what an assistant wrote."""

    tags = {"generation"}  # noqa: RUF012 - jinja declares it so

    def parse(self, parser: parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: runtime.Macro) -> str:
        return _OPEN + caller() + _CLOSE


@lru_cache(maxsize=2)
def _compiled(source: str) -> jinja2.Template:
    """The template with what transformers offers to one; a model's template is a stranger's code, so in a sandbox."""
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = TODAY.strftime
    return environment.from_string(source)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # noqa: FBT001, FBT002 - as transformers has it
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
