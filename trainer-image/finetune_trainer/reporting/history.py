"""What a run's folder remembers: one line a step (loss, rate, tokens, seconds) and evaluation, and whether the run is
finished.

Survives attempts, without the steps that a resumed one does again.
"""

import contextlib
import json
import logging
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from finetune_api.snapshot import Snapshot
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.errors import ConfigInvalid
from finetune_trainer.reporting.appending import Appending
from finetune_trainer.reporting.progress import Evaluated, Step
from finetune_trainer.reporting.tensorboard import Events

logger = logging.getLogger(__name__)

FOLDER = "training_logs"
FILE = "metrics.jsonl"
EVALUATIONS = "evaluations.jsonl"
PARAMETERS = "user_params.json"
LAST_SNAPSHOT = "snapshot.json"
OUTPUT = "output"
OWNER = "run.json"


def take(config: TrainerConfig) -> None:
    """Make the run's folder this run's own, so that no other run's checkpoints or output are ever replaced.

    Raises ConfigInvalid if it is another's, OSError where it can't be written.
    """
    folder = Path(config.run_path)
    folder.mkdir(parents=True, exist_ok=True)
    trial = folder / f".{OWNER}-{config.run.uid}-{socket.gethostname()}-{os.getpid()}"
    trial.write_text(config.run.model_dump_json(by_alias=True, exclude={"attempt"}), encoding="utf-8")
    with contextlib.suppress(FileExistsError):
        os.link(trial, folder / OWNER)  # appears whole, and only if there is none
    trial.unlink()
    owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
    if owner["uid"] != config.run.uid:
        raise ConfigInvalid(
            f"storage: this folder of the volume holds run {owner['namespace']}/{owner['name']} ({owner['uid']});"
            " give this run one of its own with storage.subPath, or a claim of its own"
        )


def finished(config: TrainerConfig) -> Snapshot | None:
    """What the attempt said that finished this run, if one did."""
    logs = Path(config.run_path) / OUTPUT / FOLDER
    try:
        params = TrainerConfig.decode((logs / PARAMETERS).read_text(encoding="utf-8"))
        told = Snapshot.decode((logs / LAST_SNAPSHOT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told if params.run.uid == config.run.uid else None


class History:
    """The file with the steps of a run. Trouble with it is told, and never ends a training: what can't be written while
    the volume is full is missing in it, what comes after is there.
    """

    def __init__(self, config: TrainerConfig, *, steps_done: int, writes: bool = True) -> None:
        """Go on after `steps_done` steps; what is there beyond is dropped. Of several processes one alone `writes`."""
        self._writes = writes
        folder = Path(config.run_path) / FOLDER
        self._events = Events(config, steps_done=steps_done) if writes and config.tensor_board else None
        self._steps = Appending(folder / FILE, what="the history of steps")
        self._evaluations = Appending(folder / EVALUATIONS, what="the history of evaluations")
        if not writes:
            return
        for file in (self._steps, self._evaluations):
            try:
                _keep(file.path, steps_done)
            except OSError as error:
                logger.warning("%s has steps that are done again: %s", file.path, error)

    @property
    def files(self) -> tuple[Path, ...]:
        """Where it is written."""
        return self._steps.path, self._evaluations.path

    def add(self, step: Step) -> None:
        """Append a step."""
        line = {
            "time": round(time.time() * 1000),
            "step": step.number,
            "epoch": step.epoch,
            "loss": step.loss,
            "learningRate": step.learning_rate,
            "gradNorm": step.grad_norm,
            "tokens": step.tokens,
            "seconds": round(step.seconds, 4),
        }
        self._append(self._steps, line)
        if self._events is not None:
            self._events.step(step)

    def add_evaluation(self, found: Evaluated) -> None:
        """Append an evaluation; null stands for a loss that is no number."""
        line = {
            "time": round(time.time() * 1000),
            "step": found.step,
            "epoch": found.epoch,
            "evalLoss": found.loss if math.isfinite(found.loss) else None,
            "records": found.records,
            "seconds": round(found.seconds, 4),
        }
        self._append(self._evaluations, line)
        if self._events is not None:
            self._events.evaluated(found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing more will come."""
        if self._events is not None:
            self._events.close()

    def _append(self, file: Appending, line: Mapping[str, object]) -> None:
        if self._writes:
            file.add(json.dumps(line).encode() + b"\n")


def _keep(path: Path, steps: int) -> None:
    """Drop the lines beyond a step, and one that a kill has torn. A volume that is full has room for that."""
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _step_in(line) <= steps]
    if kept == lines[: len(kept)]:
        os.truncate(path, sum(map(len, kept)))
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(b"".join(kept))
    temporary.replace(path)


def _step_in(line: bytes) -> float:
    """The step of a line; a torn one counts as beyond any."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
