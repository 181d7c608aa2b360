"""Where the model comes from: a folder, the hub, a bucket. Says what is missing before anything heavy is imported.

Weights are safetensors or nothing: a pickle can run code when it is opened.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.trainer_config import ModelSource
from finetune_api.uris import Scheme, Uri
from finetune_trainer.errors import NotFound
from finetune_trainer.sources import answers, buckets

logger = logging.getLogger(__name__)

DESCRIPTIONS = ("*.json", "*.jinja", "*.model", "*.txt", "README.md")
CODE = ("*.py",)
WEIGHTS = ("*.safetensors",)
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
ELSEWHERE = "transformers_weights"
"""A setting of config.json with which transformers takes other weights than those that are looked at here."""
TEMPLATES = "additional_chat_templates"
LARGEST = 64 << 20
"""Bytes of a description: the index of the largest models has a sixth of it."""
_MOUNTS = Path("/mnt")
_SYSTEM = (Path("/proc"), Path("/sys"), Path("/dev"))
"""Where a process finds its own environment, and with it the credentials."""


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk: at first only its descriptions, after `fetch_weights` all of it."""

    path: Path
    source: ModelSource
    config: Mapping[str, Any]
    """Its config.json."""

    @property
    def vocabulary_size(self) -> int | None:
        """Number of embeddings, where the config tells."""
        return self._text_setting("vocab_size")

    @property
    def positions(self) -> int | None:
        """Longest sequence that the model was made for, where the config tells."""
        return self._text_setting("max_position_embeddings")

    def _text_setting(self, name: str) -> int | None:
        inner = self.config.get("text_config")
        value = self.config.get(name, inner.get(name) if isinstance(inner, dict) else None)
        return value if isinstance(value, int) else None


def find(source: ModelSource) -> ModelFolder:
    """The model's descriptions, downloaded if need be. Raises NotFound or NoPermission with what is wrong."""
    patterns = DESCRIPTIONS + (CODE if source.trust_remote_code else ())
    path = Path(source.path) if source.path is not None else _download(source, patterns)
    config = _description(path, source)
    if config.get(ELSEWHERE) is not None:
        raise NotFound(f"model {source.uri}: its config.json sets {ELSEWHERE}, which is not followed: remove it")
    if source.path is not None:
        refuse_strays((*path.iterdir(), *(path / TEMPLATES).glob("*")), path, what=f"model {source.uri}")
    return ModelFolder(path, source, config)


def refuse_strays(files: Iterable[Path], start: Path, *, what: str) -> None:
    """Raises NotFound for a link that leads out of the volume, or to what the system tells of this process.

    Whoever can write the volume could else have the environment, and the credentials in it, taken for data.
    """
    mount = _mount_of(start).resolve()
    for file in files:
        place = file.resolve()
        if not place.is_relative_to(mount) or any(place.is_relative_to(system) for system in _SYSTEM):
            raise NotFound(f"{what}: {file.name} is a link that leads out of its volume, and is never followed")


def fetch_weights(folder: ModelFolder) -> None:
    """Have the weights on disk, whole. Raises NotFound."""
    if folder.source.path is None:
        _download(folder.source, WEIGHTS)
    uri, path = folder.source.uri, folder.path
    if (path / INDEX).is_file():
        shards = _shards(path, uri)
        missing = sorted(shard for shard in shards if not (path / shard).is_file())
        if missing:
            raise NotFound(f"model {uri} is not whole: {', '.join(missing[:5])} of {len(shards)} weight files missing")
        return
    if next(path.glob("*.safetensors"), None):
        return
    pickles = sorted(found.name for pattern in PICKLES for found in path.glob(pattern))
    if pickles or folder.source.path is None:
        raise NotFound(
            f"model {uri} has no safetensors weights{f', only {pickles[0]}' if pickles else ''}; pickled weights can"
            " run code and are not loaded: convert them with save_pretrained(..., safe_serialization=True)"
        )
    raise NotFound(f"model {uri} has no weights: no *.safetensors in {path}; {neighbours(path)}")


def _mount_of(path: Path) -> Path:
    """The volume's root in a pod; elsewhere there is none."""
    return Path(*path.parts[:3]) if path.is_relative_to(_MOUNTS) else Path("/")


def _shards(path: Path, uri: str) -> set[str]:
    """The weight files that the index names. Raises NotFound for what lies elsewhere, or is a pickle."""
    found = read_json(path / INDEX, uri).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise NotFound(f"model {uri}: {INDEX} has no weight_map")
    for name in found.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise NotFound(
                f"model {uri}: {INDEX} names {str(name)[:100]!r}: a weight file lies beside it and is a *.safetensors"
            )
    return set(found.values())


def neighbours(path: Path, limit: int = 10) -> str:
    """What is in the nearest folder that exists, for a message."""
    folder = path
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    except OSError as error:
        return f"{folder} can't be read: {error.strerror}"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"{folder} holds {', '.join(names[:limit])}{more}" if names else f"{folder} is empty"


def read_text(path: Path, uri: str) -> str:
    """A description of the model's. Raises NotFound if it can't be read as one."""
    try:
        if path.stat().st_size > LARGEST:
            raise NotFound(
                f"model {uri}: {path.name} has more than {LARGEST >> 20} MiB: it is no description of a model"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise NotFound(f"model {uri}: {path.name} can't be read: {error}") from error


def read_json(path: Path, uri: str) -> dict[str, Any]:
    """A JSON object of the model's. Raises NotFound if it can't be read as one."""
    text = read_text(path, uri)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotFound(f"model {uri}: {path.name} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise NotFound(f"model {uri}: {path.name} is not a JSON object")
    return found


def _description(path: Path, source: ModelSource) -> dict[str, Any]:
    uri = source.uri
    if not path.is_dir():
        what = "is a file" if path.exists() else "is not there"
        raise NotFound(f"model {uri}: the folder {path} {what}; {neighbours(path)}")
    if not (path / "config.json").is_file():
        if (path / "adapter_config.json").is_file():
            raise NotFound(f"model {uri} is an adapter, not a whole model: name its base model, or merge it first")
        raise NotFound(f"model {uri} is not a model: no config.json; {neighbours(path)}")
    return read_json(path / "config.json", uri)


def _download(source: ModelSource, patterns: tuple[str, ...]) -> Path:
    """The files that match, of a hub or a bucket. Trouble on the way is raised as it is: it may pass."""
    place = Uri.parse(source.uri)
    if place.scheme != Scheme.HUB:
        return buckets.fetch(source.uri, wanted=buckets.below(patterns), what="model")
    import huggingface_hub

    with answers.understood("model", source.uri):
        found = huggingface_hub.snapshot_download(place.name, revision=place.revision, allow_patterns=list(patterns))
    return Path(found)
