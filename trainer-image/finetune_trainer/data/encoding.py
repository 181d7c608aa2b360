"""Records as tokens: parsed, written as text, tokenized, and marked where they are learned. What is wrong is counted.

A pure function of some records and the settings, so that other processes can do it.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_api.data import Columns, Task, Template
from finetune_trainer.data import bounded, chat, records
from finetune_trainer.data.messages import Problem
from finetune_trainer.data.readers import Raw
from finetune_trainer.data.records import Conversation, Document, Place, Preference, Record
from finetune_trainer.data.tokenizer import TextEncoder
from finetune_trainer.errors import DataInvalid

KEPT = 20
"""Problems, and records left out, that are named."""

REMEDY = "repair it in the model's folder, take another model, or write the text with dataset.template"
"""For a chat template that takes too much."""

PANIC = "PanicException"
"""What the tokenizer's library raises where it gives up, as on a regular expression that takes for ever. Not public."""

Span = tuple[int, int]
Tokens = tuple[list[int], list[bool]]
"""A sequence, and which of its tokens are learned."""


@dataclass(frozen=True)
class Settings:
    """All that decides which tokens come out."""

    task: Task
    columns: Columns
    template: Template
    encoder: TextEncoder
    longest: int

    @property
    def chat_template(self) -> chat.ChatTemplate | None:
        """The model's own, unless the user has one."""
        own = self.template.prefix or self.template.instruction or self.template.response
        source = None if own else self.encoder.chat_template
        return None if source is None else chat.ChatTemplate(source, self.encoder.special)


@dataclass
class Tally:
    """What was found on the way."""

    records: int = 0
    problems: list[tuple[Place, str]] = field(default_factory=list)
    problem_count: int = 0
    cut: int = 0
    split: int = 0
    """Raw texts that became several windows."""
    reduced: int = 0
    unlearnable: list[Place] = field(default_factory=list)
    unlearnable_count: int = 0
    ignored: Counter[str] = field(default_factory=Counter)

    def add_problem(self, place: Place, problem: Exception) -> None:
        """Note a bad record."""
        self.problem_count += 1
        if len(self.problems) < KEPT:
            self.problems.append((place, str(problem)))

    def add_unlearnable(self, place: Place) -> None:
        """Note a record of which nothing can be learned."""
        self.unlearnable_count += 1
        if len(self.unlearnable) < KEPT:
            self.unlearnable.append(place)

    def add(self, other: "Tally") -> None:
        """Add what was found elsewhere, later in the data."""
        self.records += other.records
        self.problem_count += other.problem_count
        self.cut += other.cut
        self.split += other.split
        self.reduced += other.reduced
        self.unlearnable_count += other.unlearnable_count
        self.problems = (self.problems + other.problems)[:KEPT]
        self.unlearnable = (self.unlearnable + other.unlearnable)[:KEPT]
        self.ignored.update(other.ignored)


@dataclass
class Encoded:
    """Some records as tokens, one after the other."""

    tokens: "array[int]" = field(default_factory=lambda: array("i"))
    learned: bytearray = field(default_factory=bytearray)
    lengths: "array[int]" = field(default_factory=lambda: array("q"))
    """Of each sequence."""
    places: list[Place] = field(default_factory=list)
    """Of each example: two sequences for a preference, else one."""
    keys: "array[int]" = field(default_factory=lambda: array("Q"))
    """Equal for equal records."""
    tally: Tally = field(default_factory=Tally)

    def put(self, ids: Sequence[int], learned: Sequence[bool]) -> None:
        """Add a sequence."""
        self.tokens.extend(ids)
        self.learned.extend(learned)
        self.lengths.append(len(ids))


def encode(chunk: Sequence[Raw], settings: Settings) -> Encoded:
    """Tokenize some records and keep what can be learned from. Raises DataInvalid where a template takes too much."""
    made = Encoded()
    template = settings.chat_template
    written: list[tuple[Place, Record, tuple[chat.Text, ...]]] = []
    for place, value in chunk:
        made.tally.records += 1
        try:
            record, ignored = _parsed(value, settings)
            texts = _written(record, template, settings.template)
        except Problem as problem:
            made.tally.add_problem(place, problem)
        except bounded.Exceeded as why:  # it would be no better with the next record
            raise DataInvalid(f"{place}: the model's chat template {why}; {REMEDY}") from why
        else:
            made.tally.ignored.update(ignored)
            made.tally.reduced += any(text.reduced for text in texts)
            written.append((place, record, texts))
    try:
        tokenized = iter(_tokenized([text for _, _, texts in written for text in texts], settings.encoder))
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        between = f"{written[0][0]} or one of the {len(written):,} records from there on"
        raise DataInvalid(f"{between}: the model's tokenizer can't take it: {str(error)[:200]}") from error
    for place, record, texts in written:
        sequences = [next(tokenized) for _ in texts]
        if isinstance(record, Document):
            _keep_text(made, place, _bounded(sequences[0][0], record, settings.encoder), settings.longest)
        else:
            _keep(made, place, sequences, settings.longest)
    return made


def _parsed(value: Any, settings: Settings) -> tuple[Record, tuple[str, ...]]:
    if isinstance(value, Problem):
        raise value
    if isinstance(value, Document):
        return value, ()
    row = records.decode(value) if isinstance(value, bytes) else value
    return records.parse(row, task=settings.task, columns=settings.columns)


def _written(record: Record, template: chat.ChatTemplate | None, around: Template) -> tuple[chat.Text, ...]:
    match record:
        case Document():
            return (chat.Text(record.text, (), special=record.begins),)
        case Conversation():
            return (template.write(record) if template else chat.plain(record, around),)
        case Preference():
            both = record.chosen, record.rejected
            return tuple(template.write(one) if template else chat.plain(one, around) for one in both)


def _tokenized(texts: Sequence[chat.Text], encoder: TextEncoder) -> Iterable[Tokens]:
    """Each text's tokens; those that add the tokenizer's own first and last tokens apart from the others."""
    found: dict[int, Tokens] = {}
    for special in (False, True):
        for marked in (False, True):
            picked = [n for n, text in enumerate(texts) if (text.special, bool(text.learned)) == (special, marked)]
            if not picked:
                continue
            batch = [texts[n].text for n in picked]
            # where something is marked, the place of each token is needed as well
            encode_batch = encoder.tokenizer.encode_batch if marked else encoder.tokenizer.encode_batch_fast
            for n, made in zip(picked, encode_batch(batch, add_special_tokens=special), strict=True):
                found[n] = targets(made.ids, made.offsets, texts[n].learned, encoder) if marked else (made.ids, [])
    return (found[n] for n in range(len(texts)))


def targets(ids: list[int], offsets: list[Span], spans: Sequence[Span], encoder: TextEncoder) -> Tokens:
    """The tokens of a record and which of them are learned: the answers, each up to and with the token that ends it.

    What a template writes after that token is never generated, so it isn't learned. An answer without such a token
    gets one, or the model would not learn to stop.
    """
    learned = [False] * len(ids)
    for number, inside in enumerate(_inside(offsets, spans)):
        ends = [n for n in inside if ids[n] in encoder.stops]
        if ends:
            inside = [n for n in inside if n <= ends[-1]]  # noqa: PLW2901 - the same thing, shorter
        elif inside and inside[-1] + 1 < len(ids) and ids[inside[-1] + 1] in encoder.stops:
            inside.append(inside[-1] + 1)
        elif number == len(spans) - 1 and encoder.end is not None:
            ids, learned = [*ids, encoder.end], [*learned, False]
            inside.append(len(ids) - 1)
        for n in inside:
            learned[n] = True
    return ids, learned


def _inside(offsets: list[Span], spans: Sequence[Span]) -> list[list[int]]:
    """The tokens that begin in each span; both are in order, but for the tokens of no text."""
    inside: list[list[int]] = [[] for _ in spans]
    current = 0
    for n, (first, last) in enumerate(offsets):
        if last <= first:
            continue
        while current < len(spans) and first >= spans[current][1]:
            current += 1
        if current == len(spans):
            break
        if first >= spans[current][0]:
            inside[current].append(n)
    return inside


def _bounded(ids: list[int], document: Document, encoder: TextEncoder) -> list[int]:
    """A raw text's tokens with one that ends it, if it ends here."""
    if not document.ends:
        return ids[:-1] if ids and ids[-1] in encoder.stops else ids
    if encoder.end is None or (ids and ids[-1] in encoder.stops):
        return ids
    return [*ids, encoder.end]


def _keep_text(made: Encoded, place: Place, ids: list[int], longest: int) -> None:
    """A raw text in windows. Each begins with the last token of the one before: so every token is learned once."""
    if len(ids) < 2:
        made.tally.add_unlearnable(place)
        return
    made.tally.split += len(ids) > longest
    made.keys.append(_key([ids]))
    for start in range(0, len(ids) - 1, longest - 1):
        window = ids[start : start + longest]
        made.put(window, [True] * len(window))
        made.places.append(place)


def _keep(made: Encoded, place: Place, sequences: Sequence[Tokens], longest: int) -> None:
    made.tally.cut += any(len(ids) > longest for ids, _ in sequences)
    short = [(ids[:longest], learned[:longest]) for ids, learned in sequences]
    blind = any(not any(learned[1:]) for _, learned in short)  # the first token has nothing to be predicted from
    if blind or (len(short) == 2 and short[0] == short[1]):
        made.tally.add_unlearnable(place)
        return
    made.keys.append(_key([ids for ids, _ in short]))
    for ids, learned in short:
        made.put(ids, learned)
    made.places.append(place)


def _key(sequences: Iterable[Sequence[int]]) -> int:
    found = hashlib.blake2b(digest_size=8)
    for ids in sequences:
        found.update(array("i", [*ids, -1]).tobytes())
    return int.from_bytes(found.digest(), "little")
