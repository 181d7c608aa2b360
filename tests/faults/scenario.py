"""A scenario: what users and the world do to a run, step by step, as data.

The trainer waits at gates (see `Script.gates`), so a scenario decides what happens in which order, however slow the
machine is, and every run of a scenario makes the operator write the same. A step of YAML is one verb:

    submit: {script: {steps: 2}, spec: {suspend: true}}     create a run; `run:` names it, `r` if nothing does
    patch: {spec: {suspend: false}}                         change a verb of it
    delete: {}      delete-job: {}      lose-pod: {}      evict: {}
    open: [a1.validate, a1.load]                            let the trainer of attempt 1 go on
    until: {started: 1}                     wait for the status, or `gone: true`, `finished: true`, ...
    mark: training                                          rules of a fault may be armed here
    look: {}                                                into the volumes: are all checkpoints whole?
    struck: {}      over: {}                                wait until the fault has begun, and until it is over
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from finetune_api.types import API_VERSION, PLURAL
from finetune_operator.names import ATTEMPT_LABEL, RUN_LABEL
from tests.cluster.api import MERGE, Api, ApiError, Object
from tests.cluster.stage import condition, manifest
from tests.faults.recorder import History

FOLDER = Path(__file__).parent / "scenarios"
RUN = "r"
Step = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenario:
    """One story of a run."""

    name: str
    steps: Sequence[Step]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of the operator that it needs."""
    meanwhile: Sequence[str] = ()
    """What may happen in its `crash` plans while the operator is down, see `meanwhile.py`."""
    varies: Sequence[str] = ()
    """Patterns of paths of the end state (`[[]` for a bracket) that are another from run to run, and may be."""
    most_active: int | None = None
    """So many runs may have a live pod at once."""
    stepwise: bool = False
    """Each gate is opened alone and waited for, so that even writes of progress are the same in every run."""
    sweep: bool = True
    """Whether every write and read of it is a plan."""
    edit: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """A change of the spec that leads to the same end at whatever moment it is made."""

    @property
    def loses_the_run(self) -> bool:
        """Whether the run is gone at the end."""
        return any("gone" in step.get("until", {}) for step in self.steps)

    @classmethod
    def read(cls, name: str) -> Scenario:
        """Of `scenarios/NAME.yaml`."""
        return cls(name=name, **yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


def names() -> Sequence[str]:
    """All there are."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


class Late(Exception):
    """What a step waited for didn't come in time."""


class Play:
    """One scenario in one namespace."""

    def __init__(
        self,
        api: Api,
        *,
        namespace: str,
        history: History,
        gates: Path,
        reached: Callable[[str], None],
        deadline: Callable[[float], float],
        fault: Callable[..., Awaitable[None]],
        look: Callable[[], Awaitable[None]],
        image: str,
    ) -> None:
        self._api, self._namespace, self.history = api, namespace, history
        self._gates, self._reached, self._deadline = gates, reached, deadline
        self._fault, self._look = fault, look
        self._image = image
        self.deleted: set[str] = set()

    async def run(self, steps: Sequence[Step]) -> None:
        """All steps; raises Late."""
        for number, step in enumerate(steps, start=1):
            ((verb, what),) = step.items()
            if verb == "until":
                await self._until(number, what)
            elif verb == "mark":
                self._reached(what)
            elif verb in ("struck", "over"):
                await self._fault(over=verb == "over")
            elif verb == "look":
                await self._look()
            elif verb == "open":
                self.open(*([what] if isinstance(what, str) else what))
            else:
                do = getattr(self, verb.replace("-", "_"))
                await do(**what)

    def open(self, *gates: str) -> None:
        """Let a trainer go on; another run's is written `run:gate`."""
        for gate in gates:
            run, _, name = gate.rpartition(":")
            self._gates_of(run or RUN).joinpath(name).touch()

    def _gates_of(self, run: str) -> Path:
        folder = self._gates / run
        folder.mkdir(exist_ok=True)
        return folder

    async def submit(
        self, *, run: str = RUN, script: Mapping[str, Any] | None = None, spec: Mapping[str, Any] | None = None
    ) -> None:
        """Create a run."""
        played = json.dumps({"gates": str(self._gates_of(run)), "step_seconds": 0, **(script or {})})
        body = {"metadata": {"name": f"{run}-script"}, "data": {"script.json": played}}
        await self._api.create(f"/api/v1/namespaces/{self._namespace}/configmaps", body)
        wanted = {**(spec or {}), **({"trainer": {"image": self._image}} if self._image else {})}
        await self._api.request("POST", self._path(), body=manifest(run, **wanted))
        self.deleted.discard(run)

    async def patch(self, *, spec: Mapping[str, Any], run: str = RUN) -> None:
        """Change a verb; of a run that was deleted meanwhile there is nothing to change."""
        try:
            await self._api.request("PATCH", self._path(run), body={"spec": spec}, content_type=MERGE)
        except ApiError as error:
            if error.code != 404 or run not in self.deleted:
                raise

    async def delete(self, *, run: str = RUN) -> None:
        """As `kubectl delete` does."""
        self.deleted.add(run)
        await self._if_there("DELETE", self._path(run), propagationPolicy="Background")

    async def delete_job(self, *, attempt: int = 1, run: str = RUN) -> None:
        """Somebody deletes the Job under the training."""
        path = f"/apis/batch/v1/namespaces/{self._namespace}/jobs/{run}-{attempt}"
        await self._if_there("DELETE", path, propagationPolicy="Background")

    async def lose_pod(self, *, attempt: int = 1, run: str = RUN) -> None:
        """The pod is gone without a word, as with its node."""
        for pod in self.pods(run, attempt):
            path = f"/api/v1/namespaces/{self._namespace}/pods/{pod['metadata']['name']}"
            await self._if_there("DELETE", path, gracePeriodSeconds="0")

    async def evict(self, *, attempt: int = 1, run: str = RUN) -> None:
        """As a drain of the node does."""
        for pod in self.pods(run, attempt):
            name = pod["metadata"]["name"]
            path = f"/api/v1/namespaces/{self._namespace}/pods/{name}/eviction"
            body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
            await self._if_there("POST", path, body=body)

    def _path(self, run: str = "") -> str:
        return f"/apis/{API_VERSION}/namespaces/{self._namespace}/{PLURAL}" + (f"/{run}" if run else "")

    async def _if_there(self, verb: str, path: str, **more: Any) -> None:
        """Of what goes away by itself: it may be gone by now."""
        try:
            await self._api.request(verb, path, **more)
        except ApiError as error:
            if error.code != 404:
                raise

    def pods(self, run: str, attempt: int | None = None) -> Sequence[Object]:
        """Its pods as they are now."""
        labels = {RUN_LABEL: run} | ({ATTEMPT_LABEL: str(attempt)} if attempt else {})
        return [pod for pod in self.history.there("pod") if labels.items() <= pod["metadata"]["labels"].items()]

    def status(self, run: str = RUN) -> Object | None:
        """The run's status now, None if there is no such run."""
        found = self.history.named("run", run)
        return None if found is None else found.get("status", {})

    async def _until(self, number: int, wanted: Mapping[str, Any]) -> None:
        run = wanted.get("run", RUN)
        if run in self.deleted and "gone" not in wanted:
            return
        began = time.monotonic()
        if not await self.history.until(lambda: self._holds(run, wanted), deadline=lambda: self._deadline(began)):
            said = json.dumps(_summary(self.status(run)))
            raise Late(f"step {number}, until {json.dumps(dict(wanted))}: not in time; status: {said}")

    def _holds(self, run: str, wanted: Mapping[str, Any]) -> bool:
        status = self.status(run)
        if "gone" in wanted:
            left = [job for job in self.history.there("job") if job["metadata"]["labels"].get(RUN_LABEL) == run]
            return status is None and not left and not self.pods(run)
        if run in self.deleted:
            return True
        return status is not None and all(_holds(status, key, value) for key, value in wanted.items() if key != "run")


def _holds(status: Object, key: str, value: Any) -> bool:
    """Whether a status is as wanted, or further."""
    match key:
        case "event":
            return value in [event["type"] for event in status.get("events", ())]
        case "attempt":
            return int(status.get("attempt", 0)) >= int(value)
        case "started":
            return any(e["type"] == "STARTED" and e.get("attempt", 0) >= value for e in status.get("events", ()))
        case "batch":
            return int(status.get("progress", {}).get("batch", 0)) >= int(value)
        case "phase":
            return bool(status.get("phase") == value)
        case "finished":
            return condition(status, "Finished").get("status") == "True"
        case _:
            raise ValueError(f"until: {key} is none of event, attempt, started, batch, phase, finished, gone")


def _summary(status: Object | None) -> Object | None:
    """What of a status tells how far its run is."""
    if status is None:
        return None
    told = [event["type"] for event in status.get("events", ())]
    short = {key: status.get(key) for key in ("phase", "attempt", "progress", "failure", "queue")}
    return {**{key: value for key, value in short.items() if value}, "events": told}
