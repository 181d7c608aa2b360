"""What a namespace's quota, or what somebody else has put there, keeps from a run: said, waited for, and left alone."""

from __future__ import annotations

import pytest

from tests.cluster.operatorprocess import OperatorProcess
from tests.cluster.stage import Stage, condition

pytestmark = pytest.mark.cluster


def quota(stage: Stage, **hard: str) -> str:
    path = f"/api/v1/namespaces/{stage.namespace}/resourcequotas"
    stage.api.request("POST", path, body={"metadata": {"name": "tight"}, "spec": {"hard": hard}})
    return f"{path}/tight"


def test_a_used_up_quota_is_named_and_the_run_goes_on_when_it_is_raised(
    stage: Stage, operator: OperatorProcess
) -> None:
    path = quota(stage, pods="0")
    stage.submit("squeezed")
    status = stage.until("squeezed", lambda status: condition(status, "Admitted").get("reason") == "PodRefused")
    assert status["phase"] == "Queued"
    assert "exceeded quota: tight, requested: pods=1, used: pods=0, limited: pods=0" in status["queue"]["message"]
    stage.api.request("DELETE", path)
    assert stage.finished("squeezed", seconds=90)["phase"] == "Completed"


def test_a_claim_over_quota_is_named(stage: Stage, operator: OperatorProcess) -> None:
    quota(stage, persistentvolumeclaims="0")
    stage.submit("homeless")
    status = stage.until("homeless", lambda status: condition(status, "Admitted").get("reason") == "Refused")
    assert status["phase"] == "Queued"
    assert "exceeded quota: tight, requested: persistentvolumeclaims=1" in condition(status, "Admitted")["message"]
    assert stage.list("jobs") == []


def test_a_job_of_somebody_else_is_left_alone(stage: Stage, operator: OperatorProcess) -> None:
    pod = {"restartPolicy": "Never", "containers": [{"name": "other", "image": "other"}]}
    job = {"metadata": {"name": "taken-1"}, "spec": {"suspend": True, "template": {"spec": pod}}}
    stage.api.request("POST", f"/apis/batch/v1/namespaces/{stage.namespace}/jobs", body=job)
    stage.submit("taken")
    status = stage.until("taken", lambda status: condition(status, "Admitted").get("reason") == "NameTaken")
    assert "Job taken-1 exists and isn't this run's: delete it" in condition(status, "Admitted")["message"]
    (found,) = stage.list("jobs")
    assert "ownerReferences" not in found["metadata"]
