"""The checkpoints of a run. One is complete or not there; the newest that verifies is taken, and the others are named.

None is removed before enough newer ones are complete, and none that was passed over without a word.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from finetune_api.snapshot import SavedCheckpoint
from finetune_api.trainer_config import RunIdentity
from finetune_trainer.learning.model import Learner
from finetune_trainer.ranks import Ranks
from finetune_trainer.reporting import journal
from finetune_trainer.saves import content, durable
from finetune_trainer.saves.parts import Parts
from finetune_trainer.sources.modelfolder import ModelFolder

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
LATEST = "latest"

_NAME = re.compile(r"ep(\d+)-ba(\d+)")


@dataclass
class Found:
    """What there is to resume from."""

    folder: Path | None = None
    step: int = 0
    per_device: int | None = None
    """Records in a forward pass: what `Auto` or a full memory has led to."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the checkpoint says of the software and device it was made with."""
    passed_over: list[str] = field(default_factory=list)

    def encode(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "folder": self.folder and str(self.folder)}

    @classmethod
    def decode(cls, told: Mapping[str, Any]) -> "Found":
        """From JSON."""
        return cls(**{**told, "folder": told["folder"] and Path(told["folder"])})


class Store:
    """The checkpoints of one run."""

    def __init__(
        self, run_path: Path, *, run: RunIdentity, fingerprint: str, keep: int, ranks: Ranks | None = None
    ) -> None:
        """Clears what killed saves have left. Raises OSError where the folder can't be written."""
        self._ranks = ranks or Ranks()
        self._root = run_path / FOLDER
        self._run = run
        self._fingerprint = fingerprint
        self._keep = keep
        self._root.mkdir(parents=True, exist_ok=True)
        if self._ranks.is_first:
            durable.clear_leftovers(self._root)
        self._complete = self._list()
        self._passed_over: dict[str, str] = {}

    @property
    def complete(self) -> tuple[SavedCheckpoint, ...]:
        """The complete checkpoints of this run, oldest first."""
        return tuple(saved for _, saved in self._complete)

    def newest(self) -> Found:
        """The newest checkpoint that verifies and was made with the same settings and data. The first one looks."""
        return Found.decode(self._ranks.from_first(lambda: self._newest().encode()))

    def _newest(self) -> Found:
        found = Found()
        for folder in sorted(self._folders(), key=_step_of, reverse=True):
            try:
                manifest = durable.verify(folder)
                self._refuse_other(manifest, folder)
            except durable.Damaged as damage:
                self._passed_over[folder.name] = str(damage)
                found.passed_over.append(f"{folder.name}: {damage}")
                self._complete = [entry for entry in self._complete if entry[1].name != folder.name]
            else:
                size = manifest.get("perDevice")
                return Found(folder, int(manifest["step"]), size, manifest["facts"], found.passed_over)
        return found

    def write(
        self,
        state: content.Content,
        learner: Learner,
        *,
        model: ModelFolder,
        per_device: int,
        reference: Mapping[str, torch.Tensor],
        facts: Mapping[str, Any],
    ) -> SavedCheckpoint:
        """Write a checkpoint, verify it, then delete those that are too many. Raises OSError. One at a time.

        Each of several processes writes its part.
        """
        target = self._root / state.reached.position.name
        with Parts(self._ranks) as parts:
            if not self._ranks.is_first:
                return self._write_part(state, learner, parts, folder=durable.unfinished(target))
            manifest = self._manifest(state.reached.position, per_device, facts)
            try:
                durable.clear_leftovers(self._root)  # of a save that failed while nothing could be deleted either
                with durable.new_folder(target) as folder:
                    parts.done()
                    content.write(state, folder, learner, model=model, reference=reference)
                    parts.done()
                    durable.write_manifest(folder, manifest)
                self._tell_removed(target.name)
                durable.verify(target)
            except (SafetensorError, durable.Damaged) as error:
                raise OSError(str(error)) from error
            saved = self._describe(target, manifest)
            others = [entry for entry in self._complete if entry[1].name != saved.name]
            self._complete = [*others, ((self._run.attempt, saved.step), saved)]
            durable.replace_link(self._root / LATEST, saved.name)
            self._rotate()
            parts.done()
            return parts.tell(saved)

    def _manifest(self, position: content.Position, per_device: int, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "version": 2,
            "run": self._run.uid,
            "attempt": self._run.attempt,
            "name": position.name,
            "step": position.step,
            "epoch": position.epoch,
            "worldSize": self._ranks.place.size,
            "perDevice": per_device,
            "time": datetime.now(UTC).isoformat(),
            "fingerprint": self._fingerprint,
            "facts": facts,
        }

    def _write_part(self, state: content.Content, learner: Learner, parts: Parts, *, folder: Path) -> SavedCheckpoint:
        """What another process than the first does meanwhile."""
        parts.done()
        try:
            content.write_part(state, folder, learner)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        parts.done()
        parts.done()
        return parts.hear()

    def _rotate(self) -> None:
        self._complete = sorted(self._complete, key=_order)[-self._keep :]
        kept = {saved.name for saved in self.complete}
        for folder in self._folders():
            if folder.name not in kept:
                durable.remove(folder)
                self._tell_removed(folder.name)

    def _tell_removed(self, name: str) -> None:
        """Say that one that was passed over is gone; of the others the interval and `keep` tell."""
        why = self._passed_over.pop(name, None)
        if why is not None:
            message = f"checkpoint {name}, which was passed over, has made room for a newer one: {why}"
            journal.event(logger, "CHECKPOINT_REMOVED", message, logging.WARNING)

    def _folders(self) -> list[Path]:
        return [path for path in self._root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]

    def _list(self) -> list[tuple[tuple[int, int], SavedCheckpoint]]:
        listed = []
        for folder in self._folders():
            try:
                manifest = durable.read_manifest(folder)
                order = (int(manifest["attempt"]), int(manifest["step"]))
                listed.append((order, self._describe(folder, manifest)))
            except (durable.Damaged, KeyError, ValueError, TypeError):  # named when it comes to resuming
                continue
        return sorted(listed, key=_order)

    def _describe(self, folder: Path, manifest: Mapping[str, Any]) -> SavedCheckpoint:
        return SavedCheckpoint(
            name=folder.name,
            step=manifest["step"],
            time=datetime.fromisoformat(manifest["time"]),
            size_bytes=durable.folder_size(folder),
            path=f"{FOLDER}/{folder.name}",
            sha256=durable.sha256(folder / durable.MANIFEST),
        )

    def _refuse_other(self, manifest: Mapping[str, Any], folder: Path) -> None:
        if manifest.get("run") != self._run.uid:
            raise durable.Damaged("it belongs to another run")
        if manifest.get("fingerprint") != self._fingerprint:
            raise durable.Damaged("it was made with other settings or data")
        if manifest.get("name") != folder.name:
            raise durable.Damaged(f"{durable.MANIFEST} is that of {manifest.get('name')}")


def read_reference(folder: Path) -> dict[str, torch.Tensor]:
    """What was computed once, before the first step."""
    return content.read_reference(folder)


def _order(entry: tuple[tuple[int, int], SavedCheckpoint]) -> tuple[int, int]:
    """Attempt and step."""
    return entry[0]


def _step_of(folder: Path) -> int:
    found = _NAME.fullmatch(folder.name)
    assert found is not None
    return int(found[2])
