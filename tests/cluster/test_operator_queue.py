"""The operator's own limits on active runs, on real Kubernetes: never exceeded, in order, and told."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from finetune_operator import admission, failures
from tests.cluster import operatorprocess
from tests.cluster.audit import AuditLog
from tests.cluster.conftest import Kubectl
from tests.cluster.operatorprocess import USER, OperatorProcess
from tests.cluster.stage import QUICK, Object, Stage, condition

pytestmark = pytest.mark.cluster

LONG = {"steps": 3000, "step_seconds": 0.1}
ACTIVE = ("Starting", "Running")


@pytest.fixture
def two_at_once(operator_account: Path, tmp_path: Path, namespace: str) -> Iterator[OperatorProcess]:
    settings = {**QUICK, "max_active_runs_per_namespace": 2, "max_active_devices": "nvidia.com/gpu=1"}
    with operatorprocess.running(operator_account, folder=tmp_path, namespaces=[namespace], **settings) as running:
        yield running


def is_phase(phase: str) -> Any:
    return lambda status: status.get("phase") == phase


def test_runs_wait_for_their_turn_by_priority_then_age(
    stage: Stage, two_at_once: OperatorProcess, kubectl: Kubectl
) -> None:
    for name in ("one", "two"):
        stage.submit(name, script=LONG)
        stage.until(name, is_phase("Running"))
    time.sleep(1)  # Kubernetes counts ages in whole seconds
    for name, priority in (("third", 0), ("fourth", 0), ("urgent", 5)):
        stage.submit(name, script=LONG, queue={"priority": priority})
        stage.until(name, is_phase("Queued"))
    status = stage.status("fourth")
    admitted = condition(status, "Admitted")
    assert admitted["reason"] == admission.NAMESPACE_LIMIT
    assert admitted["message"] == f"2 runs of namespace {stage.namespace} are active, no more may be."
    assert stage.events("fourth") == ["CREATED", "QUEUED"]
    assert stage.attempts("fourth") == []
    shown = kubectl("get", "ftr", "urgent", "-n", stage.namespace, "-o", "wide").splitlines()[1].split()
    assert shown[1] == "Queued"
    assert stage.status("urgent")["queue"]["position"] == 1

    stage.change("one", cancel=True)
    stage.until("urgent", is_phase("Running"))
    assert stage.status("third")["phase"] == stage.status("fourth")["phase"] == "Queued"
    stage.change("fourth", queue={"priority": 9})
    stage.change("two", suspend=True)
    stage.until("fourth", is_phase("Running"))
    assert stage.status("third")["phase"] == "Queued"

    stage.change("two", suspend=False)
    stage.until("two", is_phase("Queued"))  # what is resumed waits for its turn like all others
    stage.delete("urgent")
    stage.until("two", is_phase("Running"))  # it is older than the third
    assert stage.status("third")["phase"] == "Queued"


def test_devices_of_the_cluster_have_a_limit(stage: Stage, two_at_once: OperatorProcess) -> None:
    stage.submit("gpu", script=LONG, resources={"deviceResource": "nvidia.com/gpu"})
    stage.until("gpu", is_phase("Running"))
    stage.submit("another", script={}, resources={"deviceResource": "nvidia.com/gpu"})
    status = stage.until("another", is_phase("Queued"))
    assert condition(status, "Admitted")["reason"] == admission.DEVICE_LIMIT
    stage.submit("cpu")
    assert stage.finished("cpu")["phase"] == "Completed", "what asks for no device passes"
    stage.change("gpu", cancel=True)
    assert stage.finished("another")["phase"] == "Completed"


def test_a_run_that_never_fits_is_refused(operator_account: Path, tmp_path: Path, stage: Stage) -> None:
    settings = {**QUICK, "max_active_devices": "nvidia.com/gpu=0"}
    with operatorprocess.running(operator_account, folder=tmp_path, namespaces=[stage.namespace], **settings):
        stage.submit("greedy", resources={"deviceResource": "nvidia.com/gpu"})
        failure = stage.finished("greedy")["failure"]
    assert failure["reason"] == failures.LIMIT_EXCEEDED
    assert failure["message"].startswith("spec.resources asks for 1 nvidia.com/gpu")


def test_the_limit_holds_at_every_instant_while_operators_come_and_go(
    stage: Stage, two_at_once: OperatorProcess, audit_log: AuditLog
) -> None:
    """An operator is killed again and again, another takes its place; every status that was written counts."""
    mark, names = audit_log.mark(), [f"run-{number:02}" for number in range(12)]
    for name in names:
        stage.submit(name, script={"steps": 4, "step_seconds": 0.1})
    for _ in range(4):
        time.sleep(1.5)
        two_at_once.kill()
        two_at_once.start()
    for name in names:
        assert stage.finished(name, seconds=90)["phase"] == "Completed"
    counts = list(active_after_each(audit_log.writes(mark, user=USER, namespace=stage.namespace)))
    assert max(counts) == 2
    assert counts[-1] == 0


def active_after_each(written: Sequence[Object]) -> Iterator[int]:
    """How many runs were active after each status that was written."""
    active: set[str] = set()
    for record in written:
        if record["objectRef"].get("subresource") != "status":
            continue
        name, status = record["objectRef"]["name"], record["requestObject"]["status"]
        (active.discard if condition(status, "Finished").get("status") == "True" else active.add)(name)
        if not status.get("attempt"):
            active.discard(name)
        yield len(active)
