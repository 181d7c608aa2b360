"""What a model's weight files hold, told from their headers, and whether its config.json asks for more than that.

A config costs its author nothing: one of a million layers would keep the run's pod busy for days, or fill its memory.
It must never read the weights themselves, and needs no torch.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer.errors import NotFound
from finetune_trainer.sources import modelfolder
from finetune_trainer.sources.modelfolder import ModelFolder

HEADER = 100_000_000
"""Bytes of the largest header that safetensors reads."""
COUNTS = re.compile(r"(^|_)(layers?|depths?|blocks?|experts)$")
"""Settings that say how many parts there are: each part has a tensor, or its place in one."""
SIZES = re.compile(r"(^|_)(size|dim|embd|model|heads?|inner)$")
"""Settings that say how long a side of a tensor is."""
MOST, LONGEST = 1_000, 65_536
"""What is no burden yet, whatever the weights hold: some settings are no part of the model that is trained."""
SIDES = ("hidden_size", "vocab_size")
"""Settings that are a tensor's side in any model of language, quantized or not."""


@dataclass(frozen=True)
class Held:
    """What all weight files of a model have together."""

    tensors: int
    longest: int
    """The longest side of any tensor."""
    numbers: int
    size: int
    """Bytes."""


def check(folder: ModelFolder) -> None:
    """Raises NotFound where config.json asks for more than the weights hold."""
    found = held(folder)
    for key, value in _settings(folder.config):
        if COUNTS.search(key):
            limit, what = max(found.tensors, MOST), f"have {found.tensors:,} tensors"
        else:
            longest = found.longest if key in SIDES else max(found.longest, LONGEST)
            limit, what = longest, f"have no side longer than {found.longest:,}"
        if value > limit:
            raise NotFound(
                f"model {folder.source.uri}: config.json says {key} {value:,}, but its weights {what}: config.json and"
                " weights don't belong together; download the model again"
            )


def held(folder: ModelFolder) -> Held:
    """What the headers of a model's weights tell. Raises NotFound for a file that is none, or is cut off."""
    return held_by(_files(folder), what=f"model {folder.source.uri}")


def held_by(files: Iterable[Path], *, what: str) -> Held:
    """The same of any weight files."""
    tensors = [entry for path in files for entry in _tensors(path, what)]
    return Held(
        tensors=len(tensors),
        longest=max((side for shape, _ in tensors for side in shape), default=0),
        numbers=sum(math.prod(shape) for shape, _ in tensors),
        size=sum(size for _, size in tensors),
    )


def _files(folder: ModelFolder) -> list[Path]:
    index = folder.path / modelfolder.INDEX
    if not index.is_file():
        return sorted(folder.path.glob("*.safetensors"))
    names = modelfolder.read_json(index, folder.source.uri)["weight_map"].values()
    return [folder.path / name for name in sorted(set(names))]


def _tensors(path: Path, what: str) -> Iterator[tuple[list[int], int]]:
    """Shape and bytes of each tensor that has any. One that claims more numbers than it has bits isn't believed."""
    try:
        whole = path.stat().st_size
        for name, shape, first, last in _entries(path):
            size = last - first
            sides = (*shape, math.prod(shape))
            if not 0 <= first <= last <= whole or (size and not all(0 <= side <= 8 * size for side in sides)):
                raise NotFound(f"{what} can't be loaded: {path.name} has not all of {name[:100]}: download it again")
            if size:
                yield shape, size
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise NotFound(f"{what} can't be loaded: {path.name} has no header that can be read: {error}") from error


def _entries(path: Path) -> Iterator[tuple[str, list[int], int, int]]:
    """Name, shape, first and last byte."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER:
            raise ValueError(f"{length:,} bytes, more than {HEADER:,}")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = map(int, entry["data_offsets"])
            yield name, [int(side) for side in entry["shape"]], first, last


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The counts and sizes in a config, also those in its parts."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _settings(value)
        elif isinstance(value, int) and (COUNTS.search(key) or SIZES.search(key)):
            yield key, value
