"""Checkpoints: everything that a training needs to go on as if nothing had happened. No pickle anywhere.

One is complete or not there. Of those that are there the newest that verifies is taken, and the others are named.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune_api.snapshot import SavedCheckpoint, TrainProgress
from finetune_api.trainer_config import RunIdentity
from finetune_trainer.learning import generators
from finetune_trainer.learning.evaluation import Watch
from finetune_trainer.learning.model import Learner
from finetune_trainer.saves import durable, weights
from finetune_trainer.sources.modelfolder import ModelFolder

FOLDER = "checkpoints"
LATEST = "latest"
OPTIMIZER, GENERATORS, STATE = "optimizer.safetensors", "rng.safetensors", "state.json"
REFERENCE = "reference.safetensors"

_NAME = re.compile(r"ep(\d+)-ba(\d+)")


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a training is."""

    step: int
    epoch: int
    tokens: int

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return f"ep{self.epoch}-ba{self.step}"

    def after(self, tokens: int, *, steps_per_epoch: int) -> "Position":
        """One step further, in which there were so many tokens."""
        return Position(step=self.step + 1, epoch=self.step // steps_per_epoch + 1, tokens=self.tokens + tokens)


@dataclass(frozen=True, kw_only=True)
class Reached:
    """How far a training came: all of its state but weights, optimizer and generators."""

    position: Position
    watch: Watch
    progress: TrainProgress
    """What was told of it."""


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


class Store:
    """The checkpoints of one run."""

    def __init__(self, run_path: Path, *, run: RunIdentity, fingerprint: str, keep: int) -> None:
        """Clears what killed saves have left. Raises OSError where the folder can't be written."""
        self._root = run_path / FOLDER
        self._run = run
        self._fingerprint = fingerprint
        self._keep = keep
        self._root.mkdir(parents=True, exist_ok=True)
        durable.clear_leftovers(self._root)
        self._complete = self._list()

    @property
    def complete(self) -> tuple[SavedCheckpoint, ...]:
        """The complete checkpoints of this run, oldest first."""
        return tuple(saved for _, saved in self._complete)

    def newest(self) -> Found:
        """The newest checkpoint that verifies and was made with the same settings and data."""
        found = Found()
        for folder in sorted(self._folders(), key=_step_of, reverse=True):
            try:
                manifest = durable.verify(folder)
                self._refuse_other(manifest)
            except durable.Damaged as damage:
                found.passed_over.append(f"{folder.name}: {damage}")
                self._complete = [entry for entry in self._complete if entry[1].name != folder.name]
            else:
                size = manifest.get("perDevice")
                return Found(folder, int(manifest["step"]), size, manifest["facts"], found.passed_over)
        return found

    def save(
        self,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        state: Reached,
        *,
        model: ModelFolder,
        per_device: int,
        reference: Mapping[str, torch.Tensor],
        facts: Mapping[str, Any],
    ) -> SavedCheckpoint:
        """Write a checkpoint, verify it, then delete those that are too many. Raises OSError."""
        position = state.position
        target = self._root / position.name
        now = datetime.now(UTC)
        manifest = {
            "version": 1,
            "run": self._run.uid,
            "attempt": self._run.attempt,
            "step": position.step,
            "epoch": position.epoch,
            "worldSize": 1,
            "perDevice": per_device,
            "time": now.isoformat(),
            "fingerprint": self._fingerprint,
            "facts": facts,
        }
        try:
            with durable.new_folder(target) as folder:
                weights.write(learner, model, folder)
                _write_state(folder, learner, optimizer, state)
                if reference:
                    save_file(dict(reference), folder / REFERENCE)
                durable.write_manifest(folder, manifest)
            durable.verify(target)
        except (SafetensorError, durable.Damaged) as error:
            raise OSError(str(error)) from error
        saved = self._describe(target, manifest)
        self._complete = [entry for entry in self._complete if entry[1].name != saved.name]
        self._complete.append(((self._run.attempt, position.step), saved))
        durable.replace_link(self._root / LATEST, saved.name)
        self._rotate()
        return saved

    def _rotate(self) -> None:
        self._complete = sorted(self._complete)[-self._keep :]
        kept = {saved.name for saved in self.complete}
        for folder in self._folders():
            if folder.name not in kept:
                durable.remove(folder)

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
        return sorted(listed)

    def _describe(self, folder: Path, manifest: Mapping[str, Any]) -> SavedCheckpoint:
        return SavedCheckpoint(
            name=folder.name,
            step=manifest["step"],
            time=datetime.fromisoformat(manifest["time"]),
            size_bytes=durable.folder_size(folder),
            path=f"{FOLDER}/{folder.name}",
            sha256=durable.sha256(folder / durable.MANIFEST),
        )

    def _refuse_other(self, manifest: Mapping[str, Any]) -> None:
        if manifest.get("run") != self._run.uid:
            raise durable.Damaged("it belongs to another run")
        if manifest.get("fingerprint") != self._fingerprint:
            raise durable.Damaged("it was made with other settings or data")


def restore(folder: Path, learner: Learner, optimizer: torch.optim.Optimizer) -> Reached:
    """Put everything back as it was when the checkpoint was made; returns how far it was."""
    if not learner.full:
        weights.read_adapter(learner, folder)
    tensors = load_file(folder / OPTIMIZER)
    for name, parameter in learner.trained.items():
        moments = {key: tensors[f"{name}.{key}"] for key in ("exp_avg", "exp_avg_sq")}
        step = tensors[f"{name}.step"].to(parameter.device)
        optimizer.state[parameter] = {"step": step, **{key: m.to(parameter.device) for key, m in moments.items()}}
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    generators.read(load_file(folder / GENERATORS), state).put_back()
    return Reached(
        position=Position(step=state["step"], epoch=state["epoch"], tokens=state["tokens"]),
        watch=Watch.model_validate(state.get("watch", {})),
        progress=TrainProgress.model_validate(state["progress"]),
    )


def read_reference(folder: Path) -> dict[str, torch.Tensor]:
    """What was computed once, before the first step."""
    return load_file(folder / REFERENCE)


def _write_state(folder: Path, learner: Learner, optimizer: torch.optim.Optimizer, state: Reached) -> None:
    moments = {
        f"{name}.{key}": value.contiguous()
        for name, parameter in learner.trained.items()
        for key, value in optimizer.state[parameter].items()
    }
    save_file(moments, folder / OPTIMIZER)
    drawn = generators.take(learner.device)
    save_file(dict(drawn.tensors), folder / GENERATORS)
    position = state.position
    described = {
        "step": position.step,
        "epoch": position.epoch,
        "tokens": position.tokens,
        "learningRate": optimizer.param_groups[0]["lr"],
        "watch": state.watch.to_wire(),
        "progress": state.progress.model_dump(mode="json", by_alias=True),
        **drawn.as_json(),
    }
    (folder / STATE).write_text(json.dumps(described) + "\n", encoding="utf-8")


def _step_of(folder: Path) -> int:
    found = _NAME.fullmatch(folder.name)
    assert found is not None
    return int(found[2])
