"""Shards of the MosaicML streaming format (MDS), read without its library, which needs older versions of what the
trainer is made of. Never decodes a pickle: a column stored as one is refused by its name.

A shard: the number of records, the offset of each, a JSON header; then the records: the sizes of those columns that
have no fixed one, and all columns, in the order of index.json.
"""

import bz2
import gzip
import hashlib
import io
import itertools
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_api.data import Columns, Task
from finetune_trainer.data import records
from finetune_trainer.data.messages import Problem
from finetune_trainer.data.records import Place, Row
from finetune_trainer.errors import ConfigInvalid, DataInvalid
from finetune_trainer.sources.formats import Files

Found = tuple[Place, Row | Problem]

_DECODERS: Mapping[str, Callable[[bytes], Any]] = {
    "str": lambda value: value.decode("utf-8"),
    "json": json.loads,
    "int": lambda value: struct.unpack("<q", value)[0],
    "bytes": bytes,
}
_UNSAFE = ("pkl",)


def read(files: Files, *, task: Task, columns: Columns) -> Iterator[Found]:
    """All records of all shards. Raises ConfigInvalid or DataInvalid."""
    for shard in _index(files.root):
        yield from _records(files.root, shard, task, columns)


def _index(root: Path) -> Sequence[Mapping[str, Any]]:
    try:
        shards = json.loads((root / "index.json").read_text(encoding="utf-8"))["shards"]
        for shard in shards:
            if shard["format"] != "mds" or shard["version"] != 2:
                raise ConfigInvalid(
                    f"index.json: shards of format {shard['format']} version {shard['version']} can't be read; expected"
                    " mds version 2"
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataInvalid(f"index.json is no index of MDS shards: {type(error).__name__} {error}") from error
    return list(shards)


def _records(root: Path, shard: Mapping[str, Any], task: Task, columns: Columns) -> Iterator[Found]:
    name = str(shard["raw_data"]["basename"])
    try:
        ignored = records.check_names(shard["column_names"], task=task, columns=columns)
        decoders = _decoders(shard, ignored)
        data = _content(root, shard)
        count = struct.unpack_from("<I", data)[0]
        offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
    except Problem as problem:
        yield Place(name, 1, "row"), problem
        return
    except struct.error:
        yield Place(name, 1, "row"), Problem("the shard breaks off in its header")
        return
    for number, (start, stop) in enumerate(itertools.pairwise(offsets), start=1):
        place = Place(name, number, "row")
        try:
            row = _row(data[start:stop], shard, decoders)
        except (struct.error, ValueError, RecursionError) as error:
            yield place, Problem(f"the record can't be decoded: {error}")
        else:
            yield place, records.cells(row, task=task, columns=columns)


def _decoders(shard: Mapping[str, Any], ignored: Sequence[str]) -> Mapping[str, Callable[[bytes], Any]]:
    """How each column is decoded; those that nobody asked for aren't. Raises Problem."""
    found: dict[str, Callable[[bytes], Any]] = {}
    for name, encoding in zip(shard["column_names"], shard["column_encodings"], strict=True):
        if encoding in _UNSAFE:
            raise Problem(f"column '{name}' is a pickle, which can run code and is never read: write it as str or json")
        if name in ignored:
            found[name] = _nothing
        elif encoding in _DECODERS:
            found[name] = _DECODERS[encoding]
        else:
            raise Problem(f"column '{name}' is stored as {encoding}; expected {', '.join(_DECODERS)}")
    return found


def _nothing(_: bytes) -> None:
    return None


def _row(data: bytes, shard: Mapping[str, Any], decoders: Mapping[str, Callable[[bytes], Any]]) -> dict[str, Any]:
    sizes, at = [], 0
    for size in shard["column_sizes"]:
        if size is None:
            size = struct.unpack_from("<I", data, at)[0]  # noqa: PLW2901 - the same thing, now known
            at += 4
        sizes.append(size)
    if at + sum(sizes) != len(data):
        raise ValueError(f"{len(data)} bytes where its columns have {at + sum(sizes)}")
    row = {}
    for (name, decode), size in zip(decoders.items(), sizes, strict=True):
        row[name] = decode(data[at : at + size])
        at += size
    return row


def _content(root: Path, shard: Mapping[str, Any]) -> bytes:
    """A shard's bytes, as they were written. Raises Problem."""
    raw, packed = shard["raw_data"], shard["zip_data"]
    stored = packed if packed is not None and not _path(root, raw).is_file() else raw
    try:
        data = _path(root, stored).read_bytes()
    except OSError as error:
        raise Problem(f"the shard can't be read: {error.strerror}") from error
    expected = stored["hashes"].get("sha256")
    if len(data) != stored["bytes"] or (expected is not None and hashlib.sha256(data).hexdigest() != expected):
        raise Problem("the shard isn't the one that index.json describes (size or sha256 differ)")
    return data if stored is raw else _unpacked(data, str(shard["compression"]), int(raw["bytes"]))


def _path(root: Path, part: Mapping[str, Any]) -> Path:
    name = str(part["basename"])
    if Path(name).name != name:
        raise Problem(f"index.json names a shard outside of its folder: {name[:100]!r}")
    return root / name


def _unpacked(data: bytes, compression: str, size: int) -> bytes:
    kind = compression.partition(":")[0]
    try:
        match kind:
            case "gz":
                found = gzip.GzipFile(fileobj=io.BytesIO(data)).read(size + 1)
            case "bz2":
                found = bz2.BZ2File(io.BytesIO(data)).read(size + 1)
            case "zstd" | "br" | "snappy":
                import pyarrow as pa

                codec = {"zstd": "zstd", "br": "brotli", "snappy": "snappy"}[kind]
                found = pa.decompress(data, decompressed_size=size, codec=codec, asbytes=True)
            case _:
                raise Problem(f"the shard is compressed by {kind}; expected gz, bz2, zstd, br or snappy")
    except (OSError, ValueError, EOFError) as error:
        raise Problem(f"the shard can't be decompressed: {error}") from error
    if len(found) != size:
        raise Problem(f"the shard has {'more' if len(found) > size else len(found)} bytes where index.json says {size}")
    return found
