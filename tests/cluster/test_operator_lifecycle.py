"""The verbs, the deadline, hangs, and runs that start from runs, on real Kubernetes with the stub trainer."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator import failures, policy
from tests.cluster.conftest import Kubectl
from tests.cluster.stage import Object, Stage, condition, until

pytestmark = pytest.mark.cluster

LONG = {"steps": 3000, "step_seconds": 0.1}
TRAINS = 3
"""Batches after which a training counts as well under way."""


def under_way(stage: Stage, name: str) -> Object:
    return stage.until(name, lambda status: status.get("progress", {}).get("batch", 0) >= TRAINS)


def is_phase(phase: str) -> Any:
    return lambda status: status.get("phase") == phase


def live_pods(stage: Stage, name: str) -> list[str]:
    ended = ("Succeeded", "Failed")
    return [pod["metadata"]["name"] for pod in stage.list("pods", of=name) if pod["status"]["phase"] not in ended]


def test_a_run_is_suspended_and_goes_on(shared: Stage) -> None:
    shared.submit("paused", script=LONG)
    under_way(shared, "paused")
    shared.change("paused", suspend=True)
    status = shared.until("paused", is_phase("Suspended"))
    assert live_pods(shared, "paused") == [], "its devices are free"
    assert condition(status, "Suspended")["status"] == "True"
    assert status["activeSeconds"] == status["earlierActiveSeconds"]
    stopped_at = status["progress"]["batch"]
    saved = [checkpoint["name"] for checkpoint in status["checkpoints"]]
    assert saved[-1] == f"ep1-ba{stopped_at}", "the trainer saved when it was told to stop, and that was seen"
    suspended = next(event for event in status["events"] if event["type"] == "SUSPENDED")
    assert saved[-1] in suspended["message"]

    shared.change("paused", suspend=False)
    status = shared.until("paused", lambda status: status.get("progress", {}).get("attempt") == 2)
    assert status["phase"] == "Running"
    assert status["attempt"] == 2
    assert status["restartsWithoutProgress"] == 0
    assert condition(status, "Suspended")["status"] == "False"
    kinds = [event["type"] for event in status["events"] if event["type"] not in ("TRAIN_UPDATED", "CHECKPOINT_SAVED")]
    assert kinds[-3:] == ["SUSPENDED", "RESUMED", "STARTED"]
    shared.delete("paused")


def test_a_run_may_be_created_suspended(shared: Stage) -> None:
    shared.submit("later", suspend=True)
    status = shared.until("later", is_phase("Suspended"))
    assert status.get("attempt", 0) == 0
    assert shared.attempts("later") == []
    shared.change("later", suspend=False)
    assert shared.finished("later")["phase"] == "Completed"


def test_a_run_is_canceled_for_good_and_says_what_was_saved(shared: Stage, kubectl: Kubectl) -> None:
    shared.submit("unwanted", script=LONG)
    under_way(shared, "unwanted")
    kubectl("patch", "ftr", "unwanted", "-n", shared.namespace, "--type=merge", "-p", '{"spec": {"cancel": true}}')
    kubectl("wait", "--for=condition=Finished", "ftr/unwanted", "-n", shared.namespace, "--timeout=30s")
    status = shared.status("unwanted")
    assert status["phase"] == "Canceled"
    assert live_pods(shared, "unwanted") == []
    assert condition(status, "Succeeded")["reason"] == "Canceled"
    newest = f"ep1-ba{status['progress']['batch']}"
    assert status["checkpoints"][-1]["name"] == newest
    assert status["events"][-1]["type"] == "CANCELED"
    assert newest in status["events"][-1]["message"]
    assert len(shared.list("persistentvolumeclaims", of="unwanted")) == 1, "what was saved stays"


@pytest.mark.parametrize("retain", ["Retain", "Delete"])
def test_a_deleted_run_leaves_nothing_but_its_model(shared: Stage, retain: str) -> None:
    name = f"gone-{retain.lower()}"
    shared.submit(name, script=LONG, storage={"retain": retain})
    under_way(shared, name)
    shared.delete(name)
    until(
        lambda: [*shared.list("jobs", of=name), *shared.list("pods", of=name)], lambda left: not left, what="children"
    )
    if retain == "Delete":
        until(lambda: shared.list("persistentvolumeclaims", of=name), lambda left: not left, what="claims")
    else:
        assert len(shared.list("persistentvolumeclaims", of=name)) == 1


def test_the_deadline_counts_active_time_only(shared: Stage) -> None:
    shared.submit("limited", script=LONG, suspend=True, activeDeadlineSeconds=3)
    shared.until("limited", is_phase("Suspended"))
    shared.change("limited", suspend=False)
    status = shared.finished("limited")
    assert status["failure"]["reason"] == failures.DEADLINE_EXCEEDED
    assert 3 <= status["activeSeconds"] < 30
    assert live_pods(shared, "limited") == []
    assert status["checkpoints"], "the trainer was given its time to save"


def test_a_run_is_deleted_some_time_after_its_end(shared: Stage) -> None:
    shared.submit("brief", ttlSecondsAfterFinished=1)
    until(lambda: shared.gone(f"{shared.runs}/brief"), bool, what="the run being gone")
    assert len(shared.list("persistentvolumeclaims", of="brief")) == 1


def test_a_hang_is_told_and_the_run_goes_on_unless_asked_otherwise(shared: Stage) -> None:
    shared.submit("hung", script={"hang_at": 3})
    status = shared.until("hung", lambda status: condition(status, "Degraded").get("status") == "True")
    assert condition(status, "Degraded")["reason"] == failures.HUNG
    assert "No step since batch 2" in condition(status, "Degraded")["message"]
    assert status["phase"] == "Running"
    assert shared.events("hung").count("HUNG") == 1
    assert shared.attempts("hung") == ["hung-1"]
    shared.delete("hung")


def test_a_run_that_hangs_is_restarted_three_times_at_most(shared: Stage) -> None:
    script = {"hang_at": 2, "checkpoint_every": 100}
    recovery = {"onHang": "Restart", "maxRestartsWithoutProgress": 10}
    shared.submit("stuck", script=script, recovery=recovery)
    status = shared.finished("stuck")
    assert status["failure"]["reason"] == failures.HUNG
    assert status["attempt"] == 1 + policy.HANG_RESTARTS
    restarted = [event["message"] for event in status["events"] if event["type"] == "RESTARTED"]
    assert len(restarted) == policy.HANG_RESTARTS
    assert all("No step since batch 1" in message for message in restarted)


def test_slow_is_not_hung(shared: Stage) -> None:
    shared.submit("slow", script={"hang_at": 3, "hung_cpu": 0.9}, recovery={"onHang": "Restart"})
    under = shared.until("slow", lambda status: status.get("progress", {}).get("batch") == 2)
    status = shared.until("slow", lambda status: status["progress"]["reportedTime"] > under["progress"]["reportedTime"])
    assert condition(status, "Degraded")["status"] == "False"
    assert "HUNG" not in shared.events("slow")
    shared.delete("slow")


def test_a_run_starts_from_another_ones_output_and_checkpoints(shared: Stage) -> None:
    shared.submit("first")
    claim = shared.finished("first")["output"]["uri"].removeprefix("pvc://").partition("/")[0]
    for name, uri, adapter in (
        ("second", "run://first", f"pvc://{claim}/output"),
        ("third", "run://first/ep1-ba2", f"pvc://{claim}/checkpoints/ep1-ba2"),
    ):
        shared.submit(name, model={"uri": uri})
        status = shared.finished(name)
        assert status["phase"] == "Completed"
        assert status["model"] == {"uri": "hf://example/model", "adapterUri": adapter}
        (job,) = shared.list("jobs", of=name)
        volumes = job["spec"]["template"]["spec"]["volumes"]
        mounted = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v}
        assert mounted["adapter"] == claim


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("run://nowhere", "there is no run nowhere in namespace"),
        ("run://unfinished", "run unfinished hasn't finished"),
        ("run://broken", "run broken has no output"),
        ("run://whole/ep9-ba9", "run whole has no checkpoint ep9-ba9; it has: ep1-ba2, ep1-ba4"),
    ],
)
def test_a_run_that_cannot_be_started_from_is_refused_by_name(shared: Stage, uri: str, says: str) -> None:
    other = uri.removeprefix("run://").partition("/")[0]
    scripts: dict[str, dict[str, object]] = {"unfinished": {**LONG}, "broken": {"exits": [65]}, "whole": {}}
    script = scripts.get(other)
    if script is not None:
        shared.submit(other, script=script)
        if other == "unfinished":
            under_way(shared, other)
        else:
            shared.finished(other)
    shared.submit(f"from-{other}", model={"uri": uri})
    status = shared.finished(f"from-{other}")
    assert status["failure"]["reason"] == failures.MODEL_NOT_FOUND
    assert status["failure"]["message"].startswith("spec.model.uri: ")
    assert says in status["failure"]["message"]
    assert shared.attempts(f"from-{other}") == []
    if other == "unfinished":
        shared.delete(other)
