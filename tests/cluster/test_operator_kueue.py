"""Runs in a queue of the real Kueue: they wait, are let in, are preempted and go on, on a real control plane.

`make kueue` builds Kueue; without it these tests are skipped, and fail where CI is set.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from finetune_operator import failures, kueue
from tests import tiny_model
from tests.cluster import realtrainer
from tests.cluster.audit import AuditLog
from tests.cluster.conftest import Kubectl
from tests.cluster.controlplane import ControlPlane
from tests.cluster.operatorprocess import USER, OperatorProcess
from tests.cluster.podspec import Image
from tests.cluster.stage import Object, Stage, condition, until
from tests.kueue import build
from tests.kueue.manager import Manager, installed
from tests.kueue.queues import NAME, Queue, queue

pytestmark = pytest.mark.cluster

LONG = {"steps": 3000, "step_seconds": 0.1}
SHORT = {"steps": 20, "step_seconds": 0.1}
IN_QUEUE: dict[str, Any] = {"queue": {"name": NAME}}
EXAMPLE = Path(__file__).parents[2] / "examples" / "kueue"
PATIENCE = 180.0
"""Seconds; Kueue looks at what it has evicted again after a second, and at its queues when something changes."""


@pytest.fixture(scope="module")
def binary() -> build.Kueue:
    found = build.found()
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("Kueue isn't built: make kueue", pytrace=False)
        pytest.skip("Kueue isn't built: make kueue")
    return found


@pytest.fixture(scope="module")
def manager(binary: build.Kueue, control_plane: ControlPlane, crd: str) -> Iterator[Manager]:
    folder = control_plane.folder / "kueue"
    folder.mkdir()
    with installed(binary, control_plane, folder=folder) as running:
        yield running
        sys.stdout.write(running.log.read_text(errors="replace")[-20_000:])


@pytest.fixture
def narrow(manager: Manager, stage: Stage) -> Iterator[Queue]:
    """Room for one run."""
    with queue(stage.api, stage.namespace, cpu="100m") as found:
        yield found


def is_phase(phase: str) -> Any:
    return lambda status: status.get("phase") == phase


def held_back(reason: str, *words: str) -> Any:
    def holds(status: Object) -> bool:
        admitted = condition(status, "Admitted")
        return admitted.get("reason") == reason and all(word in admitted["message"] for word in words)

    return holds


def moment(status: Object, kind: str, attempt: int | None = None) -> datetime:
    (found,) = [e for e in status["events"] if e["type"] == kind and attempt in (None, e.get("attempt"))]
    return datetime.fromisoformat(found["time"])


def test_without_kueue_a_run_waits_and_says_so_and_goes_on_once_it_is_there(
    binary: build.Kueue, stage: Stage, operator: OperatorProcess, request: pytest.FixtureRequest
) -> None:
    """First in this file: the others install Kueue."""
    stage.submit("early", script=SHORT, **IN_QUEUE)
    status = stage.until("early", held_back(kueue.NOT_INSTALLED, "this cluster has no Kueue"))
    assert status["phase"] == "Queued"
    assert status["queue"]["message"] == condition(status, "Admitted")["message"]
    stage.submit("other", script=SHORT)
    assert stage.finished("other")["phase"] == "Completed", "a run without a queue has nothing to do with it"
    request.getfixturevalue("manager")
    with queue(stage.api, stage.namespace, cpu="100m"):
        assert stage.finished("early", seconds=PATIENCE)["phase"] == "Completed"
    assert stage.attempts("early") == ["early-1"]


def test_the_example_is_taken(manager: Manager, kubectl: Kubectl, namespace: str) -> None:
    kubectl("apply", "--dry-run=server", "-n", namespace, "-f", str(EXAMPLE))


def test_runs_wait_for_quota_and_are_let_in(
    narrow: Queue, stage: Stage, operator: OperatorProcess, audit_log: AuditLog
) -> None:
    mark = audit_log.mark()
    stage.submit("first", script=LONG, **IN_QUEUE)
    stage.until("first", is_phase("Running"), seconds=PATIENCE)
    stage.submit("second", script=SHORT, **IN_QUEUE)
    status = stage.until("second", held_back(kueue.NO_QUOTA, "insufficient unused quota for cpu"), seconds=PATIENCE)
    assert status["phase"] == "Queued"
    assert "position" not in status["queue"]
    assert stage.list("pods", of="second") == []
    stage.change("first", cancel=True)
    assert stage.finished("second", seconds=PATIENCE)["phase"] == "Completed"
    assert stage.events("second")[:3] == ["CREATED", "QUEUED", "STARTED"]
    written = audit_log.writes(mark, user=USER, namespace=stage.namespace)
    jobs = {record["verb"] for record in written if record["objectRef"]["resource"] == "jobs"}
    assert jobs == {"create", "delete"}, "its suspension is Kueue's alone"
    assert not [record for record in written if record["objectRef"].get("apiGroup") == kueue.GROUP]


def test_a_preempted_run_saves_gives_way_and_goes_on_in_the_same_job(
    narrow: Queue, stage: Stage, operator: OperatorProcess
) -> None:
    low, high = (f"{word}-{stage.namespace}" for word in ("low", "high"))
    stage.submit("low", script={"steps": 100, "step_seconds": 0.1}, queue={"name": NAME, "priorityClass": low})
    stage.until("low", lambda status: status.get("progress", {}).get("batch", 0) >= 3, seconds=PATIENCE)
    stage.submit("later", script=SHORT, queue={"name": NAME, "priorityClass": low})
    stage.until("later", held_back(kueue.NO_QUOTA), seconds=PATIENCE)
    stage.submit("high", script=SHORT, queue={"name": NAME, "priorityClass": high})
    status = stage.until("low", lambda status: status.get("attempt") == 2, seconds=PATIENCE)
    assert status["phase"] == "Queued"
    assert status["failure"]["reason"] == failures.EVICTED
    assert "Preempted" in status["failure"]["message"]
    assert "exit code 75" in status["failure"]["message"]
    assert stage.finished("high", seconds=PATIENCE)["phase"] == "Completed"
    status = stage.finished("low", seconds=PATIENCE)
    assert status["phase"] == "Completed"
    assert (status["attempt"], status["jobAttempt"], status["restartsWithoutProgress"]) == (2, 1, 0)
    assert stage.attempts("low") == ["low-1"]
    assert [e["attempt"] for e in status["events"] if e["type"] == "STARTED"] == [1, 2]
    assert [e["attempt"] for e in status["events"] if e["type"] == "RESTARTED"] == [2]
    waited = moment(status, "STARTED", 2) - moment(status, "RESTARTED")
    ran = moment(status, "COMPLETED") - moment(status, "STARTED", 1)
    assert status["activeSeconds"] <= ran.total_seconds() - waited.total_seconds() + 2, "waiting isn't active"
    later = stage.finished("later", seconds=PATIENCE)
    assert moment(status, "STARTED", 2) <= moment(later, "STARTED"), "it has kept its place before younger ones"


@pytest.mark.parametrize(
    ("changes", "next_is"),
    [
        pytest.param({}, "last", id="without a class for retries"),
        pytest.param({"retryPriorityClass": "high"}, "first", id="with one"),
    ],
)
def test_after_a_crash_a_run_asks_for_quota_again(
    manager: Manager, stage: Stage, operator: OperatorProcess, changes: dict[str, str], next_is: str
) -> None:
    """Three runs are ahead in a queue with room for one; nobody is preempted."""
    asked = {key: f"{word}-{stage.namespace}" for key, word in changes.items()}
    with queue(stage.api, stage.namespace, cpu="100m", preemption="Never"):
        script = {"steps": 60, "step_seconds": 0.1, "exits": [1, 0], "fail_at": 50}
        stage.submit("crasher", script=script, queue={"name": NAME, **asked})
        stage.until("crasher", is_phase("Running"), seconds=PATIENCE)
        for number in range(3):
            stage.submit(f"other-{number}", script={"steps": 30, "step_seconds": 0.1}, **IN_QUEUE)
        status = stage.finished("crasher", seconds=PATIENCE)
        others = [stage.finished(f"other-{number}", seconds=PATIENCE) for number in range(3)]
    assert (status["phase"], status["attempt"]) == ("Completed", 2)
    started = moment(status, "STARTED", 2)
    waited = (started - moment(status, "RESTARTED")).total_seconds()
    before = [other for other in others if moment(other, "STARTED") < started]
    sys.stdout.write(f"\nafter the crash {waited:.1f} s, {len(before)} of 3 others first\n")
    assert len(before) == 3 if next_is == "last" else len(before) <= 1


def test_kueue_may_be_started_anew_while_runs_wait_and_run(
    manager: Manager, narrow: Queue, stage: Stage, operator: OperatorProcess
) -> None:
    stage.submit("runs", script={"steps": 150, "step_seconds": 0.1}, **IN_QUEUE)
    stage.until("runs", is_phase("Running"), seconds=PATIENCE)
    stage.submit("waits", script=SHORT, **IN_QUEUE)
    stage.until("waits", held_back(kueue.NO_QUOTA), seconds=PATIENCE)
    manager.stop()
    manager.start()
    for name in ("runs", "waits"):
        status = stage.finished(name, seconds=PATIENCE)
        assert (status["phase"], status["attempt"]) == ("Completed", 1)


def test_a_queue_that_goes_and_one_that_is_drained(narrow: Queue, stage: Stage, operator: OperatorProcess) -> None:
    stage.submit("drained", script={"steps": 100, "step_seconds": 0.1}, **IN_QUEUE)
    stage.until("drained", is_phase("Running"), seconds=PATIENCE)
    narrow.change({"stopPolicy": "HoldAndDrain"})
    status = stage.until("drained", lambda status: status.get("attempt") == 2, seconds=PATIENCE)
    assert "ClusterQueueStopped" in status["failure"]["message"]
    narrow.close()
    narrow.change({"stopPolicy": "None"})
    stage.submit("nowhere", script=SHORT, **IN_QUEUE)
    stage.until("nowhere", held_back(kueue.NO_QUOTA, "LocalQueue", "doesn't exist"), seconds=PATIENCE)
    narrow.open()
    for name in ("drained", "nowhere"):
        assert stage.finished(name, seconds=PATIENCE)["phase"] == "Completed"


def test_what_a_user_pauses_gives_up_its_place(narrow: Queue, stage: Stage, operator: OperatorProcess) -> None:
    stage.submit("paused", script=LONG, **IN_QUEUE)
    stage.until("paused", is_phase("Running"), seconds=PATIENCE)
    stage.submit("waits", script=SHORT, **IN_QUEUE)
    stage.change("paused", suspend=True)
    stage.until("paused", is_phase("Suspended"), seconds=PATIENCE)
    assert stage.finished("waits", seconds=PATIENCE)["phase"] == "Completed"
    stage.change("paused", suspend=False)
    status = stage.until("paused", lambda status: status.get("progress", {}).get("attempt") == 2, seconds=PATIENCE)
    assert status["jobAttempt"] == 0
    stage.change("paused", cancel=True)
    assert stage.finished("paused", seconds=PATIENCE)["phase"] == "Canceled"
    until(narrow.workloads, lambda found: len(found) <= 1, what="workloads of what is over", seconds=PATIENCE)


@pytest.mark.slow
def test_a_preempted_training_ends_with_the_weights_of_an_undisturbed_one(
    narrow: Queue, stage: Stage, operator: OperatorProcess, images: dict[str, Image], tmp_path: Path
) -> None:
    images[realtrainer.IMAGE] = realtrainer.image(tmp_path)
    stage.keep("questions", {"train.jsonl": tiny_model.write_questions(tmp_path / "t.jsonl", 48).read_text()})
    spec: dict[str, Any] = {
        "model": {"uri": realtrainer.MODEL},
        "dataset": {"train": {"uri": "configmap://questions/train.jsonl"}},
        "training": {"maxDuration": "200ba", "maxSequenceLength": 64, "batchSize": {"perDevice": 2}},
        "checkpoint": {"interval": "10ba"},
        "trainer": {"image": realtrainer.IMAGE},
    }
    low, high = (f"{word}-{stage.namespace}" for word in ("low", "high"))
    stage.submit("twice", **spec, queue={"name": NAME, "priorityClass": low})
    stage.until("twice", lambda status: bool(status.get("checkpoints")), seconds=300)
    stage.submit("high", script=SHORT, queue={"name": NAME, "priorityClass": high})
    assert stage.finished("high", seconds=300)["phase"] == "Completed"
    status = stage.finished("twice", seconds=400)
    assert (status["phase"], status["attempt"]) == ("Completed", 2), status.get("failure")
    (resumed,) = [event["message"] for event in status["events"] if event["type"] == "RESUMED"]
    assert resumed.startswith("Resumed from ep")
    stage.submit("once", **spec, **IN_QUEUE)
    assert stage.finished("once", seconds=400)["phase"] == "Completed"
    assert weights(stage, "twice") == weights(stage, "once")


def weights(stage: Stage, name: str) -> str:
    """Digest of what a run has trained."""
    (claim,) = stage.list("persistentvolumeclaims", of=name)
    volume = stage.api.request("GET", f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
    folder = Path((volume["spec"].get("hostPath") or volume["spec"]["local"])["path"])
    return hashlib.sha256((folder / "output" / "adapter_model.safetensors").read_bytes()).hexdigest()
