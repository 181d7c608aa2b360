"""The training data: found, read, checked in full, turned into tokens. Needs neither torch nor the model's weights.

Every bad record is named by file, line and key. Nothing is repaired or left out in silence.
"""

import errno
import functools
import itertools
import logging
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from finetune_api.data import DataFormat, Task
from finetune_api.trainer_config import DataConfig, DataSource
from finetune_trainer import distributed
from finetune_trainer.data import encoding, parallel, readers, statistics
from finetune_trainer.data.arrays import Growing
from finetune_trainer.data.dataset import Dataset, Pair, Places, Sequence
from finetune_trainer.data.tokenizer import TextEncoder
from finetune_trainer.errors import ConfigInvalid, DataInvalid, StorageFailed
from finetune_trainer.reporting import journal
from finetune_trainer.sources import formats, places
from finetune_trainer.sources.formats import Files

__all__ = ["Dataset", "Pair", "Sequence", "find_files", "load"]

logger = logging.getLogger(__name__)

TOLD_PROBLEMS = 3
CHUNK = 1000
"""Records that are tokenized together."""
CHUNK_BYTES = 1 << 20
"""A chunk is full with fewer records if they are long."""
PARALLEL_FROM = 1 << 21
"""Bytes of data from which other processes help: below, they take longer to start than they save (docs/training.md)."""


def load(
    config: DataConfig,
    task: Task,
    encoder: TextEncoder,
    *,
    longest: int,
    source: DataSource | None = None,
    scratch: Path | None = None,
) -> tuple[Dataset, str]:
    """All data of a source (that to train on, unless another is named), and what to tell of it.

    With `dataset.streaming` the tokens go to a file in `scratch` instead of memory.
    Raises DataInvalid, NotFound, NoPermission, ConfigInvalid or StorageFailed.
    """
    _refuse_unfit(task, encoder)
    source = source or config.train
    files = find_files(config, task, source)
    raw = itertools.islice(readers.read(files, task=task, columns=config.columns), source.max_samples)
    work = functools.partial(
        encoding.encode,
        settings=encoding.Settings(task, config.columns, config.template, encoder, longest),
    )
    folder = scratch if config.streaming else None
    try:
        builder = _Builder(folder, paired=task == Task.PREFERENCE)
        for made in parallel.mapped(work, _chunks(raw), workers=_workers(files, source)):
            builder.add(made)
        dataset = builder.finish()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        raise StorageFailed(f"dataset.streaming keeps the tokens in {folder}, which has no room: {error}") from error
    _refuse_bad(builder.tally, files, source)
    figures = statistics.of(dataset, builder.tally)
    if figures.records == 0:
        raise DataInvalid(statistics.nothing_left(builder.tally, longest))
    journal.event(logger, "DATA_STATISTICS", source.uri, logging.INFO, **figures.fields())
    return dataset, statistics.told(figures, builder.tally, files.names, longest=longest)


def find_files(config: DataConfig, task: Task, source: DataSource | None = None) -> Files:
    """The files to read, fetched if they lie elsewhere. Raises NotFound, NoPermission or ConfigInvalid."""
    source = source or config.train
    if source.path is None:
        files = places.fetch(source.uri, config.format, evaluation=source is config.eval)
    else:
        files = formats.find(Path(source.path), config.format, uri=source.uri)
    if files.format == DataFormat.TEXT and task != Task.CONTINUED_PRETRAIN:
        raise ConfigInvalid(
            f"dataset {source.uri} is plain text, which task {task} can't learn from: use task ContinuedPretrain, or"
            " records in JSONL, CSV or Parquet"
        )
    return files


def _refuse_unfit(task: Task, encoder: TextEncoder) -> None:
    if task == Task.CHAT_COMPLETION and encoder.chat_template is None:
        raise ConfigInvalid(
            "task ChatCompletion needs a model with a chat template, and this tokenizer has none:"
            " use an instruct model, or task InstructionFineTune"
        )


def _workers(files: Files, source: DataSource) -> int:
    """Processes that help; none for little data."""
    few = source.max_samples is not None and source.max_samples <= 10 * CHUNK
    size = files.size * (5 if any(path.suffix in formats.COMPRESSED for path in files.paths) else 1)
    return 1 if few or size < PARALLEL_FROM else min(distributed.usable_cpus(), 32)


def _chunks(raw: Iterable[readers.Raw]) -> Iterator[list[readers.Raw]]:
    chunk: list[readers.Raw] = []
    size = 0
    for record in raw:
        chunk.append(record)
        size += _size(record.value)
        if len(chunk) == CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _size(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(len(part) for part in value.values() if isinstance(part, str | list))
    return len(getattr(value, "text", ""))


class _Builder:
    """Gathers tokens."""

    def __init__(self, folder: Path | None, *, paired: bool) -> None:
        self._paired = paired
        self._tokens = Growing(np.int32, folder)
        self._learned = Growing(np.bool_, folder)
        self._lengths, self._keys = array("q"), array("Q")
        self._files: dict[tuple[str, str], int] = {}
        self._file_of, self._lines = array("i"), array("q")
        self.tally = encoding.Tally()

    def add(self, made: encoding.Encoded) -> None:
        """Keep some records. Raises OSError."""
        known = self.tally.problem_count
        self.tally.add(made.tally)
        for place, problem in self.tally.problems[known:]:
            journal.event(logger, "BAD_RECORD", f"{place}: {problem}", logging.ERROR)
        if self.tally.problem_count:  # nothing will be learned: go on only to name what else is wrong
            return
        self._tokens.add(made.tokens)
        self._learned.add(made.learned)
        self._lengths.extend(made.lengths)
        self._keys.extend(made.keys)
        for place in made.places:
            self._file_of.append(self._files.setdefault((place.file, place.unit), len(self._files)))
            self._lines.append(place.line)

    def finish(self) -> Dataset:
        """Everything that was kept."""
        return Dataset(
            self._tokens.finish(),
            self._learned.finish(),
            np.cumsum(np.frombuffer(self._lengths, dtype=np.int64)),
            Places(list(self._files), self._file_of, self._lines),
            self._paired,
            np.frombuffer(self._keys, dtype=np.uint64),
        )


def _refuse_bad(tally: encoding.Tally, files: Files, source: DataSource) -> None:
    count = tally.problem_count
    if count:
        told = "; ".join(f"{place}: {problem}" for place, problem in tally.problems[:TOLD_PROBLEMS])
        more = f"; and {count - TOLD_PROBLEMS} more of {tally.records:,} records" if count > TOLD_PROBLEMS else ""
        raise DataInvalid(f"{told}{more}")
    if tally.records == 0:
        names = statistics.names(files.names)
        raise DataInvalid(f"dataset {source.uri} is empty ({names}): there is no record in it")
