"""Files as records in the order in which they stand, one at a time: nothing is held but the record at hand.

A record that can't be read is handed on as a Problem, and a file that breaks off as one more: reading goes on.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple, cast

from finetune_api.data import Columns, DataFormat, Task
from finetune_trainer.data import jsonarray, records
from finetune_trainer.data.messages import Problem
from finetune_trainer.data.records import Document, Place, Row
from finetune_trainer.errors import NoPermission, NotFound
from finetune_trainer.sources.formats import Files, ending

LONGEST = 1 << 26
"""Bytes of a record; one that is longer is no record but a mistake."""
PART = 1 << 20
"""Characters of a text that are read at once."""

_BOM = b"\xef\xbb\xbf"
_BROKEN = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError)
"""What libraries raise for a file that isn't what its name says."""


class Raw(NamedTuple):
    """A record as it stands in its file."""

    place: Place
    value: bytes | Row | Document | Problem
    """A line of JSON that isn't parsed yet, a row, a text, or what is wrong."""


def read(files: Files, *, task: Task, columns: Columns) -> Iterator[Raw]:
    """All records of a dataset. Raises NotFound, NoPermission or ConfigInvalid."""
    if files.format in (DataFormat.PARQUET, DataFormat.DELTA):
        from finetune_trainer.data import tables

        yield from (Raw(*found) for found in tables.read(files, task=task, columns=columns))
        return
    if files.format == DataFormat.MDS:
        from finetune_trainer.data import shards

        yield from (Raw(*found) for found in shards.read(files, task=task, columns=columns))
        return
    for path in files.paths:
        yield from _file(path, files, task, columns)


def _file(path: Path, files: Files, task: Task, columns: Columns) -> Iterator[Raw]:
    name, line = files.name(path), 1
    try:
        with _opened(path) as file:
            match files.format:
                case DataFormat.CSV:
                    found = _csv(file, name, task, columns, delimiter="\t" if ending(name) == ".tsv" else ",")
                case DataFormat.TEXT:
                    found = _text(file, name)
                case DataFormat.JSON:
                    found = _json(file, name)
                case _:
                    found = _lines(file, name)
            for raw in found:
                line = raw.place.line
                yield raw
    except PermissionError as error:
        raise NoPermission(f"{path} can't be read: {error.strerror}; let the pod's user read it") from error
    except _BROKEN as error:
        yield Raw(Place(name, line), Problem(f"the file can't be read after this: {_said(error)}"))
    except OSError as error:
        if error.errno is not None:
            raise NotFound(f"{path} can't be read: {error.strerror}") from error
        yield Raw(Place(name, line), Problem(f"the file can't be read after this: {_said(error)}"))


def _opened(path: Path) -> IO[bytes]:
    match path.suffix.lower():
        case ".gz":
            return cast(IO[bytes], gzip.open(path))
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            import pyarrow as pa

            return io.BufferedReader(pa.CompressedInputStream(str(path), "zstd"))
        case _:
            return path.open("rb")


def _said(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte 0x{error.object[error.start]:02x}"
    return str(error) or type(error).__name__


def _lines(file: IO[bytes], name: str) -> Iterator[Raw]:
    """JSON lines that aren't blank."""
    number, whole = 0, True
    while raw := file.readline(LONGEST):
        beginning, whole = whole, raw.endswith(b"\n")
        number += beginning
        if not beginning:
            continue
        if len(raw) == LONGEST and not whole:
            yield Raw(Place(name, number), Problem(f"longer than {LONGEST >> 20} MiB; each line must be one record"))
        elif line := (raw.removeprefix(_BOM) if number == 1 else raw).strip():
            yield Raw(Place(name, number), line)


def _json(file: IO[bytes], name: str) -> Iterator[Raw]:
    """An array of objects; or, as many files with this ending hold them, JSON lines."""
    buffered = io.BufferedReader(cast(io.RawIOBase, file), PART)
    beginning = buffered.peek(PART).removeprefix(_BOM).lstrip()
    if beginning[:1] == b"{" and _is_object(beginning.partition(b"\n")[0]):
        yield from _lines(buffered, name)
        return
    text = io.TextIOWrapper(buffered, encoding="utf-8-sig")
    for line, value in jsonarray.items(text, longest=LONGEST):
        yield Raw(Place(name, line), value)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _csv(file: IO[bytes], name: str, task: Task, columns: Columns, *, delimiter: str) -> Iterator[Raw]:
    """Rows under a line of names."""
    csv.field_size_limit(LONGEST)
    reader = csv.reader(
        io.TextIOWrapper(file, encoding="utf-8-sig", newline=""),
        delimiter=delimiter,
        strict=True,
        skipinitialspace=True,
    )
    header: list[str] | None = None
    while True:
        place = Place(name, reader.line_num + 1)
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Raw(place, Problem(f"not CSV: {error}"))
            continue
        if not cells:
            continue
        if header is None:
            header = cells
            try:
                _check_header(header, task, columns)
            except Problem as problem:
                yield Raw(place, problem)
                return
        elif len(cells) != len(header):
            yield Raw(place, Problem(f"{len(cells)} cells where the first line has {len(header)} names"))
        else:
            yield Raw(place, records.cells(dict(zip(header, cells, strict=True)), task=task, columns=columns))


def _check_header(header: list[str], task: Task, columns: Columns) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise Problem(f"the name '{twice[0][:60]}' stands twice in the first line")
    other = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), None)
    if other is not None:
        raise Problem(f"the first line is separated by {other!r}; expected commas (tabs in a file that ends in .tsv)")
    records.check_names(header, task=task, columns=columns)


def _text(file: IO[bytes], name: str) -> Iterator[Raw]:
    """The file as one text; a long one in parts that end with a line."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    line, part = 1, text.read(PART) + text.readline(PART)
    begins = True
    while part:
        following = text.read(PART) + text.readline(PART)
        if part.strip():
            yield Raw(Place(name, line), Document(part, begins=begins, ends=not following))
            begins = False
        line, part = line + part.count("\n"), following
