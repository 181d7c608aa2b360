"""Datasets of a hub: the files of one split, fetched at one commit. A dataset's script is never run."""

import glob
import logging
from collections.abc import Sequence
from pathlib import Path

from finetune_api.uris import Uri
from finetune_trainer.errors import NotFound
from finetune_trainer.sources import answers, cards, splits
from finetune_trainer.sources.formats import ENDINGS

logger = logging.getLogger(__name__)

CONVERTED = "refs/convert/parquet"
"""Where the hub keeps a dataset as Parquet, whatever it is made of."""


def fetch(uri: str, *, evaluation: bool) -> tuple[Path, tuple[Path, ...]]:
    """The repository's folder and the files in it. Raises NotFound or NoPermission."""
    place = Uri.parse(uri)
    with answers.understood("dataset", uri):
        commit, names = _chosen(place, uri, evaluation=evaluation)
        folder = _download(place.name, commit, [glob.escape(name) for name in names])
    return folder, tuple(folder / name for name in names)


def _chosen(place: Uri, uri: str, *, evaluation: bool) -> tuple[str, list[str]]:
    """The commit, and the files of the split."""
    commit, names = _listed(place.name, place.revision)
    card = cards.head(_download(place.name, commit, ["README.md"])) if "README.md" in names else {}
    found = splits.find(names, card)
    if not any(found.values()):
        commit, found = _converted(place.name, names, uri)
    configs = card.get("configs")
    marked = [each for each in configs if isinstance(each, dict)] if isinstance(configs, list) else []
    main = next((str(each.get("config_name")) for each in marked if each.get("default")), None)
    wanted = ("validation", "test") if evaluation else ("train",)
    try:
        return commit, splits.choose(found, place.split, main=main, wanted=wanted)
    except LookupError as error:
        raise NotFound(f"dataset {uri}: {error.args[0]}") from error


def _converted(repository: str, names: Sequence[str], uri: str) -> tuple[str, splits.Splits]:
    from huggingface_hub import errors

    script = next((name for name in names if name.endswith(".py")), None)
    why = f"it is made by a script, {script}, which is never run" if script else "it has no file of a known format"
    try:
        commit, parquet = _listed(repository, CONVERTED)
    except errors.RevisionNotFoundError as error:
        raise NotFound(
            f"dataset {uri}: {why}, and the hub has no Parquet of it; known are {', '.join(ENDINGS)}"
        ) from error
    logger.info("dataset %s: %s; its Parquet files are taken from %s", uri, why, CONVERTED)
    return commit, splits.converted(parquet)


def _listed(repository: str, revision: str | None) -> tuple[str, list[str]]:
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(repository, revision=revision)
    return str(info.sha), [each.rfilename for each in info.siblings or ()]


def _download(repository: str, commit: str, patterns: list[str]) -> Path:
    import huggingface_hub

    found = huggingface_hub.snapshot_download(repository, repo_type="dataset", revision=commit, allow_patterns=patterns)
    return Path(found)
