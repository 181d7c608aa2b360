"""Which files of a hub's dataset make a split: as its card says, else by their names. Pure; no script is ever run."""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune_trainer.sources.formats import CODE, ENDINGS, ending

DEFAULT = "default"
WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""What files are named after, and the split they make."""
_NUMBERED = re.compile(r"(?:^|/)(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}")

Splits = dict[str, dict[str, list[str]]]
"""By configuration, by split: files."""


def find(files: Sequence[str], card: Mapping[str, Any]) -> Splits:
    """All splits of a dataset."""
    readable = sorted(name for name in files if _is_data(name))
    described = _described(readable, card.get("configs"))
    return described or {DEFAULT: _by_name(readable)}


def converted(files: Sequence[str]) -> Splits:
    """All splits in the hub's own conversion to Parquet: CONFIGURATION/SPLIT/NUMBER.parquet."""
    found: Splits = {}
    for name in sorted(files):
        parts = name.split("/")
        if len(parts) == 3 and name.endswith(".parquet"):
            found.setdefault(parts[0], {}).setdefault(parts[1], []).append(name)
    return found


def choose(splits: Splits, asked: str | None, *, main: str | None, wanted: Sequence[str]) -> list[str]:
    """The files of a split, of a configuration, or of `CONFIGURATION.SPLIT`. Raises LookupError with what there is."""
    configuration, split = _parts(splits, asked, main)
    if configuration not in splits:
        raise LookupError(f"it has several configurations, and none is the default: add :{'|'.join(sorted(splits))}")
    found = splits[configuration]
    for name in [split] if split else wanted:
        if name in found:
            return found[name]
    raise LookupError(f"it has no split {split or ' or '.join(wanted)}: there is {', '.join(sorted(found)) or 'none'}")


def _parts(splits: Splits, asked: str | None, main: str | None) -> tuple[str, str | None]:
    usual = next(iter(splits)) if len(splits) == 1 else (main or DEFAULT)
    if asked is None or asked in splits.get(usual, {}):
        return usual, asked
    if asked in splits:
        return asked, None
    configuration, dot, split = asked.rpartition(".")
    return (configuration, split) if dot and configuration in splits else (usual, asked)


def _is_data(name: str) -> bool:
    hidden = any(part.startswith((".", "_")) for part in name.split("/"))
    return not hidden and ending(name) in ENDINGS and not name.endswith(CODE)


def _described(files: Sequence[str], configs: Any) -> Splits:
    found: Splits = {}
    for config in configs if isinstance(configs, list) else ():
        data = config.get("data_files") if isinstance(config, dict) else None
        if data is None:
            continue
        entries = data if isinstance(data, list) else [data]
        for entry in entries:
            split, patterns = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else ("train", entry)
            names = _matching(files, [patterns] if isinstance(patterns, str) else patterns or [])
            found.setdefault(str(config.get("config_name", DEFAULT)), {}).setdefault(str(split), []).extend(names)
    return found


def _matching(files: Sequence[str], patterns: Iterable[Any]) -> list[str]:
    return [name for name in files if any(fnmatch.fnmatchcase(name, str(pattern)) for pattern in patterns)]


def _by_name(files: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in files:
        if (split := _split_of(name)) is not None:
            found.setdefault(split, []).append(name)
    if found:
        return found
    kinds = {ENDINGS[ending(name)] for name in files}
    return {"train": list(files)} if len(kinds) == 1 else {}


def _split_of(name: str) -> str | None:
    numbered = _NUMBERED.search(name)
    if numbered:
        return WORDS.get(numbered["split"], numbered["split"])
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in WORDS]
    return WORDS[words[-1]] if words else None
