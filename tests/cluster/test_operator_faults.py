"""An operator that is killed, or away, and a run that is deleted: nothing is done twice, lost, or left over."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cluster.audit import AuditLog
from tests.cluster.operatorprocess import USER, OperatorProcess, running
from tests.cluster.stage import IN_PLACE, QUICK, Stage, until

pytestmark = pytest.mark.cluster

STORY = ["CREATED", "STARTED", "DATA_VALIDATED", "MODEL_INITIALIZED", "TRAIN_FINISHED", "COMPLETED"]


def test_killed_at_any_moment_it_does_everything_once(
    stage: Stage, operator: OperatorProcess, audit_log: AuditLog
) -> None:
    mark, seed = audit_log.mark(), random.randrange(2**32)
    moments = random.Random(seed)
    names = [f"victim-{number}" for number in range(4)]
    for name in names:
        script = {"exits": [1, 0], "load_seconds": 1, "steps": 10, "step_seconds": 0.4, "fail_at": 5, "save_seconds": 1}
        stage.submit(name, script=script)
    for _ in range(8):
        time.sleep(moments.uniform(0.5, 3.5))
        operator.kill()
        operator.start()
    for name in names:
        status = stage.finished(name, seconds=90)
        told = [event["type"] for event in status["events"] if event["type"] not in IN_PLACE]
        assert (status["phase"], status["attempt"]) == ("Completed", 2), f"seed {seed}"
        assert sorted(told) == sorted([*STORY, "STARTED", "RESTARTED"]), f"seed {seed}"
        assert [event["sequence"] for event in status["events"]] == list(range(1, len(status["events"]) + 1))
        assert max(Counter(stage.told(name)).values()) <= 2, "STARTED alone comes twice"
    assert sorted(job["metadata"]["name"] for job in stage.list("jobs")) == sorted(
        f"{n}-{k}" for n in names for k in (1, 2)
    )
    assert created_twice(audit_log, stage, mark) == []


def created_twice(audit_log: AuditLog, stage: Stage, mark: int) -> Sequence[str]:
    """Jobs and claims whose creation succeeded more than once."""
    writes = audit_log.writes(mark, user=USER, namespace=stage.namespace)
    made = Counter(
        f"{write['objectRef']['resource']}/{write['objectRef']['name']}"
        for write in writes
        if write["verb"] == "create" and write["responseStatus"]["code"] == 201
    )
    return [name for name, count in made.items() if count > 1]


def test_a_job_that_ends_while_the_operator_is_away_is_not_lost(stage: Stage, operator: OperatorProcess) -> None:
    stage.submit("unseen", script={"steps": 8, "step_seconds": 0.2})
    stage.submit("broken", script={"exits": [65], "load_seconds": 1, "message": "line 3 is empty"})
    for name in ("unseen", "broken"):
        stage.reaches(name, "Running")
    operator.kill()
    until(lambda: stage.list("pods"), lambda pods: all(ended(pod) for pod in pods), what="pods")
    operator.start()
    status = stage.finished("unseen")
    assert [event["type"] for event in status["events"] if event["type"] not in IN_PLACE] == STORY
    assert status["progress"]["batch"] == 8
    assert stage.finished("broken")["failure"]["message"].startswith("line 3 is empty")


def ended(pod: dict[str, dict[str, str]]) -> bool:
    return pod["status"]["phase"] in ("Succeeded", "Failed")


def test_a_whole_run_goes_by_without_one_answer(stage: Stage, operator_account: Path, tmp_path: Path) -> None:
    """Its trainer never answered a poll: the last word alone tells the story."""
    settings = {**QUICK, "poll_seconds": 3600}
    with running(operator_account, folder=tmp_path, namespaces=[stage.namespace], **settings) as operator:
        stage.submit("brief", script={"start_seconds": 1})
        status = stage.finished("brief")
        polls = operator.metrics()
    assert "finetune_operator_poll_failures_total 1.0" in polls
    assert [event["type"] for event in status["events"] if event["type"] not in IN_PLACE] == STORY
    assert status["output"]["checkpoint"] == "ep1-ba4"
    assert status["progress"]["batch"] == 4


def test_a_run_deleted_while_it_trains_leaves_its_claim_alone(stage: Stage, operator: OperatorProcess) -> None:
    stage.submit("dropped", script={"steps": 1000, "step_seconds": 0.1})
    stage.until("dropped", lambda status: status.get("progress", {}).get("batch", 0) > 2)
    stage.delete("dropped")
    until(lambda: [*stage.list("jobs"), *stage.list("pods")], lambda left: left == [], what="children")
    (claim,) = stage.list("persistentvolumeclaims")
    assert claim["status"]["phase"] == "Bound"
    assert operator.process
    assert operator.process.poll() is None
    assert 'finetune_operator_runs{phase="Running"} 0.0' in until(
        operator.metrics, lambda text: 'phase="Running"} 0.0' in text, what="metrics"
    )
    assert " ERROR " not in operator.log.read_text()


def test_a_run_made_again_under_its_name_gets_a_claim_and_a_job_of_its_own(
    stage: Stage, operator: OperatorProcess
) -> None:
    stage.submit("phoenix", script={"steps": 1000, "step_seconds": 0.1})
    stage.reaches("phoenix", "Running")
    stage.delete("phoenix")
    until(lambda: stage.list("jobs"), lambda left: left == [], what="jobs")
    stage.api.request("DELETE", f"/api/v1/namespaces/{stage.namespace}/configmaps/phoenix-script")
    run = stage.submit("phoenix")
    assert stage.finished("phoenix")["phase"] == "Completed"
    assert len(stage.list("persistentvolumeclaims")) == 2
    (job,) = stage.list("jobs")
    assert job["metadata"]["ownerReferences"][0]["uid"] == run["metadata"]["uid"]


def test_a_job_deleted_under_a_training_is_followed_by_the_next_attempt(
    stage: Stage, operator: OperatorProcess
) -> None:
    stage.submit("robbed", script={"steps": 15, "step_seconds": 0.2}, recovery={"maxRestartsWithoutProgress": 0})
    stage.until("robbed", lambda status: status.get("progress", {}).get("batch", 0) > 1)
    path = f"/apis/batch/v1/namespaces/{stage.namespace}/jobs/robbed-1"
    stage.api.request("DELETE", path, propagationPolicy="Background")
    status = stage.finished("robbed")
    assert (status["phase"], status["attempt"]) == ("Completed", 2)
    restarted = next(event for event in status["events"] if event["type"] == "RESTARTED")
    assert "Job was deleted while it ran" in restarted["message"]


def test_an_eviction_that_nobody_saw_costs_nothing_either(stage: Stage, operator: OperatorProcess) -> None:
    """The pod is gone before the operator is back: how it ended stands in its Job's condition alone."""
    script = {"steps": 3000, "step_seconds": 0.1}
    stage.submit("drained", script=script, recovery={"maxRestartsWithoutProgress": 0})
    stage.until("drained", lambda status: status.get("progress", {}).get("batch", 0) > 2)
    operator.kill()
    (pod,) = (pod["metadata"]["name"] for pod in stage.list("pods", of="drained"))
    path = f"/api/v1/namespaces/{stage.namespace}/pods/{pod}"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
    stage.api.request("POST", f"{path}/eviction", body=eviction)
    until(lambda: stage.gone(path), bool, what="the pod being gone")
    operator.start()
    status = stage.until("drained", lambda status: status.get("progress", {}).get("attempt") == 2)
    assert status["restartsWithoutProgress"] == 0
    assert status["failure"]["reason"] == "Disrupted"
