"""The Prometheus families of the operator's own work. Labels are bounded: never a run, a step or a message."""

import time
from collections.abc import Awaitable, Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from finetune_api.status import FineTuneRunStatus
from finetune_operator import failures, runmetrics
from finetune_operator.errors import ConflictError, TransientError
from finetune_operator.names import Key
from finetune_operator.run import Run

PREFIX = "finetune_operator"
_WAITS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600, 72 * 3600)
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

Work = Callable[[Key], Awaitable[float | None]]


class Metrics:
    """The families, and the functions that fill them."""

    def __init__(self, *, version: str, registry: CollectorRegistry | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter, which nothing reads
        self.registry = registry or CollectorRegistry()
        self._reconciles = Histogram(
            f"{PREFIX}_reconcile_duration_seconds",
            "Time of one look at a run, by its result: ok, conflict, retry or error.",
            ["result"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._errors = Counter(
            f"{PREFIX}_reconcile_errors", "Looks at a run that failed unexpectedly.", registry=self.registry
        )
        self._requests = Counter(
            f"{PREFIX}_api_requests",
            "Requests to the API server other than kopf's watches, by verb and status code.",
            ["verb", "code"],
            registry=self.registry,
        )
        self._polls = Counter(
            f"{PREFIX}_poll_failures", "Trainers that didn't tell their progress when asked.", registry=self.registry
        )
        self._resync = Gauge(
            f"{PREFIX}_last_resync_timestamp_seconds", "When all objects were last listed.", registry=self.registry
        )
        self._depth = Gauge(f"{PREFIX}_queue_depth", "Runs that wait for a worker.", registry=self.registry)
        self._leader = Gauge(f"{PREFIX}_leader", "1 if this process acts, 0 if it stands by.", registry=self.registry)
        self._attempts = Counter(f"{PREFIX}_attempts_started", "Attempts begun.", registry=self.registry)
        self._restarts = Counter(
            f"{PREFIX}_restarts",
            "Attempts after the first, by why the one before ended.",
            ["reason"],
            registry=self.registry,
        )
        self._ended = Counter(
            f"{PREFIX}_runs_ended",
            "Runs that have ended, by phase and, if they failed, by why.",
            ["phase", "reason"],
            registry=self.registry,
        )
        self._lost_steps = Counter(
            f"{PREFIX}_lost_steps", "Steps that were done and not saved when an attempt ended.", registry=self.registry
        )
        self._queue_wait = Histogram(
            f"{PREFIX}_queue_wait_seconds",
            "Time from a run's creation to its first pod's start.",
            buckets=_WAITS,
            registry=self.registry,
        )
        Info(f"{PREFIX}_build", "Version of the operator.", registry=self.registry).info({"version": version})
        ProcessCollector(registry=self.registry)

    def watch(self, *, runs: Collector, depth: Callable[[], int]) -> None:
        """What is computed when it is asked for."""
        self.registry.register(runs)
        self._depth.set_function(depth)

    def leads(self) -> None:
        """From now on this process acts. It ends when it no longer may."""
        self._leader.set(1)

    def changed(self, before: FineTuneRunStatus, run: Run) -> None:
        """What was written to a run's status."""
        after = run.status
        if after.attempt > before.attempt:
            self._attempts.inc()
        if after.attempt > before.attempt > 0:
            self._restarts.labels(failures.known(before.failure)).inc()
            self._lost_steps.inc(_unsaved_steps(before))
        if after.is_finished and not before.is_finished:
            self._ended.labels(after.phase or "", failures.known(after.failure) if after.failure else "").inc()
        waited = runmetrics.queue_wait(run)
        if waited is not None and before.start_time is None:
            self._queue_wait.observe(waited)

    def request(self, verb: str, code: str) -> None:
        """A request was answered, or not (`error`)."""
        self._requests.labels(verb, code).inc()

    def poll_failed(self) -> None:
        """A trainer didn't answer."""
        self._polls.inc()

    def resynced(self) -> None:
        """A full list went well."""
        self._resync.set(time.time())

    def timed(self, work: Work) -> Work:
        """`work`, measured."""

        async def measured(key: Key) -> float | None:
            began, result = time.perf_counter(), "error"
            try:
                again = await work(key)
                result = "ok"
            except ConflictError:
                result = "conflict"
                raise
            except TransientError:
                result = "retry"
                raise
            finally:
                self._reconciles.labels(result).observe(time.perf_counter() - began)
                self._errors.inc(result == "error")
            return again

        return measured

    def text(self, accept: str) -> tuple[bytes, str]:
        """All families as a scrape gets them, and their content type. Takes a while, and may be called in a thread."""
        encode, kind = choose_encoder(accept)
        return encode(self.registry), kind


def _unsaved_steps(status: FineTuneRunStatus) -> int:
    """Steps that an attempt has told and no checkpoint has."""
    saved = max((checkpoint.step for checkpoint in status.checkpoints), default=0)
    return max(0, status.progress.batch - saved) if status.progress else 0
