"""Every Prometheus family of the operator. Labels are bounded: never a run, a namespace or a path."""

import time
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_api.status import Phase
from finetune_operator.errors import ConflictError, TransientError
from finetune_operator.names import Key

PREFIX = "finetune_operator"
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
        Info(f"{PREFIX}_build", "Version of the operator.", registry=self.registry).info({"version": version})
        ProcessCollector(registry=self.registry)

    def watch(self, *, phases: Callable[[], Iterable[str]], depth: Callable[[], int]) -> None:
        """What is computed when it is asked for."""
        self.registry.register(_Runs(phases))
        self._depth.set_function(depth)

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

    def serve(self, *, address: str, port: int) -> int:
        """Answer GET /metrics from a thread of its own, for as long as the process lives. Returns the port."""
        host = address or "0.0.0.0"  # noqa: S104 - a setting
        try:
            server, _ = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise OSError(error.errno, f"can't listen on {host} port {port} for metrics: {error.strerror}") from error
        return int(server.server_port)


class _Runs(Collector):
    """Runs by phase: every phase always has a value, so that alerts can compare."""

    def __init__(self, phases: Callable[[], Iterable[str]]) -> None:
        self._phases = phases

    def collect(self) -> Iterator[GaugeMetricFamily]:
        found = Tally(self._phases())
        family = GaugeMetricFamily(f"{PREFIX}_runs", "FineTuneRuns by phase.", labels=["phase"])
        for phase in Phase:
            family.add_metric([phase.value], found[phase.value])
        yield family
