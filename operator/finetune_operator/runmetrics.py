"""The Prometheus families that tell of runs: series for each that is active or has just ended, sums of the others.

A run's last values stay for a grace that scrapes can catch, then its series end. Labels are a run's namespace and name;
a step, a loss or a message is never one. Runs that wait are counted, not listed, so that a long queue costs nothing.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from finetune_api.snapshot import EventType, Snapshot
from finetune_api.status import ConditionStatus, ConditionType, Phase, Progress
from finetune_operator import admission, failures, kueue, progress
from finetune_operator.run import Run
from finetune_operator.settings import Limits

PREFIX = "finetune_run"
OPERATOR = "finetune_operator"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A run, and what its trainer last said."""

    run: Run
    snapshot: Snapshot | None = None

    @cached_property
    def progress(self) -> Progress | None:
        """How far it is, as fresh as it can be had; most families ask for it."""
        status = self.run.status
        said = self.snapshot
        if said is None or status.is_finished or said.attempt != status.attempt:
            return status.progress
        return progress.fold(status.progress, said)


Value = Callable[[Seen, datetime], float | None]


def _decimal(name: str) -> Value:
    def value(seen: Seen, _: datetime) -> float | None:
        found = None if seen.progress is None else getattr(seen.progress, name)
        return None if found is None else float(found)

    return value


def _time(name: str) -> Value:
    def value(seen: Seen, _: datetime) -> float | None:
        found: datetime | None = getattr(seen.run.status, name)
        return None if found is None else found.timestamp()

    return value


def _last_step(seen: Seen, _: datetime) -> float | None:
    time = seen.progress and seen.progress.last_step_time
    return time.timestamp() if time else None


def _last_checkpoint(seen: Seen, _: datetime) -> float | None:
    saved = seen.run.status.checkpoints
    return saved[-1].time.timestamp() if saved else None


def _checkpoint_size(seen: Seen, _: datetime) -> float | None:
    saved = seen.run.status.checkpoints
    return float(saved[-1].size_bytes) if saved else None


def _ratio(seen: Seen, _: datetime) -> float | None:
    found = seen.progress
    done, total = (0, 0) if found is None else (found.batch, found.total_batches)
    return done / total if total else None


def _degraded(seen: Seen, _: datetime) -> float:
    condition = seen.run.status.condition(ConditionType.DEGRADED)
    return float(condition is not None and condition.status == ConditionStatus.TRUE)


def _tracking_failing(seen: Seen, _: datetime) -> float | None:
    tracking = seen.run.status.tracking
    return None if tracking is None else float(bool(tracking.problem))


def queue_wait(run: Run) -> float | None:
    """Seconds from a run's creation to its first pod's start; None before."""
    created, started = run.metadata.creation_timestamp, run.status.start_time
    return None if created is None or started is None else max(0.0, (started - created).total_seconds())


def goodput(seen: Seen, now: datetime) -> float | None:
    """Seconds in steps that count, over those since the first pod ran, pauses left out.

    Starts, restarts, saves that stop the training, evaluations, and steps that were lost and done again are the rest.
    """
    status, found = seen.run.status, seen.progress
    if status.start_time is None or found is None or found.step_seconds is None:
        return None
    wall = ((status.completion_time or now) - status.start_time).total_seconds() - _paused_seconds(seen.run, now)
    return min(1.0, found.step_seconds / wall) if wall > 0 else None


def _paused_seconds(run: Run, now: datetime) -> float:
    """How long it was paused, as far as its history tells."""
    total, since = 0.0, None
    for event in run.status.events:
        if event.type == EventType.SUSPENDED:
            since = event.time
        elif event.type in {EventType.RESUMED, EventType.STARTED} and since is not None:
            total, since = total + (event.time - since).total_seconds(), None
    return total + ((run.status.completion_time or now) - since).total_seconds() if since else total


FAMILIES: tuple[tuple[str, str, Value], ...] = (
    ("attempt", "Number of the newest attempt, counted from 1.", lambda seen, _: float(seen.run.status.attempt)),
    ("step", "Optimizer steps done, over all attempts.", _decimal("batch")),
    ("steps_planned", "Optimizer steps in all.", _decimal("total_batches")),
    ("epoch", "Epoch now, counted from 1.", _decimal("epoch")),
    ("progress_ratio", "Share of all steps that is done, 0 to 1.", _ratio),
    ("eta_seconds", "Seconds to the last step at this attempt's rate.", _decimal("eta_seconds")),
    ("loss", "Loss of the last step, mean over its learned tokens, in nats.", _decimal("loss")),
    ("eval_loss", "Loss of the last evaluation, in nats.", _decimal("eval_loss")),
    ("learning_rate", "Learning rate of the last step.", _decimal("learning_rate")),
    ("trained_tokens", "Non-padding tokens trained on, over all attempts.", _decimal("tokens")),
    (
        "tokens_per_second_per_device",
        "Non-padding tokens a second and device, over the last 20 steps.",
        _decimal("tokens_per_second_per_device"),
    ),
    ("device_utilization_ratio", "Share of time in which the device was busy.", _decimal("device_utilization")),
    (
        "device_memory_used_bytes",
        "Memory used on the device; on CPU the process's resident memory.",
        _decimal("device_memory_bytes"),
    ),
    ("data_wait_ratio", "Share of step time spent waiting for data, 0 to 1.", _decimal("data_wait_ratio")),
    (
        "mfu_ratio",
        "Model FLOPs utilization, 0 to 1; no series where the device's peak isn't known.",
        _decimal("mfu_ratio"),
    ),
    ("last_step_timestamp_seconds", "When the last step ended.", _last_step),
    ("last_checkpoint_timestamp_seconds", "When the newest checkpoint was complete.", _last_checkpoint),
    ("last_checkpoint_size_bytes", "Size of the newest checkpoint.", _checkpoint_size),
    ("goodput_ratio", "Seconds in steps that count over those since the first pod ran, 0 to 1.", goodput),
    ("queue_wait_seconds", "Seconds from creation to the first pod's start.", lambda seen, _: queue_wait(seen.run)),
    (
        "active_seconds",
        "Seconds in which a pod ran, over all attempts.",
        lambda s, _: float(s.run.status.active_seconds),
    ),
    (
        "restarts_without_progress",
        "Attempts in a row that ended without a newer checkpoint.",
        lambda seen, _: float(seen.run.status.restarts_without_progress),
    ),
    ("degraded", "1 if something is wrong with a run that goes on, as its condition Degraded says.", _degraded),
    (
        "tracking_failing",
        "1 if MLflow doesn't take what it is sent, as status.tracking says; no series without MLflow.",
        _tracking_failing,
    ),
    ("start_timestamp_seconds", "When the first pod ran.", _time("start_time")),
    ("completion_timestamp_seconds", "When the run ended.", _time("completion_time")),
)
"""Name without prefix, meaning, value; no series where there is no value."""


class Runs(Collector):
    """Runs as they are when it is asked."""

    def __init__(
        self,
        runs: Callable[[], Iterable[tuple[Run, Snapshot | None]]],
        *,
        limits: Limits,
        clock: Callable[[], datetime],
        grace_seconds: float,
    ) -> None:
        self._runs = runs
        self._limits = limits
        self._clock = clock
        self._grace = timedelta(seconds=grace_seconds)

    def collect(self) -> Iterator[GaugeMetricFamily | InfoMetricFamily]:
        """All families."""
        now, runs = self._clock(), [Seen(run=run, snapshot=said) for run, said in self._runs()]
        yield from _sums([seen.run for seen in runs], self._limits)
        listed = [seen for seen in runs if self._is_listed(seen.run, now)]
        yield _info(listed)
        yield _phases(listed)
        yield _failures(listed)
        for name, meaning, value in FAMILIES:
            family = GaugeMetricFamily(f"{PREFIX}_{name}", meaning, labels=["namespace", "run"])
            for seen in listed:
                found = value(seen, now)
                if found is not None:
                    family.add_metric([*seen.run.key], found)
            yield family

    def _is_listed(self, run: Run, now: datetime) -> bool:
        """Whether it has begun, and hasn't ended long ago."""
        if run.status.attempt == 0:
            return False
        return run.status.completion_time is None or now - run.status.completion_time <= self._grace


def _sums(runs: list[Run], limits: Limits) -> Iterator[GaugeMetricFamily]:
    phases = Tally(run.status.phase or Phase.PENDING for run in runs)
    counted = GaugeMetricFamily(f"{OPERATOR}_runs", "FineTuneRuns by phase.", labels=["phase"])
    for phase in Phase:
        counted.add_metric([phase.value], phases[phase])
    yield counted
    active = [run for run in runs if admission.is_active(run) and not _waits_in_kueue(run)]
    waiting = [run for run in runs if admission.is_waiting(run) or _waits_in_kueue(run)]
    namespaces = sorted({run.key.namespace for run in runs})
    yield _by_namespace("active_runs", "Runs that are active.", active, namespaces)
    yield _by_namespace("waiting_runs", "Runs that wait for their turn.", waiting, namespaces)
    oldest = GaugeMetricFamily(
        f"{OPERATOR}_oldest_waiting_run_timestamp_seconds",
        "When the run that has waited longest for its turn was created.",
        labels=["namespace"],
    )
    created: dict[str, datetime] = {}
    for run in waiting:
        time = run.metadata.creation_timestamp
        if time is not None:
            created[run.key.namespace] = min(time, created.get(run.key.namespace, time))
    for namespace, time in sorted(created.items()):
        oldest.add_metric([namespace], time.timestamp())
    yield oldest
    yield from _devices(active, limits)


def _waits_in_kueue(run: Run) -> bool:
    """Its attempt is recorded, and its Job has no devices."""
    return kueue.concerns(run.spec) and run.status.phase is Phase.QUEUED


def _by_namespace(name: str, meaning: str, runs: list[Run], namespaces: list[str]) -> GaugeMetricFamily:
    """So many in each namespace: 0 where all have ended, so that alerts can compare."""
    family = GaugeMetricFamily(f"{OPERATOR}_{name}", meaning, labels=["namespace"])
    found = Tally(run.key.namespace for run in runs)
    for namespace in namespaces:
        family.add_metric([namespace], found[namespace])
    return family


def _devices(active: list[Run], limits: Limits) -> Iterator[GaugeMetricFamily]:
    used = Tally[str]()
    for run in active:
        resource, count = admission.devices(run)
        if resource:
            used[resource] += count
    in_use = GaugeMetricFamily(f"{OPERATOR}_active_devices", "Devices of active runs.", labels=["resource"])
    for resource in sorted({*used, *limits.devices}):
        in_use.add_metric([resource], used[resource])
    yield in_use
    limit = GaugeMetricFamily(f"{OPERATOR}_active_devices_limit", "Devices that may be in use.", labels=["resource"])
    for resource, most in sorted(limits.devices.items()):
        limit.add_metric([resource], most)
    yield limit
    runs = GaugeMetricFamily(
        f"{OPERATOR}_active_runs_limit", "Runs of a namespace that may be active; none: no series."
    )
    if limits.runs_per_namespace is not None:
        runs.add_metric([], limits.runs_per_namespace)
    yield runs


def _info(runs: list[Seen]) -> InfoMetricFamily:
    family = InfoMetricFamily(PREFIX, "What a run is.", labels=["namespace", "run"])
    for seen in runs:
        spec = seen.run.spec
        about = {"uid": seen.run.metadata.uid, "task": "", "model": "", "method": "", "queue": ""}
        if spec is not None:
            about["task"] = str(spec.task)
            about["model"] = spec.model.uri if spec.model else ""
            about["method"] = str(spec.method.type)
            about["queue"] = spec.queue.name or ""
        family.add_metric([*seen.run.key], about)
    return family


def _phases(runs: list[Seen]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        f"{PREFIX}_phase", "1 for the phase that the run is in.", labels=["namespace", "run", "phase"]
    )
    for seen in runs:
        family.add_metric([*seen.run.key, (seen.run.status.phase or Phase.PENDING).value], 1)
    return family


def _failures(runs: list[Seen]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        f"{PREFIX}_failure", "1 for why the run, or its last attempt, failed.", labels=["namespace", "run", "reason"]
    )
    for seen in runs:
        if seen.run.status.failure is not None:
            family.add_metric([*seen.run.key, failures.known(seen.run.status.failure)], 1)
    return family
