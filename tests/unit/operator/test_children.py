"""What is read of Jobs, pods and claims, from objects as the API server sends them."""

from datetime import UTC, datetime
from typing import Any

import pytest

from finetune_operator import children, names
from finetune_operator.children import Claim, Job, Pod

METADATA = {
    "name": "support-bot-2",
    "uid": "u-1",
    "creationTimestamp": "2026-03-01T12:00:00Z",
    "labels": {names.ATTEMPT_LABEL: "2"},
}
CREATED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def condition(kind: str, status: str = "True", **more: str) -> dict[str, str]:
    return {"type": kind, "status": status, "lastTransitionTime": "2026-03-01T12:05:00Z"} | more


def job(**status: Any) -> Job:
    return Job.parse({"metadata": METADATA, "spec": {}, "status": status})


def pod(state: dict[str, Any] | None = None, **status: Any) -> Pod:
    containers = [{"name": "istio-proxy", "state": {"running": {}}}, {"name": "trainer", "state": state or {}}]
    return Pod.parse({"metadata": METADATA, "spec": {}, "status": {"containerStatuses": containers} | status})


def test_a_new_job_has_not_ended() -> None:
    found = Job.parse({"metadata": METADATA})
    assert (found.name, found.uid, found.attempt, found.created) == ("support-bot-2", "u-1", 2, CREATED)
    assert not found.ended
    assert not found.deleted
    assert not found.suspended


@pytest.mark.parametrize(
    ("conditions", "complete", "failed"),
    [
        pytest.param([condition("Complete")], True, False, id="complete"),
        pytest.param([condition("Failed")], False, True, id="failed"),
        pytest.param([condition("Failed", "False")], False, False, id="a condition that doesn't hold"),
        pytest.param([condition("FailureTarget")], False, False, id="about to fail, with pods still there"),
        pytest.param([condition("SuccessCriteriaMet")], False, False, id="about to complete"),
    ],
)
def test_a_job_ends_by_its_conditions(conditions: list[dict[str, str]], complete: bool, failed: bool) -> None:
    found = job(conditions=conditions)
    assert (found.complete, found.failed, found.ended) == (complete, failed, complete or failed)


def test_a_failed_job_says_why_and_when() -> None:
    found = job(conditions=[condition("Failed", reason="BackoffLimitExceeded", message="too many")], active=None)
    assert (found.reason, found.message) == ("BackoffLimitExceeded", "too many")
    assert found.finished == datetime(2026, 3, 1, 12, 5, tzinfo=UTC)
    assert found.active == 0


def test_a_job_being_deleted_or_suspended_says_so() -> None:
    found = Job.parse({"metadata": METADATA | {"deletionTimestamp": "2026-03-01T12:01:00Z"}, "spec": {"suspend": True}})
    assert found.deleted
    assert found.suspended


def test_a_pod_without_a_status_is_pending() -> None:
    found = Pod.parse({"metadata": METADATA})
    assert found.phase == "Pending"
    assert not found.ended
    assert found.started is None


def test_a_running_pod_has_started_and_has_an_address() -> None:
    found = pod({"running": {"startedAt": "2026-03-01T12:01:00Z"}}, phase="Running", podIP="10.0.0.7")
    assert found.started == datetime(2026, 3, 1, 12, 1, tzinfo=UTC)
    assert found.ip == "10.0.0.7"
    assert not found.ended


def test_an_ended_pod_has_code_reason_and_last_word_of_the_trainer_alone() -> None:
    terminated = {
        "exitCode": 65,
        "reason": "Error",
        "message": "line 17",
        "startedAt": "2026-03-01T12:01:00Z",
        "finishedAt": "2026-03-01T12:02:00Z",
    }
    found = pod({"terminated": terminated}, phase="Failed")
    assert (found.exit_code, found.exit_reason, found.last_word) == (65, "Error", "line 17")
    assert found.started == datetime(2026, 3, 1, 12, 1, tzinfo=UTC)
    assert found.finished == datetime(2026, 3, 1, 12, 2, tzinfo=UTC)
    assert found.ended


def test_a_container_that_never_ran_has_no_start() -> None:
    """A node that couldn't start it reports the epoch."""
    terminated = {"exitCode": 128, "reason": "StartError", "startedAt": "1970-01-01T00:00:00Z", "finishedAt": None}
    found = pod({"terminated": terminated}, phase="Failed")
    assert found.started is None
    assert found.exit_code == 128


def test_a_waiting_container_says_why() -> None:
    found = pod({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})
    assert (found.waiting_reason, found.waiting_message) == ("ImagePullBackOff", "no such image")


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        pytest.param("Unschedulable", "0/3 nodes are available", id="no node has room"),
        pytest.param("SchedulingGated", "", id="held back on purpose"),
    ],
)
def test_a_pod_is_unschedulable_only_if_the_scheduler_says_so(reason: str, said: str) -> None:
    found = pod(conditions=[condition("PodScheduled", "False", reason=reason, message="0/3 nodes are available")])
    assert found.unschedulable == said
    assert (found.unschedulable_since is not None) == bool(said)


@pytest.mark.parametrize("status", ["True", "False"])
def test_a_pod_is_disrupted_if_the_condition_holds(status: str) -> None:
    found = pod(conditions=[condition("DisruptionTarget", status, reason="EvictionByEvictionAPI")])
    assert found.disrupted == ("EvictionByEvictionAPI" if status == "True" else "")


def test_an_evicted_pod_without_a_container_gives_the_pod_s_reason() -> None:
    assert pod(phase="Failed", reason="Evicted").exit_reason == "Evicted"


def test_a_pod_knows_the_job_that_controls_it() -> None:
    owners = [{"uid": "other"}, {"uid": "job-7", "controller": True}]
    assert Pod.parse({"metadata": METADATA | {"ownerReferences": owners}}).job_uid == "job-7"
    assert children.owner_uid({"metadata": METADATA}) is None


def test_a_claim_knows_the_run_it_was_made_for() -> None:
    found = Claim.parse(
        {
            "metadata": METADATA | {"annotations": {names.RUN_UID_ANNOTATION: "run-1"}},
            "spec": {"storageClassName": "fast"},
            "status": {"phase": "Bound"},
        }
    )
    assert (found.run_uid, found.storage_class, found.phase) == ("run-1", "fast", "Bound")
    assert Claim.parse({"metadata": METADATA}).phase == "Pending"
