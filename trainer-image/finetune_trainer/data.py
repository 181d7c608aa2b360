"""The training data: read, checked in full, turned into tokens. Needs neither torch nor the model's weights.

Every bad line is named by file, number and key. Nothing is repaired or left out in silence.
"""

import hashlib
import logging
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune_api.data import DataFormat, Task
from finetune_api.trainer_config import DataConfig
from finetune_trainer import chat, journal, records
from finetune_trainer.errors import ConfigInvalid, DataInvalid, NoPermission, NotFound
from finetune_trainer.source import neighbours
from finetune_trainer.tokenizer import TextEncoder

logger = logging.getLogger(__name__)

LOGGED_PROBLEMS = 20
TOLD_PROBLEMS = 3
CHUNK = 1000
"""Records that are tokenized together, on all threads."""

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Place:
    """Where a record stands."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"


@dataclass(frozen=True, eq=False)
class Dataset:
    """All records as tokens, one after the other."""

    tokens: NDArray[np.int32]
    learned: NDArray[np.bool_]
    """Which tokens are targets of the loss."""
    ends: NDArray[np.int64]
    places: tuple[Place, ...]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each record."""
        return [int(n) for n in np.diff(self.ends, prepend=0)]

    def record(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Tokens of a record, and which of them are learned."""
        start = int(self.ends[index - 1]) if index else 0
        stop = int(self.ends[index])
        return self.tokens[start:stop], self.learned[start:stop]

    def digest(self) -> str:
        """Equal for equal data in equal order."""
        parts = (self.tokens.tobytes(), self.learned.tobytes(), self.ends.tobytes())
        return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


@dataclass
class Account:
    """What was found on the way."""

    files: list[str] = field(default_factory=list)
    lines: int = 0
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0
    cut: int = 0
    duplicates: int = 0
    reduced: int = 0
    unlearnable: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    def add_problem(self, place: Place, problem: object) -> None:
        """Note a bad line; only the first ones are kept and logged."""
        self.problem_count += 1
        if self.problem_count <= LOGGED_PROBLEMS:
            self.problems.append(f"{place}: {problem}")
            journal.event(logger, "BAD_RECORD", self.problems[-1], logging.ERROR)


def load(config: DataConfig, task: Task, encoder: TextEncoder, *, longest: int) -> tuple[Dataset, str]:
    """All data, and what to tell of it. Raises DataInvalid, NotFound, ConfigInvalid."""
    if task == Task.CHAT_COMPLETION and encoder.chat_template is None:
        raise ConfigInvalid(
            "task ChatCompletion needs a model with a chat template, and this tokenizer has none:"
            " use an instruct model, or task InstructionFineTune"
        )
    account = Account()
    builder = _Builder(encoder, longest, account)
    parsed = islice(_parsed(config, task, account), config.train.max_samples)
    written = _written(parsed, config, encoder, account)
    while chunk := list(islice(written, CHUNK)):
        builder.add(chunk)
    _refuse_bad(account, config)
    return builder.finish(), _summary(account, builder, longest)


def find_files(config: DataConfig) -> list[Path]:
    """The files to read, in order. Raises NotFound."""
    path, uri = Path(config.train.path), config.train.uri
    try:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path] if path.exists() else []
    except PermissionError as error:
        raise NoPermission(f"dataset {uri}: {path} can't be read: {error.strerror}") from error
    if not files:
        what = "no *.jsonl in" if path.is_dir() else "there is no"
        raise NotFound(f"dataset {uri} not found: {what} {path}; {neighbours(path)}")
    formats = {".parquet": DataFormat.PARQUET, ".csv": DataFormat.CSV, ".txt": DataFormat.TEXT}
    kind = formats.get(files[0].suffix) if config.format == DataFormat.AUTO else config.format
    if kind not in (None, DataFormat.JSONL):
        raise ConfigInvalid(f"dataset {uri} has format {kind}, which isn't supported yet: convert it to JSONL")
    return files


def _lines(files: Sequence[Path], account: Account) -> Iterator[tuple[Place, bytes]]:
    """All lines that aren't blank."""
    for path in files:
        account.files.append(path.name)
        try:
            with path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    line = (raw.removeprefix(_BOM) if number == 1 else raw).strip()
                    if line:
                        account.lines += 1
                        yield Place(path.name, number), line
        except PermissionError as error:
            raise NoPermission(f"{path} can't be read: {error.strerror}; let the pod's user read it") from error
        except OSError as error:
            raise NotFound(f"{path} can't be read: {error.strerror}") from error


def _parsed(config: DataConfig, task: Task, account: Account) -> Iterator[tuple[Place, records.Conversation]]:
    for place, line in _lines(find_files(config), account):
        try:
            conversation = records.parse(line, task=task, columns=config.columns)
        except records.Problem as problem:
            account.add_problem(place, problem)
        else:
            account.ignored.update(conversation.ignored)
            yield place, conversation


def _written(
    parsed: Iterator[tuple[Place, records.Conversation]], config: DataConfig, encoder: TextEncoder, account: Account
) -> Iterator[tuple[Place, chat.Text]]:
    around = config.template
    chosen = around.prefix or around.instruction or around.response
    source = None if chosen else encoder.chat_template
    template = None if source is None else chat.ChatTemplate(source, encoder.special)
    for place, conversation in parsed:
        try:
            text = template.write(conversation) if template else chat.plain(conversation, around)
        except records.Problem as problem:
            account.add_problem(place, problem)
        else:
            account.reduced += text.reduced
            yield place, text


class _Builder:
    """Gathers tokens."""

    def __init__(self, encoder: TextEncoder, longest: int, account: Account) -> None:
        self._encoder = encoder
        self._longest = longest
        self._account = account
        self._seen: set[bytes] = set()
        self.tokens, self.learned, self.ends = array("i"), bytearray(), array("q")
        self.places: list[Place] = []

    def add(self, chunk: list[tuple[Place, chat.Text]]) -> None:
        """Tokenize some records and keep what can be learned from."""
        encodings: dict[int, tuple[list[int], list[Span]]] = {}
        for special in (False, True):
            picked = [n for n, (_, text) in enumerate(chunk) if text.special == special]
            texts = [chunk[n][1].text for n in picked]
            made = self._encoder.tokenizer.encode_batch(texts, add_special_tokens=special) if texts else []
            encodings |= {n: (e.ids, e.offsets) for n, e in zip(picked, made, strict=True)}
        for n, (place, text) in enumerate(chunk):
            self._keep(place, *targets(*encodings[n], text.learned, self._encoder))

    def finish(self) -> Dataset:
        """Everything that was kept."""
        return Dataset(
            np.frombuffer(self.tokens, dtype=np.int32),
            np.frombuffer(bytes(self.learned), dtype=np.bool_),
            np.frombuffer(self.ends, dtype=np.int64),
            tuple(self.places),
        )

    def _keep(self, place: Place, ids: list[int], learned: list[bool]) -> None:
        if len(ids) > self._longest:
            self._account.cut += 1
            ids, learned = ids[: self._longest], learned[: self._longest]
        if not any(learned[1:]):  # the first token has nothing to be predicted from
            self._account.unlearnable.append(str(place))
            return
        tokens = array("i", ids)
        key = hashlib.blake2b(tokens.tobytes(), digest_size=12).digest()
        self._account.duplicates += key in self._seen
        self._seen.add(key)
        self.tokens.extend(tokens)
        self.learned.extend(learned)
        self.ends.append(len(self.tokens))
        self.places.append(place)


Span = tuple[int, int]


def targets(
    ids: list[int], offsets: list[Span], spans: Sequence[Span], encoder: TextEncoder
) -> tuple[list[int], list[bool]]:
    """The tokens of a record and which of them are learned: the answers, each up to and with the token that ends it.

    What a template writes after that token is never generated, so it isn't learned. An answer without such a token
    gets one, or the model would not learn to stop.
    """
    learned = [False] * len(ids)
    for number, (start, stop) in enumerate(spans):
        inside = [n for n, (first, last) in enumerate(offsets) if start <= first < stop and last > first]
        ends = [n for n in inside if ids[n] in encoder.stops]
        if ends:
            inside = [n for n in inside if n <= ends[-1]]
        elif inside and inside[-1] + 1 < len(ids) and ids[inside[-1] + 1] in encoder.stops:
            inside.append(inside[-1] + 1)
        elif number == len(spans) - 1 and encoder.end is not None:
            ids, learned = [*ids, encoder.end], [*learned, False]
            inside.append(len(ids) - 1)
        for n in inside:
            learned[n] = True
    return ids, learned


def _refuse_bad(account: Account, config: DataConfig) -> None:
    count = account.problem_count
    if count:
        told = "; ".join(account.problems[:TOLD_PROBLEMS])
        more = f"; and {count - TOLD_PROBLEMS} more of {account.lines:,} lines" if count > TOLD_PROBLEMS else ""
        raise DataInvalid(f"{told}{more}")
    if account.lines == 0:
        names = ", ".join(account.files[:5])
        raise DataInvalid(f"dataset {config.train.uri} is empty ({names}): put one JSON object in each line")


def _summary(account: Account, builder: _Builder, longest: int) -> str:
    dropped = account.unlearnable
    if not builder.places:
        raise DataInvalid(
            f"none of {account.lines:,} records has an answer within the first {longest} tokens: raise"
            " training.maxSequenceLength or shorten the prompts"
        )
    parts = [f"{_count(len(builder.places), 'record')}, {len(builder.tokens):,} tokens in {_names(account.files)}."]
    if account.cut:
        parts.append(f"{account.cut:,} cut at {longest:,} tokens.")
    if account.duplicates:
        parts.append(f"{_count(account.duplicates, 'duplicate')}.")
    if dropped:
        parts.append(f"{len(dropped):,} left out, as no answer is left after the cut: {_names(dropped)}.")
    if account.reduced:
        parts.append(f"{account.reduced:,} learn the last answer only: the chat template rewrites earlier turns.")
    if account.ignored:
        parts.append(f"Keys not used: {_names(sorted(account.ignored))}.")
    return " ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _names(names: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name[:80] for name in names[:limit]) + more
