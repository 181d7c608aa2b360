"""Runs that fail, are refused, or have to wait: what is said, where, and whether it is tried again."""

from __future__ import annotations

import pytest

from tests.cluster.conftest import Kubectl
from tests.cluster.stage import Stage, condition

pytestmark = pytest.mark.cluster

FINAL = {64: "ConfigInvalid", 65: "DataInvalid", 66: "NotFound", 77: "PermissionDenied", 78: "Diverged"}


def test_an_error_that_would_come_again_ends_the_run_at_once(shared: Stage) -> None:
    message = "train.jsonl line 17: unknown key 'respnse'; expected response"
    for code, reason in FINAL.items():
        shared.submit(f"exit-{code}", script={"exits": [code], "reason": reason, "message": message})
    for code, reason in FINAL.items():
        status = shared.finished(f"exit-{code}")
        (pod,) = (pod["metadata"]["name"] for pod in shared.list("pods", of=f"exit-{code}"))
        assert status["phase"] == "Failed"
        assert status["failure"] == {
            "reason": reason,
            "message": f"{message} (Pod {pod} ended with exit code {code})",
            "exitCode": code,
            "pod": pod,
            "attempt": 1,
        }
        assert shared.events(f"exit-{code}")[-1] == "FAILED"
        ends = {kind: condition(status, kind)["status"] for kind in ("Succeeded", "Finished", "Stalled")}
        assert ends == {"Succeeded": "False", "Finished": "True", "Stalled": "True"}
        assert condition(status, "Stalled")["message"] == status["failure"]["message"]
    assert [shared.attempts(f"exit-{code}") for code in FINAL] == [[f"exit-{code}-1"] for code in FINAL]


def test_kubectl_tells_why_a_run_failed(shared: Stage, kubectl: Kubectl) -> None:
    shared.submit(
        "told", script={"exits": [66], "reason": "NotFound", "message": "there is no model at hf://example/model"}
    )
    shared.finished("told")
    shared.told_to_the_end("told")
    described = kubectl("describe", "ftr", "told", "-n", shared.namespace)
    assert "there is no model at hf://example/model (Pod told-1-" in described
    assert [line.split()[:2] for line in described.splitlines() if "Warning" in line] == [["Warning", "Failed"]]


@pytest.mark.parametrize("code", [1, 73, 137], ids=["unexpected", "storage", "killed"])
def test_what_may_go_away_is_tried_again(shared: Stage, code: int) -> None:
    name = f"again-{code}"
    shared.submit(name, script={"exits": [code, 0], "last_word": "" if code == 137 else "snapshot"})
    status = shared.finished(name)
    assert status["phase"] == "Completed"
    assert status["attempt"] == 2
    assert status["restartsWithoutProgress"] == 1
    assert shared.attempts(name) == [f"{name}-1", f"{name}-2"]
    starts = [event for event in status["events"] if event["type"] in ("STARTED", "RESTARTED")]
    told = [(event["type"], event["attempt"]) for event in starts]
    assert told == [("STARTED", 1), ("RESTARTED", 2), ("STARTED", 2)]


def test_it_gives_up_after_enough_attempts_without_progress(shared: Stage) -> None:
    shared.submit("hopeless", script={"exits": [1]}, recovery={"maxRestartsWithoutProgress": 2})
    status = shared.finished("hopeless")
    assert status["phase"] == "Failed"
    assert status["attempt"] == 3
    assert status["failure"]["exitCode"] == 1
    assert shared.attempts("hopeless") == ["hopeless-1", "hopeless-2", "hopeless-3"]


def test_progress_gives_it_all_its_attempts_again(shared: Stage) -> None:
    """Two attempts fail where one may, but each has saved a later checkpoint than the one before."""
    script = {"exits": [1, 1, 0], "fail_at": 4, "further": 2, "steps": 10, "checkpoint_every": 2}
    shared.submit("moving", script=script, recovery={"maxRestartsWithoutProgress": 1})
    assert shared.finished("moving")["phase"] == "Completed"


def test_stopping_on_request_uses_up_no_attempt(shared: Stage) -> None:
    shared.submit("stopped", script={"exits": [75, 75, 75, 0]}, recovery={"maxRestartsWithoutProgress": 0})
    status = shared.finished("stopped")
    assert status["phase"] == "Completed"
    assert status["attempt"] == 4
    assert status["restartsWithoutProgress"] == 0


def test_an_evicted_pod_is_replaced_at_no_cost(shared: Stage, kubectl: Kubectl) -> None:
    shared.submit("evicted", script={"steps": 20, "step_seconds": 0.2}, recovery={"maxRestartsWithoutProgress": 0})
    shared.until("evicted", lambda status: status.get("progress", {}).get("batch", 0) > 2)
    (pod,) = (pod["metadata"]["name"] for pod in shared.list("pods", of="evicted"))
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    shared.api.request("POST", f"/api/v1/namespaces/{shared.namespace}/pods/{pod}/eviction", body=eviction)
    status = shared.finished("evicted")
    assert status["phase"] == "Completed"
    assert status["attempt"] == 2
    assert status["restartsWithoutProgress"] == 0


def test_a_last_word_that_is_no_snapshot_is_shown_as_it_is(shared: Stage) -> None:
    shared.submit("plain", script={"exits": [65], "last_word": "Traceback: something broke"})
    failure = shared.finished("plain")["failure"]
    assert failure["message"].startswith("Traceback: something broke (Pod plain-1-")
    assert failure["reason"] == "DataInvalid"


def test_a_storage_class_that_does_not_exist_is_named(shared: Stage) -> None:
    shared.submit("unbound", storage={"claimTemplate": {"storageClassName": "fast"}})
    status = shared.until("unbound", lambda status: condition(status, "Admitted").get("reason") == "ClaimPending")
    said = condition(status, "Admitted")["message"]
    assert status["phase"] == "Queued"
    assert 'it asks for storage class "fast"' in said
    assert 'storageclass.storage.k8s.io "fast" not found' in said
    assert status["queue"]["message"] == said
    assert "QUEUED" in shared.events("unbound")
    shared.delete("unbound")


def test_more_devices_than_any_node_has_are_named(shared: Stage) -> None:
    devices = {"deviceResource": "example.com/quantum", "devicesPerNode": 1}
    shared.submit("greedy", resources=devices)
    status = shared.until("greedy", lambda status: condition(status, "Admitted").get("reason") == "Unschedulable")
    said = condition(status, "Admitted")["message"]
    assert status["phase"] == "Queued"
    assert said.startswith(
        "No node has room for 1 example.com/quantum, cpu 100m, memory 100Mi (spec.resources): 0/1 nodes"
    )
    assert "Insufficient example.com/quantum" in said
    shared.delete("greedy")


def test_an_image_that_cannot_be_pulled_is_named(shared: Stage) -> None:
    shared.submit("imageless", trainer={"image": "registry.example.com/none:1"})
    status = shared.until(
        "imageless", lambda status: condition(status, "Reconciling").get("reason") == "ImageUnavailable"
    )
    said = condition(status, "Reconciling")["message"]
    assert status["phase"] == "Starting"
    assert "the image (spec.trainer.image) can't be pulled" in said
    assert "registry.example.com/none:1" in said
    shared.delete("imageless")
