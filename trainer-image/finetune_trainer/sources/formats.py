"""Which files a dataset is made of, and how each is to be read. Looks at names alone, and refuses a pickle by its."""

import os
from dataclasses import dataclass
from pathlib import Path

from finetune_api.data import DataFormat
from finetune_trainer.errors import ConfigInvalid, NoPermission, NotFound
from finetune_trainer.sources.modelfolder import neighbours, refuse_strays

ENDINGS = {
    ".jsonl": DataFormat.JSONL,
    ".ndjson": DataFormat.JSONL,
    ".json": DataFormat.JSON,
    ".csv": DataFormat.CSV,
    ".tsv": DataFormat.CSV,
    ".parquet": DataFormat.PARQUET,
    ".txt": DataFormat.TEXT,
}
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
CODE = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz", ".py")
"""What can run code when it is opened."""

DELTA_LOG = "_delta_log"
SHARD_INDEX = "index.json"


@dataclass(frozen=True)
class Files:
    """The files of a dataset, in the order in which they are read."""

    root: Path
    paths: tuple[Path, ...]
    format: DataFormat

    def name(self, path: Path) -> str:
        """A file's name as it is told."""
        return path.name if path == self.root else path.relative_to(self.root).as_posix()

    @property
    def names(self) -> list[str]:
        """What the files are called where they are told."""
        if self.format in (DataFormat.DELTA, DataFormat.MDS):
            return [self.root.name]
        return [self.name(path) for path in self.paths]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.paths)


def find(path: Path, asked: DataFormat, *, uri: str) -> Files:
    """The files at a path. Raises NotFound, NoPermission or ConfigInvalid."""
    try:
        if not path.exists():
            raise NotFound(f"dataset {uri} not found: there is no {path}; {neighbours(path)}")
        found = _folder(path, asked, uri) if path.is_dir() else Files(path, (path,), _of_file(path, asked, uri))
        refuse_strays(found.paths, path, what=f"dataset {uri}")
        for each in found.paths:
            with each.open("rb"):
                pass
    except PermissionError as error:
        raise NoPermission(
            f"dataset {uri}: {error.filename} can't be read: {error.strerror}; let the pod's user read it"
        ) from error
    return found


def of(root: Path, paths: tuple[Path, ...], asked: DataFormat, *, uri: str) -> Files:
    """These files, which must all be of one format. Raises ConfigInvalid."""
    kinds = {_of_file(path, asked, uri) for path in paths}
    if len(kinds) > 1:
        raise ConfigInvalid(
            f"dataset {uri} holds several formats, {', '.join(sorted(kinds))}: choose with dataset.format"
        )
    return Files(root, paths, kinds.pop())


def is_data(name: str) -> bool:
    """Whether a file may be part of a dataset: nothing else is fetched."""
    return ending(name) in ENDINGS or f"{DELTA_LOG}/" in name or ".mds" in Path(name).suffixes


def ending(name: str) -> str:
    """The ending that tells the format: that of what is inside, for a compressed file."""
    inner = Path(name).stem if Path(name).suffix.lower() in COMPRESSED else name
    return Path(inner).suffix.lower()


def _of_file(path: Path, asked: DataFormat, uri: str) -> DataFormat:
    if path.suffix.lower() in CODE:
        raise ConfigInvalid(
            f"dataset {uri}: {path.name} is of a kind that can run code when it is opened, and is never read: convert"
            " it to JSONL or Parquet"
        )
    if asked in (DataFormat.DELTA, DataFormat.MDS):
        raise ConfigInvalid(f"dataset {uri}: format {asked} is a folder, and {path.name} is a file: name its folder")
    if asked != DataFormat.AUTO:
        return asked
    found = ending(path.name)
    if found and found not in ENDINGS:
        raise ConfigInvalid(
            f"dataset {uri}: the ending of {path.name} tells no format; set dataset.format, or use one of"
            f" {', '.join(ENDINGS)} (also with {', '.join(COMPRESSED)})"
        )
    return ENDINGS.get(found, DataFormat.JSONL)


def _folder(path: Path, asked: DataFormat, uri: str) -> Files:
    if asked == DataFormat.DELTA or (asked == DataFormat.AUTO and (path / DELTA_LOG).is_dir()):
        there = (path / DELTA_LOG).is_dir()
        return Files(path, _below(path) if there else _missing(path, uri, DELTA_LOG), DataFormat.DELTA)
    if asked == DataFormat.MDS or (asked == DataFormat.AUTO and (path / SHARD_INDEX).is_file()):
        there = (path / SHARD_INDEX).is_file()
        return Files(path, _below(path) if there else _missing(path, uri, SHARD_INDEX), DataFormat.MDS)
    by_format: dict[DataFormat, list[Path]] = {}
    for each in _below(path):
        if (kind := ENDINGS.get(ending(each.name))) is not None:
            by_format.setdefault(kind, []).append(each)
    if asked != DataFormat.AUTO:
        return Files(path, tuple(by_format.get(asked, ())) or _missing(path, uri, _patterns(asked)), asked)
    if len(by_format) > 1:  # notes beside the data
        by_format.pop(DataFormat.TEXT, None)
    if len(by_format) > 1:
        named = ", ".join(f"{kind} ({paths[0].name})" for kind, paths in by_format.items())
        raise ConfigInvalid(f"dataset {uri} holds several formats: {named}; choose with dataset.format, or name a file")
    for kind, paths in by_format.items():
        return Files(path, tuple(paths), kind)
    return Files(path, _missing(path, uri, ", ".join(f"*{known}" for known in ENDINGS)), DataFormat.JSONL)


def _missing(path: Path, uri: str, what: str) -> tuple[Path, ...]:
    code = [each.name for each in _below(path) if each.suffix.lower() in CODE]
    never = f" ({code[0]} can run code when it is opened, and is never read)" if code else ""
    raise NotFound(f"dataset {uri} not found: no {what} in {path}{never}; {neighbours(path)}")


def _patterns(format_: DataFormat) -> str:
    return " or ".join(f"*{known}" for known, kind in ENDINGS.items() if kind == format_)


def _below(path: Path) -> tuple[Path, ...]:
    """All files in a folder and those below it, by name; without hidden ones and what tools keep to themselves."""
    found: list[Path] = []
    for folder, folders, names in os.walk(path, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        found += (Path(folder, name) for name in names if not name.startswith((".", "_")))
    return tuple(sorted(found))


def _refuse(error: OSError) -> None:
    raise error
