"""Builders of what the operator sees: runs, Jobs, pods, snapshots, and the World of them.

Each has defaults for all but the point of the test.
"""

import dataclasses
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from finetune_api.snapshot import (
    EventType,
    LastError,
    Milestone,
    MilestoneType,
    SavedCheckpoint,
    SavedOutput,
    Snapshot,
    TrainProgress,
)
from finetune_api.status import FineTuneRunStatus
from finetune_operator import sources
from finetune_operator.admission import Line
from finetune_operator.cache import Cache
from finetune_operator.children import Claim, Job, Pod
from finetune_operator.names import Key
from finetune_operator.reconcile import Cluster, Reconciler
from finetune_operator.run import Run
from finetune_operator.settings import Limits, Settings
from finetune_operator.world import World
from tests import builders

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
UID = "6c3f2a1e-5d7b-4c89-9e01-23456789abcd"
Result = TypeVar("Result")

KEY = Key("ml", "support-bot")
SETTINGS = Settings()


def at(seconds: float) -> datetime:
    """So many seconds after NOW."""
    return NOW + timedelta(seconds=seconds)


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def finish(work: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    raise AssertionError("it waits for something")


def body(changes: Mapping[str, Any] | None = None, *, status: Any = None, **metadata: Any) -> dict[str, Any]:
    """A FineTuneRun as the API server sends it, with changes of its spec by dotted path: {"method.type": "Full"}."""
    manifest = builders.run(KEY.name, namespace=KEY.namespace)
    for path, value in (changes or {}).items():
        nested = value
        for part in reversed(path.split(".")):
            nested = {part: nested}
        manifest["spec"] = builders.merged(manifest["spec"], nested)
    wire = status.to_wire() if isinstance(status, FineTuneRunStatus) else status or {"observedGeneration": -1}
    known = {"uid": UID, "generation": 1, "resourceVersion": "7", "creationTimestamp": "2026-03-01T12:00:00Z"}
    return builders.merged(manifest, {"metadata": known | metadata}) | {"status": wire}


def run(changes: Mapping[str, Any] | None = None, *, status: Any = None, **metadata: Any) -> Run:
    """A run."""
    return Run.parse(body(changes, status=status, **metadata))


_JOB = Job(
    name=f"{KEY.name}-1",
    uid="job-1",
    attempt=1,
    active=1,
    terminating=0,
    suspended=False,
    complete=False,
    failed=False,
    reason="",
    message="",
    created=at(2),
    finished=None,
    deleted=False,
)
_POD = Pod(
    name=f"{KEY.name}-1-abcde",
    uid="pod-1",
    job_uid="job-1",
    attempt=1,
    phase="Pending",
    ip="",
    node="",
    created=at(3),
    started=None,
    finished=None,
    exit_code=None,
    exit_reason="",
    last_word="",
    waiting_reason="",
    waiting_message="",
    unschedulable="",
    unschedulable_since=None,
    disrupted="",
    deletion=None,
)


def job(attempt: int = 1, **changes: Any) -> Job:
    """A Job that is under way."""
    name = f"{KEY.name}-{attempt}"
    return dataclasses.replace(_JOB, name=name, uid=f"job-{attempt}", attempt=attempt, **changes)


def pod(attempt: int = 1, **changes: Any) -> Pod:
    """A pod that is being made."""
    known = {"name": f"{KEY.name}-{attempt}-abcde", "uid": f"pod-{attempt}", "job_uid": f"job-{attempt}"}
    return dataclasses.replace(_POD, **(known | {"attempt": attempt} | changes))


def running(attempt: int = 1, **changes: Any) -> Pod:
    """A pod that runs, since five seconds after NOW."""
    known = {"phase": "Running", "started": at(5), "node": "node-1", "ip": "10.0.0.7"}
    return pod(attempt, **(known | changes))


def ended(exit_code: int, attempt: int = 1, **changes: Any) -> Pod:
    """A pod whose container has ended, a minute after NOW."""
    known = {
        "phase": "Failed" if exit_code else "Succeeded",
        "exit_code": exit_code,
        "exit_reason": "Error" if exit_code else "Completed",
        "finished": at(60),
    }
    return running(attempt, **(known | changes))


def claim(**changes: Any) -> Claim:
    """The run's claim, bound."""
    known = {"name": f"{KEY.name}-{UID[:8]}", "uid": "claim-1", "phase": "Bound"}
    return Claim(**({"storage_class": None, "run_uid": UID, "created": at(1)} | known | changes))


def progress(batch: int = 5, **changes: Any) -> TrainProgress:
    """So many steps of twenty done."""
    known: dict[str, Any] = {
        "epoch": 1,
        "total_epochs": 1,
        "batch": batch,
        "total_batches": 20,
        "tokens": batch * 1000,
        "eta_seconds": (20 - batch) * 3,
        "loss": 2.5 - batch / 20,
        "last_step_time": at(10 + batch),
    }
    return TrainProgress(**(known | changes))


def saved(step: int = 5, **changes: Any) -> SavedCheckpoint:
    """A checkpoint."""
    known: dict[str, Any] = {
        "name": f"ep1-ba{step}",
        "step": step,
        "time": at(10 + step),
        "size_bytes": 1_500_000,
        "path": f"checkpoints/ep1-ba{step}",
        "sha256": "ab" * 32,
    }
    return SavedCheckpoint(**(known | changes))


def milestone(kind: MilestoneType, seconds: float = 8) -> Milestone:
    """Something that happens once in an attempt."""
    return Milestone(type=kind, time=at(seconds), message=f"{kind.value} said so.")


def snapshot(batch: int | None = 5, *, attempt: int = 1, **changes: Any) -> Snapshot:
    """What a trainer answers after so many steps; None before the first."""
    known: dict[str, Any] = {
        "run_uid": UID,
        "attempt": attempt,
        "sequence": (batch or 0) + 1,
        "time": at(10 + (batch or 0)),
        "milestones": (milestone(EventType.DATA_VALIDATED, 7), milestone(EventType.MODEL_INITIALIZED, 9)),
        "progress": None if batch is None else progress(batch),
    }
    return Snapshot(**(known | changes))


def last_word(exit_code: int = 0, *, message: str = "It is broken.", reason: str = "Broken", **changes: Any) -> str:
    """The termination message of a trainer that trained to the end, or has an error to tell."""
    error = LastError(reason=reason, message=message, exit_code=exit_code) if exit_code else None
    output = None if exit_code else SavedOutput(path="output", checkpoint="ep1-ba20")
    return snapshot(20, **({"error": error, "output": output} | changes)).last_word()


def world(run_: Run | None = None, /, **changes: Any) -> World:
    """All that one pass knows."""
    found = run_ or run()
    known = {"now": NOW, "model": sources.resolve(found, lambda _: None)}
    return World(run=found, **(known | changes))


def cache() -> Cache:
    """An empty one, without limits."""
    return Cache(line=Line(Limits()))


def status(attempt: int = 1, *, started: bool = False, **changes: Any) -> FineTuneRunStatus:
    """The status of a run whose attempt is recorded, and perhaps known to have started."""
    found: dict[str, Any] = {"observedGeneration": 1, "phase": "Running" if started else "Starting", "attempt": attempt}
    events: list[dict[str, Any]] = [{"sequence": 1, "type": "CREATED", "time": NOW, "message": "Run created."}]
    if started:
        events.append({"sequence": 2, "type": "STARTED", "time": at(5), "message": "Started.", "attempt": attempt})
        found["startTime"] = at(5)
    return FineTuneRunStatus.model_validate(found | {"events": events} | changes)


def reconciler(cluster: Cluster, *, line: Line, clock: Callable[[], datetime]) -> Reconciler:
    """One whose pauses are not random."""
    return Reconciler(cluster, line=line, settings=SETTINGS, clock=clock, jitter=lambda: 0.5)
