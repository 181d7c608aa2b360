"""Runs in a queue of the real Kueue: they wait, are let in, are preempted and go on, on a real control plane.

`make kueue` builds Kueue; without it these tests are skipped, and fail where CI is set.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator import boost, failures, kueue
from tests import tiny_model
from tests.cluster import operatorprocess, realtrainer
from tests.cluster.audit import AuditLog
from tests.cluster.conftest import Kubectl
from tests.cluster.controlplane import ControlPlane
from tests.cluster.operatorprocess import USER, OperatorProcess
from tests.cluster.podspec import Image
from tests.cluster.rest import Api, ApiError
from tests.cluster.stage import QUICK, Object, Stage, condition, until
from tests.kueue import build
from tests.kueue.manager import Manager, installed, until_ready
from tests.kueue.queues import NAME, ROOT, Queue, queue

pytestmark = pytest.mark.cluster

LONG = {"steps": 3000, "step_seconds": 0.1}
SHORT = {"steps": 20, "step_seconds": 0.1}
IN_QUEUE: dict[str, Any] = {"queue": {"name": NAME}}
SAVES: dict[str, Any] = {**LONG, "checkpoint_every": 5}
SAVES_NEVER: dict[str, Any] = {**LONG, "checkpoint_every": 100_000}
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


Boosting = Callable[[float | None], AbstractContextManager[OperatorProcess]]
"""An operator whose boosts begin when so many seconds are at stake; None for one that gives none."""


@pytest.fixture
def boosting(operator_account: Path, tmp_path: Path, namespace: str, kubectl: Kubectl) -> Iterator[Boosting]:
    @contextlib.contextmanager
    def start(seconds: float | None) -> Iterator[OperatorProcess]:
        chosen = {"kueue_priority_boost": True, "kueue_priority_boost_seconds": seconds} if seconds else {}
        settings = {**QUICK, **chosen}
        with operatorprocess.running(operator_account, folder=tmp_path, namespaces=[namespace], **settings) as running:
            try:
                yield running
            finally:
                sys.stdout.write(running.log.read_text())

    files = [word for name in ("rights", "policy") for word in ("-f", str(EXAMPLE / f"boost-{name}.yaml"))]
    kubectl("apply", *files)
    yield start
    kubectl("delete", *files)


@pytest.fixture(scope="module")
def gate(manager: Manager, control_plane: ControlPlane) -> None:
    """Kueue's feature gate PriorityBoost, for the rest of this file."""
    manager.stop()
    manager.configure(PriorityBoost=True)
    manager.start()
    until_ready(control_plane.api(), manager)


def boosts(found: Queue) -> Mapping[str, str]:
    """What is annotated, by the Job's name."""
    about = [body["metadata"] for body in found.workloads()]
    return {m["ownerReferences"][0]["name"]: m.get("annotations", {}).get(boost.ANNOTATION, "") for m in about}


def has_boost(job: str, least: int) -> Callable[[Mapping[str, str]], bool]:
    return lambda found: int(found.get(job) or 0) >= least


@pytest.mark.parametrize(
    ("told", "gated", "preempted"),
    [
        pytest.param(True, False, "old", id="told, without the feature gate: the last one to be admitted"),
        pytest.param(False, True, "old", id="not told: the last one to be admitted"),
        pytest.param(True, True, "fresh", id="told: the one with the fresh checkpoint"),
    ],
)
def test_of_two_runs_of_a_priority_one_is_preempted(
    manager: Manager,
    stage: Stage,
    boosting: Boosting,
    request: pytest.FixtureRequest,
    told: bool,
    gated: bool,
    preempted: str,
) -> None:
    if gated:
        request.getfixturevalue("gate")
    with queue(stage.api, stage.namespace, cpu="200m") as room, boosting(5 if told else None):
        stage.submit("fresh", script=SAVES, **IN_QUEUE)
        # two seconds before the other, since Kueue compares whole ones
        stage.until("fresh", lambda status: status.get("progress", {}).get("batch", 0) >= 20, seconds=PATIENCE)
        stage.submit("old", script=SAVES_NEVER, **IN_QUEUE)
        stage.until("old", is_phase("Running"), seconds=PATIENCE)
        if told:
            until(lambda: boosts(room), has_boost("old-1", 2), what="boosts", seconds=PATIENCE)
        high = {"name": NAME, "priorityClass": f"high-{stage.namespace}"}
        stage.submit("high", script=SHORT, queue=high)
        status = stage.until(preempted, lambda status: status.get("attempt") == 2, seconds=PATIENCE)
        assert "Preempted" in status["failure"]["message"]
        found = boosts(room)
        assert stage.finished("high", seconds=PATIENCE)["phase"] == "Completed"
        (other,) = {"fresh", "old"} - {preempted}
        assert stage.status(other)["attempt"] == 1
        assert found[f"{preempted}-1"] == "", "what waits has no boost"
        assert bool(found["old-1"]) is (told and preempted == "fresh")
        stage.until(preempted, lambda status: status.get("progress", {}).get("attempt") == 2, seconds=PATIENCE)


def test_the_next_class_preempts_a_boosted_run_as_before(
    gate: None, narrow: Queue, stage: Stage, boosting: Boosting, audit_log: AuditLog
) -> None:
    """Eight seconds are at stake, for which there would be a boost of 4."""
    mark = audit_log.mark()
    ranked = narrow.rank("next", 3)
    with boosting(1):
        stage.submit("old", script=SAVES_NEVER, **IN_QUEUE)
        until(lambda: boosts(narrow), has_boost("old-1", 2), what="boosts", seconds=PATIENCE)
        stage.until("old", lambda status: status.get("progress", {}).get("batch", 0) >= 100, seconds=PATIENCE)
        assert boosts(narrow)["old-1"] == "2", "one less than what would make it equal to the next class"
        stage.submit("next", script=SHORT, queue={"name": NAME, "priorityClass": ranked})
        stage.until("old", lambda status: status.get("attempt") == 2, seconds=PATIENCE)
        assert stage.finished("next", seconds=PATIENCE)["phase"] == "Completed"
        stage.until("old", lambda status: status.get("progress", {}).get("attempt") == 2, seconds=PATIENCE)
    asked = [record for record in audit_log.since(mark) if record["user"]["username"] == USER]
    assert granted_for_boosts() <= {_right(record) for record in asked if "objectRef" in record}
    assert [record for record in asked if record["responseStatus"]["code"] == 403] == []
    written = [record["requestObject"]["metadata"] for record in asked if _right(record) == PATCH]
    assert {key for metadata in written for key in metadata} == {"uid", "annotations"}
    given = [metadata["annotations"][boost.ANNOTATION] for metadata in written]
    assert given[: given.index(None)] in (["1", "2"], ["2"]), "each step once; a slow operator may miss the first"
    sys.stdout.write(f"\nthe boost was gone {_lead(audit_log, mark, stage.namespace):.3f} s before the run waited\n")


def _lead(audit_log: AuditLog, mark: int, namespace: str) -> float:
    """By how much the operator was quicker to take the first boost away than Kueue to put the run into its queue."""
    about = [record for record in audit_log.since(mark) if record.get("objectRef", {}).get("namespace") == namespace]
    said = [(record, record["requestObject"]) for record in about if "requestObject" in record]
    taken = next(r for r, body in said if body.get("metadata", {}).get("annotations") == {boost.ANNOTATION: None})
    name = taken["objectRef"]["name"]
    waits = next(r for r, body in said if r["objectRef"].get("name") == name and _unreserves(body))
    return (_ended(waits) - _ended(taken)).total_seconds()


def _unreserves(written: Object) -> bool:
    """Whether it takes the quota of a Workload that was evicted."""
    said = written.get("status", {})
    return condition(said, "QuotaReserved").get("status") == "False" and condition(said, "Evicted") != {}


def _ended(record: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(record["stageTimestamp"])


REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "another priority": ({"spec": {"priority": 1000}}, "priority boost alone"),
    "no quota any more": ({"spec": {"active": False}}, "priority boost alone"),
    "a label": ({"metadata": {"labels": {"a": "b"}}}, "priority boost alone"),
    "no finalizer": ({"metadata": {"finalizers": None}}, "priority boost alone"),
    "another annotation": ({"metadata": {"annotations": {"a": "b"}}}, "no annotation but"),
    "a boost beyond the last": ({"metadata": {"annotations": {boost.ANNOTATION: "7"}}}, "1 to 6"),
    "a negative boost": ({"metadata": {"annotations": {boost.ANNOTATION: "-1"}}}, "1 to 6"),
}


def test_the_operator_may_change_nothing_of_a_workload_but_its_boost(
    gate: None, narrow: Queue, stage: Stage, boosting: Boosting, operator_account: Path
) -> None:
    operator = Api.from_kubeconfig(operator_account)

    def told(patch: Mapping[str, Any]) -> str:
        """What the operator's account is told of a patch that isn't carried out."""
        content = "application/merge-patch+json"
        path = f"{ROOT}/namespaces/{stage.namespace}/workloads/{workload['metadata']['name']}"
        try:
            return str(operator.request("PATCH", path, body=patch, content_type=content, dryRun="All")["kind"])
        except ApiError as error:
            return str(error)

    with boosting(1):
        stage.submit("old", script=SAVES_NEVER, **IN_QUEUE)
        until(lambda: boosts(narrow), has_boost("old-1", 2), what="boosts", seconds=PATIENCE)
    (workload,) = narrow.workloads()
    until(lambda: told({"spec": {"priority": 1000}}), lambda said: "priority boost alone" in said, what="the policy")
    assert {name: why in told(patch) for name, (patch, why) in REFUSED.items()} == dict.fromkeys(REFUSED, True)
    allowed = [told({"metadata": {"annotations": {boost.ANNOTATION: value}}}) for value in (None, "1", "6")]
    assert allowed == ["Workload"] * 3


PATCH = (kueue.GROUP, "workloads", "patch")


def _right(record: Mapping[str, Any]) -> tuple[str, str, str]:
    asked = record.get("objectRef", {})
    return asked.get("apiGroup", ""), asked.get("resource", ""), record["verb"]


def granted_for_boosts() -> set[tuple[str, str, str]]:
    role, _ = yaml.safe_load_all((EXAMPLE / "boost-rights.yaml").read_text())
    return {(rule["apiGroups"][0], rule["resources"][0], rule["verbs"][0]) for rule in role["rules"]}
