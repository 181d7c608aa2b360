"""Sends what the run's folder remembers to MLflow, from where the last attempt left off. Knows no thread and no clock.

What fails is raised and leaves everything so that the same call can be made again.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.fields import cut
from finetune_api.method import MethodType
from finetune_api.snapshot import ExitCode, Tracked
from finetune_api.trainer_config import MlflowConfig, TrainerConfig
from finetune_trainer.reporting import history
from finetune_trainer.reporting.metrics import DeviceSample
from finetune_trainer.saves import durable
from finetune_trainer.tracking import content, lines, run, state
from finetune_trainer.tracking.server import Refused, Server

logger = logging.getLogger(__name__)

READINGS = "system.jsonl"
CONFIG = "config.json"
MODEL = "model"
"""The folder of the MLflow run that has the finished model."""
_STATUS: dict[int, str] = {ExitCode.DONE: "FINISHED", ExitCode.STOPPED: "KILLED"}
_MERGED = "merged/"
_WEIGHTS = ".safetensors"


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an attempt ended."""

    code: int
    message: str = ""


class Sender:
    """A run's folder, and its MLflow run."""

    def __init__(self, config: TrainerConfig, mlflow: MlflowConfig, server: Server) -> None:
        self._config = config
        self._mlflow = mlflow
        self._server = server
        self._folder = Path(config.run_path)
        self._run: run.MlflowRun | None = None
        self._chosen: Mapping[str, str] = {}
        self._state = state.State.load(self._folder, run_uid=config.run.uid, tracking_uri=mlflow.tracking_uri)
        self._open()

    def tracked(self, *, steps_done: int, problem: str) -> Tracked:
        """What MLflow has."""
        now = self._state
        sent = min((metric.step for metric in now.outbox), default=now.step + 1) - 1
        place = f"{self._server.uri}/#/experiments/{now.experiment_id}/runs/{now.mlflow_run_id}"
        return Tracked(
            mlflow_run_id=now.mlflow_run_id,
            url=place if now.mlflow_run_id else "",
            registered_model=now.registered_model,
            pending_steps=max(0, steps_done - sent),
            problem=cut(problem, 512),
        )

    def sample(self, reading: DeviceSample, *, step: int, now: int) -> None:
        """Remember how busy the device is. Raises OSError."""
        found = content.system(reading, cores=len(os.sched_getaffinity(0)))
        state.append(self._folder / state.FOLDER / READINGS, {"time": now, "step": step, **found})

    def send(self, *, now: int) -> None:
        """All there is. Raises Refused, OSError."""
        try:
            running = self._run or self._begin()
            while True:
                running.metrics(self._state.outbox)
                if not self._fill(now):
                    break
            self._store(running, CONFIG, self._folder / state.FOLDER / CONFIG)
        except Refused as refused:
            if refused.code == run.MISSING:  # the server has lost it, with all that it was told
                self._keep(state.State(run_uid=self._config.run.uid, tracking_uri=self._mlflow.tracking_uri))
                self._open()
            raise

    def choose(self, chosen: Mapping[str, str]) -> None:
        """What the trainer chose in this attempt, once: as tags, since a parameter can't change. Raises Refused."""
        assert self._run is not None, "something was sent before"
        if chosen != self._chosen:
            self._run.tag({f"finetune.{name}": value for name, value in chosen.items()})
            self._chosen = chosen

    def finish(self, ending: Ending) -> None:
        """Say how it ended, after the model is there. Raises Refused, OSError."""
        assert self._run is not None, "something was sent before"
        told = {"finetune.failure": cut(ending.message)} if ending.message and ending.code else {}
        if ending.code == ExitCode.DONE:
            told["mlflow.note.content"] = self._finish_model(self._run)
        self._run.tag(told)
        self._run.status(_STATUS.get(ending.code, "FAILED"), ended=True)

    def _open(self) -> None:
        logs = self._folder / history.FOLDER
        self._run = None
        self._chosen = {}
        self._steps = lines.steps(logs / history.FILE)
        self._evaluations = lines.evaluations(logs / history.EVALUATIONS)
        self._readings = lines.readings(self._folder / state.FOLDER / READINGS)

    def _begin(self) -> run.MlflowRun:
        """The MLflow run that goes on, or a new one."""
        tags = content.tags(self._config, self._mlflow)
        if not self._state.mlflow_run_id:
            experiment = run.experiment(self._server, self._mlflow.experiment)
            found, place = run.find_or_make(self._server, experiment, tags, name=self._config.run.name)
            update = {"experiment_id": experiment, "mlflow_run_id": found, "artifact_uri": place}
            self._keep(self._state.model_copy(update=update))
        going = run.MlflowRun(self._server, self._state.mlflow_run_id, self._state.artifact_uri)
        going.status("RUNNING", ended=False)
        going.tag({"finetune.attempt": str(self._config.run.attempt)})
        going.parameters(content.parameters(self._config))
        (self._folder / state.FOLDER / CONFIG).write_text(self._config.encode() + "\n", encoding="utf-8")
        self._run = going
        return going

    def _fill(self, now: int) -> bool:
        """Put what comes next into the outbox, and that on disk; whether there is something."""
        old = self._state
        steps, evaluations = self._steps.after(old.step), self._evaluations.after(old.evaluation)
        readings = self._readings.after(old.system)
        found = (
            *(content.measured(line, now=now) for line in (*steps, *readings)),
            *(content.evaluated(line, now=now) for line in evaluations),
        )
        outbox = tuple(metric for line in found for metric in line)
        update = {
            "step": steps[-1]["step"] if steps else old.step,
            "evaluation": evaluations[-1]["step"] if evaluations else old.evaluation,
            "system": readings[-1]["time"] if readings else old.system,
            "outbox": outbox,
        }
        if outbox or old.outbox:
            self._keep(old.model_copy(update=update))
        return bool(outbox)

    def _finish_model(self, running: run.MlflowRun) -> str:
        """Store the finished model and register it; returns its card."""
        output, config = self._folder / history.OUTPUT, self._mlflow
        for name in self._files(output):
            self._store(running, f"{MODEL}/{name}", output / name)
        if config.register_as and not self._state.registered_model:
            registered = running.register(config.register_as, alias=config.alias, folder=MODEL)
            self._keep(self._state.model_copy(update={"registered_model": registered}))
        card = (output / "README.md").read_text(encoding="utf-8")
        return card if len(card) <= content.TAG_LIMIT else card[: content.TAG_LIMIT - 2] + " …"

    def _files(self, output: Path) -> Iterator[str]:
        """Of a full model the weights only if it is to be registered; what was merged never, it can be merged again."""
        try:
            names = durable.read_manifest(output)["files"]
        except durable.Damaged as damage:
            raise Refused(f"the output can't be sent to {self._server.uri}: {damage}") from damage
        full = self._config.method.type == MethodType.FULL
        for name in names:
            weights = full and name.endswith(_WEIGHTS) and not self._mlflow.register_as
            if not weights and not name.startswith(_MERGED):
                yield name

    def _store(self, running: run.MlflowRun, name: str, file: Path) -> None:
        if name not in self._state.artifacts:
            running.file(name, file)
            self._keep(self._state.model_copy(update={"artifacts": (*self._state.artifacts, name)}))

    def _keep(self, new: state.State) -> None:
        """Without room for it the same is sent again after a restart, under the time at which it is read then."""
        self._state = new
        try:
            new.save(self._folder)
        except OSError as error:
            logger.warning("how far MLflow has been told can't be written: %s", error)
