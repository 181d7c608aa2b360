"""Checkpoints: everything that a training needs to go on as if nothing had happened. No pickle anywhere.

One is complete or not there. Of those that are there the newest that verifies is taken, and the others are named.
"""

import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from finetune_api.snapshot import SavedCheckpoint, TrainProgress
from finetune_api.trainer_config import RunIdentity
from finetune_trainer import durable, weights
from finetune_trainer.model import Learner
from finetune_trainer.source import ModelFolder

FOLDER = "checkpoints"
LATEST = "latest"
OPTIMIZER, GENERATORS, STATE = "optimizer.safetensors", "rng.safetensors", "state.json"

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


@dataclass
class Found:
    """What there is to resume from."""

    folder: Path | None = None
    step: int = 0
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
                return Found(folder, int(manifest["step"]), manifest["facts"], found.passed_over)
        return found

    def save(
        self,
        learner: Learner,
        optimizer: torch.optim.Optimizer,
        position: Position,
        *,
        model: ModelFolder,
        progress: TrainProgress,
        facts: Mapping[str, Any],
    ) -> SavedCheckpoint:
        """Write a checkpoint, verify it, then delete those that are too many. Raises OSError."""
        target = self._root / position.name
        now = datetime.now(UTC)
        manifest = {
            "version": 1,
            "run": self._run.uid,
            "attempt": self._run.attempt,
            "step": position.step,
            "epoch": position.epoch,
            "worldSize": 1,
            "time": now.isoformat(),
            "fingerprint": self._fingerprint,
            "facts": facts,
        }
        try:
            with durable.new_folder(target) as folder:
                weights.write(learner, model, folder)
                _write_state(folder, learner, optimizer, position, progress)
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


def restore(folder: Path, learner: Learner, optimizer: torch.optim.Optimizer) -> tuple[Position, TrainProgress]:
    """Put everything back as it was when the checkpoint was made; returns how far it was, and what was told of it."""
    if not learner.full:
        weights.read_adapter(learner, folder)
    tensors = load_file(folder / OPTIMIZER)
    for name, parameter in learner.trained.items():
        moments = {key: tensors[f"{name}.{key}"] for key in ("exp_avg", "exp_avg_sq")}
        step = tensors[f"{name}.step"].to(parameter.device)
        optimizer.state[parameter] = {"step": step, **{key: m.to(parameter.device) for key, m in moments.items()}}
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    _restore_generators(folder, state)
    position = Position(step=state["step"], epoch=state["epoch"], tokens=state["tokens"])
    return position, TrainProgress.model_validate(state["progress"])


def _write_state(
    folder: Path,
    learner: Learner,
    optimizer: torch.optim.Optimizer,
    position: Position,
    progress: TrainProgress,
) -> None:
    moments = {
        f"{name}.{key}": value.contiguous()
        for name, parameter in learner.trained.items()
        for key, value in optimizer.state[parameter].items()
    }
    save_file(moments, folder / OPTIMIZER)
    generators = {"torch": torch.get_rng_state()}
    if learner.device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state()
    save_file(generators, folder / GENERATORS)
    version, numbers, gauss = random.getstate()
    drawn = np.random.get_state(legacy=False)
    state = {
        "step": position.step,
        "epoch": position.epoch,
        "tokens": position.tokens,
        "learningRate": optimizer.param_groups[0]["lr"],
        "progress": progress.model_dump(mode="json", by_alias=True),
        "python": [version, list(numbers), gauss],
        "numpy": json.loads(json.dumps(drawn, default=lambda array: array.tolist())),
    }
    (folder / STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")


def _restore_generators(folder: Path, state: Mapping[str, Any]) -> None:
    generators = load_file(folder / GENERATORS)
    torch.set_rng_state(generators["torch"])
    if "cuda" in generators and torch.cuda.is_available():
        torch.cuda.set_rng_state(generators["cuda"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    drawn = state["numpy"]
    drawn["state"]["key"] = np.array(drawn["state"]["key"], dtype=np.uint32)
    np.random.set_state(drawn)


def _step_of(folder: Path) -> int:
    found = _NAME.fullmatch(folder.name)
    assert found is not None
    return int(found[2])
