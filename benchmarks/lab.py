"""What the operator's benchmarks share: a real control plane, an operator with its usual settings, figures."""

from __future__ import annotations

import contextlib
import datetime
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster import controlplane, node, operatorprocess, stage
from tests.cluster.controlplane import ControlPlane
from tests.cluster.operatorprocess import OperatorProcess
from tests.cluster.podspec import Image
from tests.cluster.stage import Stage


@contextlib.contextmanager
def trainings(
    *, images: Mapping[str, Image] | None = None, **settings: object
) -> Iterator[tuple[ControlPlane, OperatorProcess]]:
    """A whole cluster: the stub trainer, and other `images`, run as processes of one node."""
    with controlplane.start() as plane, tempfile.TemporaryDirectory() as folder:
        operatorprocess.install(plane)
        machine = node.Settings(
            kubeconfig=plane.node_kubeconfig,
            images={stage.STUB_IMAGE: stage.STUB, **(images or {})},
            folder=plane.folder / "node",
            machines=(node.Machine(cpu="64"),),
            certificate=plane.serving_certificate,
        )
        chosen = {"trainer_image": stage.STUB_IMAGE, "max_active_runs_per_namespace": "", **settings}
        with node.running(machine), _operator(plane, Path(folder), chosen) as operator:
            yield plane, operator


@contextlib.contextmanager
def objects_alone(**settings: object) -> Iterator[tuple[ControlPlane, OperatorProcess]]:
    """An API server without controllers and nodes: nothing runs but what the benchmark pretends."""
    with controlplane.start(controllers=False) as plane, tempfile.TemporaryDirectory() as folder:
        operatorprocess.install(plane)
        with _operator(plane, Path(folder), settings) as operator:
            yield plane, operator


@contextlib.contextmanager
def _operator(plane: ControlPlane, folder: Path, settings: Mapping[str, Any]) -> Iterator[OperatorProcess]:
    account = operatorprocess.account(plane)
    with operatorprocess.running(account, folder=folder, namespaces=(), **settings) as operator:
        stage.until(operator.healthy, bool, what="the operator's health")
        yield operator


def volume(plane: ControlPlane, ground: Stage, run: str) -> Path:
    """The folder of this machine that a run's claim is bound to."""
    claim = ground.status(run)["output"]["uri"].removeprefix("pvc://").partition("/")[0]
    api = plane.api()
    path = f"/api/v1/namespaces/{ground.namespace}/persistentvolumeclaims/{claim}"
    name = api.request("GET", path)["spec"]["volumeName"]
    spec = api.request("GET", f"/api/v1/persistentvolumes/{name}")["spec"]
    return Path(str((spec.get("hostPath") or spec.get("local"))["path"]))


def moment(text: str) -> datetime.datetime:
    """A time of the audit log, or of a snapshot."""
    return datetime.datetime.fromisoformat(text)


def figures(values: Sequence[float]) -> dict[str, float]:
    """Mean, median, 99th percentile and maximum."""
    ranked = sorted(values)
    last = ranked[min(len(ranked) - 1, round(0.99 * len(ranked)))]
    middle, mean = statistics.median(ranked), statistics.fmean(ranked)
    return {"mean": round(mean, 3), "p50": round(middle, 3), "p99": round(last, 3), "max": round(ranked[-1], 3)}


def footprint(operator: OperatorProcess) -> dict[str, float]:
    """CPU seconds and memory of the operator's process, as it tells itself."""
    found = dict(line.split() for line in operator.metrics().splitlines() if line.startswith("process_"))
    return {
        "operatorCpuSeconds": float(found["process_cpu_seconds_total"]),
        "operatorMemoryMiB": round(float(found["process_resident_memory_bytes"]) / 2**20, 1),
    }
