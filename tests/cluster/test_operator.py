"""A run from beginning to end on real Kubernetes, with the stub trainer: what its user sees, and what it costs."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path

import pytest

from finetune_operator.settings import PREFIX
from tests import ports
from tests.cluster.audit import AuditLog
from tests.cluster.conftest import Kubectl
from tests.cluster.operatorprocess import ACCOUNT, NAMESPACE, USER, OperatorProcess
from tests.cluster.podspec import Image
from tests.cluster.realtrainer import VENV_FIRST
from tests.cluster.stage import STUB_IMAGE, Stage, Writes, condition, until

pytestmark = pytest.mark.cluster

STORY = ["CREATED", "STARTED", "DATA_VALIDATED", "MODEL_INITIALIZED", "TRAIN_UPDATED", "TRAIN_FINISHED", "COMPLETED"]
SLOW = {"load_seconds": 0.6, "steps": 6, "step_seconds": 0.4, "save_seconds": 0.6}
"""Long enough for polls to see each part of it."""


def test_a_run_tells_its_story_once_and_in_order(shared: Stage, kubectl: Kubectl) -> None:
    shared.submit("story", script=SLOW)
    waited = kubectl("wait", "--for=condition=Finished", "ftr/story", "-n", shared.namespace, "--timeout=60s")
    status = shared.status("story")

    assert waited == "finetunerun.finetune.dev/story condition met\n"
    kubectl("wait", "--for=condition=Succeeded", "ftr/story", "-n", shared.namespace, "--timeout=1s")
    told = [event["type"] for event in status["events"]]
    assert [kind for kind in told if kind != "CHECKPOINT_SAVED"] == STORY
    assert told.count("CHECKPOINT_SAVED") == 1
    assert [event["sequence"] for event in status["events"]] == list(range(1, len(told) + 1))
    assert status["phase"] == "Completed"
    assert status["observedGeneration"] == 1
    assert status["attempt"] == 1
    assert "failure" not in status
    assert [checkpoint["name"] for checkpoint in status["checkpoints"]] == ["ep1-ba2", "ep1-ba4", "ep1-ba6"]
    assert status["output"] == {"uri": f"pvc://{claim_of(shared, 'story')}/output", "checkpoint": "ep1-ba6"}
    assert status["progress"]["percent"] == 100
    assert "etaSeconds" not in status["progress"], "what is gone is removed, not left over"
    expected = {"Accepted": "True", "Reconciling": "False", "Stalled": "False", "Succeeded": "True", "Finished": "True"}
    assert {kind: condition(status, kind)["status"] for kind in expected} == expected


def claim_of(stage: Stage, name: str) -> str:
    (claim,) = stage.list("persistentvolumeclaims", of=name)
    found: str = claim["metadata"]["name"]
    return found


def test_kubectl_shows_what_a_user_wants_to_know(shared: Stage, kubectl: Kubectl) -> None:
    shared.submit("shown", script=SLOW)
    shared.until("shown", lambda status: status.get("progress", {}).get("batch", 0) > 0)
    during = kubectl("get", "ftr", "-n", shared.namespace)
    shared.finished("shown")
    after = kubectl("get", "ftr", "-n", shared.namespace, "-o", "wide")
    told = shared.told_to_the_end("shown")
    described = kubectl("describe", "ftr", "shown", "-n", shared.namespace)

    assert re.search(r"^NAME +PHASE +MODEL +PROGRESS +ETA +LOSS +AGE$", during, re.MULTILINE)
    assert re.search(r"^shown +Running +hf://example/model +\d+% +\d+s +[\d.]+ +\d+s", during, re.MULTILINE)
    assert re.search(r"^shown +Completed +hf://example/model +100% +0\.5000 +\d+s +1 ", after, re.MULTILINE)
    reasons = ["Created", "Started", "DataValidated", "ModelInitialized", "TrainFinished", "Completed"]
    lines = [line for line in described.splitlines() if "finetune-operator" in line and "Normal" in line]
    assert [line.split()[1] for line in lines] == told
    assert [reason for reason in told if reason not in ("TrainUpdated", "CheckpointSaved")] == reasons


def test_the_children_are_the_runs_own(shared: Stage) -> None:
    run = shared.submit("owner")
    shared.finished("owner")
    (job,), (pod,), (claim,) = (shared.list(kind, of="owner") for kind in ("jobs", "pods", "persistentvolumeclaims"))
    assert job["metadata"]["name"] == "owner-1"
    assert [owner["uid"] for owner in job["metadata"]["ownerReferences"]] == [run["metadata"]["uid"]]
    assert [owner["uid"] for owner in pod["metadata"]["ownerReferences"]] == [job["metadata"]["uid"]]
    assert "ownerReferences" not in claim["metadata"], "the model outlives the run"
    assert pod["spec"]["automountServiceAccountToken"] is False


def writes_of(name: str, stage: Stage, audit_log: AuditLog, *, mark: int) -> Writes:
    """What was written for a run that has ended, once its last event is in the audit log too."""
    expected = len(stage.events(name))
    found: Writes = until(
        lambda: Writes.of(audit_log.writes(mark, user=USER, namespace=stage.namespace), name),
        lambda writes: writes.events >= expected,
        what="a Kubernetes Event for each entry of the history",
    )
    return found


def test_a_run_costs_at_most_five_writes_besides_progress(shared: Stage, audit_log: AuditLog) -> None:
    mark = audit_log.mark()
    shared.submit("thrifty", script=SLOW)
    shared.finished("thrifty")
    writes = writes_of("thrifty", shared, audit_log, mark=mark)
    assert sorted(writes.created) == ["jobs", "persistentvolumeclaims"]
    assert len(writes.created) + writes.states <= 5, writes
    assert writes.others == []
    assert writes.events == len(shared.events("thrifty")), "each entry of the history is told once"


def test_a_finished_run_is_left_alone(stage: Stage, operator: OperatorProcess, audit_log: AuditLog) -> None:
    began = audit_log.mark()
    stage.submit("done")
    stage.finished("done")
    before = writes_of("done", stage, audit_log, mark=began)
    stage.api.request(
        "DELETE", f"/apis/batch/v1/namespaces/{stage.namespace}/jobs/done-1", propagationPolicy="Background"
    )
    stage.submit("next")
    stage.finished("next")
    assert stage.events("done")[-1] == "COMPLETED"
    assert writes_of("done", stage, audit_log, mark=began) == before


def test_two_runs_at_once_do_not_mix(shared: Stage) -> None:
    for name, steps in (("left", 3), ("right", 5)):
        shared.submit(name, script={**SLOW, "steps": steps})
    for name, steps in (("left", 3), ("right", 5)):
        status = shared.finished(name)
        assert status["phase"] == "Completed"
        assert status["progress"]["batch"] == status["progress"]["totalBatches"] == steps
        assert [kind for kind in shared.events(name) if kind != "CHECKPOINT_SAVED"] == STORY
    assert claim_of(shared, "left") != claim_of(shared, "right")


def test_it_runs_in_a_pod_with_the_rights_of_the_example_and_serves_all_namespaces(
    stage: Stage, operator_account: Path, images: dict[str, Image], kubectl: Kubectl
) -> None:
    """Credentials as every pod has them; the way to other pods is the proxy, since the node's pods have no others."""
    images["operator"] = Image((sys.executable, "-m", "finetune_operator"), VENV_FIRST)
    chosen = {"trainer_image": STUB_IMAGE, "pod_access": "proxy", "bind_address": "127.0.0.1"}
    chosen |= {"health_port": str(ports.free()), "metrics_port": str(ports.free())}
    env = [{"name": f"{PREFIX}{name}".upper(), "value": value} for name, value in chosen.items()]
    container = {"name": "operator", "image": "operator", "env": env}
    spec = {"serviceAccountName": ACCOUNT, "restartPolicy": "Never", "containers": [container]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "operator", "namespace": NAMESPACE}, "spec": spec}
    kubectl("apply", "-f", "-", body=pod)
    try:
        stage.submit("anywhere")
        assert stage.finished("anywhere")["phase"] == "Completed"
        logged = [json.loads(line) for line in kubectl("logs", "operator", "-n", NAMESPACE).splitlines()]
    finally:
        kubectl("delete", "pod", "operator", "-n", NAMESPACE)
    assert f"{stage.namespace}/anywhere COMPLETED" in " ".join(record["message"] for record in logged)
    assert {record["level"] for record in logged} == {"INFO"}


def test_it_is_healthy_and_leaves_on_a_signal(stage: Stage, operator: OperatorProcess) -> None:
    until(operator.healthy, bool, what="health")
    stage.submit("interrupted", script={"steps": 1000, "step_seconds": 0.1})
    stage.reaches("interrupted", "Running")
    assert operator.stop() == 0


def test_an_interrupt_ends_it_too(operator: OperatorProcess) -> None:
    until(operator.healthy, bool, what="health")
    assert operator.process
    operator.process.send_signal(signal.SIGINT)
    assert operator.process.wait(timeout=5) == 0
    operator.process = None
    assert "Traceback" not in operator.log.read_text()
