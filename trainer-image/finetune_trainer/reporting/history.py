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
from collections.abc import Mapping
from pathlib import Path

from finetune_api.snapshot import Snapshot
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.errors import ConfigInvalid
from finetune_trainer.reporting.reporter import Evaluated, Step

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
    """The file with the steps of a run. Trouble with it is told once and never ends a training."""

    def __init__(self, run_path: Path, *, steps_done: int, writes: bool = True) -> None:
        """Go on after `steps_done` steps; what is there beyond is dropped. Of several processes one alone `writes`."""
        self._folder = run_path / FOLDER
        self._broken = not writes
        if not writes:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self.files:
                _keep(path, steps_done)
        except OSError as error:
            self._give_up(error)

    @property
    def files(self) -> tuple[Path, ...]:
        """Where it is written."""
        return self._folder / FILE, self._folder / EVALUATIONS

    def add(self, step: Step) -> None:
        """Append a step."""
        line = {
            "step": step.number,
            "epoch": step.epoch,
            "loss": step.loss,
            "learningRate": step.learning_rate,
            "gradNorm": step.grad_norm,
            "tokens": step.tokens,
            "seconds": round(step.seconds, 4),
        }
        self._append(FILE, line)

    def add_evaluation(self, found: Evaluated) -> None:
        """Append an evaluation; null stands for a loss that is no number."""
        line = {
            "step": found.step,
            "epoch": found.epoch,
            "evalLoss": found.loss if math.isfinite(found.loss) else None,
            "records": found.records,
            "seconds": round(found.seconds, 4),
        }
        self._append(EVALUATIONS, line)

    def _append(self, name: str, line: Mapping[str, object]) -> None:
        if self._broken:
            return
        try:
            with (self._folder / name).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._broken = True
        logger.warning("the history of steps can't be written any more: %s", error)


def _keep(path: Path, steps: int) -> None:
    """Drop the lines beyond a step, and one that a kill has torn."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line for line in lines if _step_in(line) <= steps), encoding="utf-8")
    temporary.replace(path)


def _step_in(line: str) -> float:
    """The step of a line; a torn one counts as beyond any."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
