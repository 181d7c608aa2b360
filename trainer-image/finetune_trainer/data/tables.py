"""Parquet files and Delta tables as rows: only the columns that are needed, a batch at a time."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from finetune_api.data import Columns, DataFormat, Task
from finetune_trainer.data import records
from finetune_trainer.data.messages import Problem
from finetune_trainer.data.records import Place, Row
from finetune_trainer.errors import ConfigInvalid, DataInvalid, NotFound
from finetune_trainer.sources.formats import Files

BATCH = 1000
"""Rows that are held at once."""

Found = tuple[Place, Row | Problem]


def read(files: Files, *, task: Task, columns: Columns) -> Iterator[Found]:
    """All rows of all files. Raises ConfigInvalid or DataInvalid."""
    if files.format == DataFormat.DELTA:
        yield from _rows(_delta(files.root), files.root.name, task, columns)
        return
    for path in files.paths:
        name = files.name(path)
        try:
            with parquet.ParquetFile(path) as file:
                batches = _ParquetBatches(file)
                yield from _rows(batches, name, task, columns)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            yield Place(name, 1, "row"), Problem(f"the file can't be read as Parquet: {_first_line(error)}")
        except OSError as error:
            if error.errno is not None:
                raise NotFound(f"{path} can't be read: {error.strerror}") from error
            yield Place(name, 1, "row"), Problem(f"the file can't be read as Parquet: {_first_line(error)}")


class _ParquetBatches:
    """A Parquet file."""

    def __init__(self, file: parquet.ParquetFile) -> None:
        self._file = file

    @property
    def names(self) -> list[str]:
        return list(self._file.schema_arrow.names)

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        yield from self._file.iter_batches(batch_size=BATCH, columns=names, use_threads=False)


class _DeltaBatches:
    """The newest version of a Delta table, file by file by name, none from outside of its folder."""

    def __init__(self, table: Any, root: Path) -> None:
        self._data = table.to_pyarrow_dataset()
        for fragment in self._data.get_fragments():
            file = Path(os.path.abspath(root / fragment.path))  # noqa: PTH100 - resolve would follow links
            if not (file.is_relative_to(Path.cwd() / root) and file.exists()):
                raise NotFound(f"table {root.name}: its log names {fragment.path}, which isn't in its folder")

    @property
    def names(self) -> list[str]:
        return list(self._data.schema.names)

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        fragments = sorted(self._data.get_fragments(), key=lambda fragment: str(fragment.path))
        for fragment in fragments:
            yield from fragment.to_batches(
                schema=self._data.schema, columns=names, batch_size=BATCH, batch_readahead=1, use_threads=False
            )


def _rows(source: _ParquetBatches | _DeltaBatches, name: str, task: Task, columns: Columns) -> Iterator[Found]:
    try:
        ignored = records.check_names(source.names, task=task, columns=columns)
    except Problem as problem:
        yield Place(name, 1, "row"), problem
        return
    needed = [each for each in source.names if each not in ignored]
    more = dict.fromkeys(ignored)  # told as not used; not read
    number = 0
    for batch in source.batches(needed):
        for row in batch.to_pylist():
            number += 1
            yield Place(name, number, "row"), records.cells(row, task=task, columns=columns) | more


def _delta(root: Path) -> _DeltaBatches:
    try:
        import deltalake
        from deltalake import exceptions
    except ImportError as error:
        raise ConfigInvalid(
            "dataset.format Delta needs the package deltalake, which this image lacks: install"
            " finetune-operator[trainer,delta], or export the table as Parquet"
        ) from error
    try:
        return _DeltaBatches(deltalake.DeltaTable(root), root)
    except (exceptions.DeltaError, pa.ArrowException, OSError) as error:
        raise DataInvalid(f"{root.name} can't be read as a Delta table: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
