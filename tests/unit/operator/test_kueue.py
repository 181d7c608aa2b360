"""Runs in a queue of Kueue: what their Jobs carry, what is told of them, and how one Job serves several attempts."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.snapshot import REASONS, ExitCode
from finetune_api.status import ConditionType, FineTuneRunStatus, Phase
from finetune_operator import admission, due, failurerules, failures, kueue, manifests, policy, status, waiting
from finetune_operator.admission import Line
from finetune_operator.cluster import KubernetesCluster
from finetune_operator.connection import Connection
from finetune_operator.kueue import Silence, Workload
from finetune_operator.policy import Action
from finetune_operator.settings import Limits
from finetune_operator.world import World
from tests import worlds
from tests.apiserver import ApiServer
from tests.unit.operator.test_policy import queued

QUEUE = {"queue.name": "team-a"}
CLASSES = {**QUEUE, "queue.priorityClass": "low", "queue.retryPriorityClass": "high"}
SUSPENDED = worlds.job(suspended=True)
EVICTED = queued(jobs=(SUSPENDED,), pods=(worlds.ended(75),))
FULL = "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor default, 1 more needed"


def workload(*conditions: tuple[str, bool, str, str], active: bool = True) -> Workload:
    said = [
        {"type": kind, "status": "True" if true else "False", "reason": reason, "message": message}
        for kind, true, reason, message in conditions
    ]
    body = {"metadata": {"name": "job-support-bot-1-a1b2c"}, "spec": {"active": active}, "status": {"conditions": said}}
    return Workload.parse(body)


def written(world: World) -> FineTuneRunStatus:
    """The status after a pass."""
    decision = policy.decide(world)
    why = waiting.why(world, settings=worlds.SETTINGS)
    return status.compute(world, decision, waiting=why, settings=worlds.SETTINGS)


def after(world: World, **parts: Any) -> World:
    """The next look, a second later, at a world in which something has changed."""
    run = dataclasses.replace(world.run, status=written(world))
    return dataclasses.replace(world, run=run, now=world.now + timedelta(seconds=1), **parts)


@pytest.mark.parametrize(
    ("changes", "failed", "labels"),
    [
        pytest.param({}, False, {}, id="no queue"),
        pytest.param(QUEUE, True, {kueue.QUEUE_LABEL: "team-a"}, id="a queue alone"),
        pytest.param(CLASSES, False, {kueue.QUEUE_LABEL: "team-a", kueue.PRIORITY_LABEL: "low"}, id="its class"),
        pytest.param(CLASSES, True, {kueue.QUEUE_LABEL: "team-a", kueue.PRIORITY_LABEL: "high"}, id="after a failure"),
        pytest.param({"queue.priorityClass": "low"}, False, {}, id="a class without a queue"),
    ],
)
def test_a_job_carries_what_kueue_wants(changes: dict[str, Any], failed: bool, labels: dict[str, str]) -> None:
    known: dict[str, Any] = {"failure": {"reason": "TrainerFailed", "attempt": 1}} if failed else {}
    job = manifests.job(worlds.run(changes, status=worlds.status(2, **known)), attempt=2, settings=worlds.SETTINGS)
    found = {key: value for key, value in job["metadata"]["labels"].items() if key.startswith(kueue.GROUP)}
    assert found == labels
    assert job["spec"].get("suspend") is (True if labels else None)
    assert not any(key.startswith(kueue.GROUP) for key in job["spec"]["template"]["metadata"]["labels"])


def test_a_pod_that_was_stopped_does_not_fail_a_job_that_kueue_suspends() -> None:
    def codes(changes: dict[str, Any]) -> list[int]:
        rules = manifests.job(worlds.run(changes), attempt=1, settings=worlds.SETTINGS)["spec"]["podFailurePolicy"]
        return [rule["onExitCodes"]["values"][0] for rule in rules["rules"] if "onExitCodes" in rule]

    assert set(codes({})) - set(codes(QUEUE)) == {ExitCode.STOPPED}


@pytest.mark.parametrize("rule", failurerules.of(worlds.run(QUEUE)))
def test_a_job_still_tells_how_its_pod_ended(rule: ExitCode | str) -> None:
    index = failurerules.of(worlds.run(QUEUE)).index(rule)
    job = worlds.job(failed=True, reason="PodFailurePolicy", message=f"x matching FailJob rule at index {index}")
    decision = policy.decide(queued(jobs=(job,)))
    assert decision.failure is not None
    expected = failures.DISRUPTED if rule == failurerules.DISRUPTION else REASONS[int(rule)]
    assert decision.failure.reason == expected


@pytest.mark.parametrize(
    ("found", "reason", "words"),
    [
        pytest.param(Silence.NOT_INSTALLED, kueue.NOT_INSTALLED, "this cluster has no Kueue", id="no Kueue"),
        pytest.param(Silence.UNREADABLE, kueue.UNREADABLE, "may not list", id="no right to look"),
        pytest.param(Silence.NO_ANSWER, kueue.NO_ANSWER, "can't be read from the API server now", id="no answer"),
        pytest.param(Silence.NO_WORKLOAD, kueue.NO_WORKLOAD, "has no Workload for Job support-bot-1", id="no workload"),
        pytest.param(workload(), kueue.NO_QUOTA, "Waits for quota", id="a new workload"),
        pytest.param(workload(("QuotaReserved", False, "Pending", FULL)), kueue.NO_QUOTA, FULL, id="the queue is full"),
        pytest.param(
            workload(("QuotaReserved", True, "QuotaReserved", "")), kueue.CHECKS, "checks aren't done", id="checks"
        ),
        pytest.param(
            workload(("QuotaReserved", True, "QuotaReserved", ""), ("Admitted", True, "Admitted", "")),
            kueue.STARTS,
            "lets the run start",
            id="admitted, and the Job not yet told",
        ),
        pytest.param(
            workload(
                ("QuotaReserved", True, "Q", ""), ("Admitted", True, "A", ""), ("Evicted", True, "Preempted", "by")
            ),
            kueue.EVICTED,
            "Kueue took the quota back. Preempted: by.",
            id="evicted, quota not yet released",
        ),
        pytest.param(
            workload(("QuotaReserved", False, "Pending", FULL), ("Evicted", True, "Preempted", "By a higher one")),
            kueue.EVICTED,
            "Preempted: By a higher one. It waits for quota again (queue team-a, Workload job-support-bot-1-a1b2c",
            id="evicted, waits again",
        ),
        pytest.param(
            workload(("Evicted", True, "Deactivated", "by hand"), active=False),
            kueue.DEACTIVATED,
            "Deactivated: by hand.",
            id="deactivated",
        ),
    ],
)
def test_kueue_is_quoted_under_a_reason_with_a_name(found: Any, reason: str, words: str) -> None:
    world = queued(started=False, jobs=(SUSPENDED,), workload=found, now=worlds.at(60))
    new = written(world)
    admitted = new.condition(ConditionType.ADMITTED)
    assert admitted is not None
    assert (admitted.status, admitted.reason) == ("False", reason)
    assert words in admitted.message
    assert new.phase is Phase.QUEUED
    assert new.queue is not None
    assert new.queue.position is None
    assert words in new.queue.message


def test_a_new_job_is_not_called_unseen_by_kueue() -> None:
    new = queued(started=False, jobs=(SUSPENDED,), workload=Silence.NO_WORKLOAD, now=worlds.at(3))
    assert written(new).phase is Phase.STARTING
    assert "QUEUED" not in [event.type for event in written(new).events]


def test_what_kueue_has_evicted_is_the_next_attempt_in_the_same_job() -> None:
    evicted = dataclasses.replace(EVICTED, now=worlds.at(70), workload=workload(("Evicted", True, "Preempted", "By b")))
    again = after(evicted)
    found = again.run.status
    assert (found.attempt, found.job_attempt, found.job_start_time) == (2, 1, None)
    assert found.earlier_active_seconds == 55
    assert found.restarts_without_progress == 0
    assert found.failure is not None
    assert found.failure.reason == failures.EVICTED
    assert "Preempted: By b." in found.failure.message
    assert "exit code 75" in found.failure.message
    assert again.job == SUSPENDED
    assert again.members == ()
    assert policy.decide(again).action is Action.FOLLOW
    assert written(again).phase is Phase.QUEUED
    assert written(dataclasses.replace(again, now=worlds.at(5000))).active_seconds == 55, "waiting isn't active"


def test_the_second_start_of_a_job_has_an_account_of_its_own() -> None:
    waits = after(dataclasses.replace(EVICTED, now=worlds.at(70)))
    old = worlds.ended(75)
    new = worlds.running(uid="pod-2", name="support-bot-1-fghij", created=worlds.at(202), started=worlds.at(205))
    runs = after(waits, jobs=(worlds.job(started=worlds.at(200)),), pods=(old, new))
    said = worlds.snapshot(7, time=worlds.at(220))
    runs = dataclasses.replace(runs, now=worlds.at(230), snapshot=said, snapshot_pod="pod-2")
    assert runs.members == (new,)
    assert runs.live_snapshot == said.model_copy(update={"attempt": 2})
    status_ = written(runs)
    assert status_.phase is Phase.RUNNING
    assert status_.job_start_time == worlds.at(200)
    assert [event.attempt for event in status_.events if event.type == "STARTED"] == [1, 2]
    assert status_.active_seconds == 55 + 25
    assert status_.progress is not None
    assert status_.progress.attempt == 2
    later = after(runs)
    assert policy.decide(later).action is Action.FOLLOW
    ended = dataclasses.replace(new, phase="Failed", exit_code=75, finished=worlds.at(260))
    once_more = dataclasses.replace(later, jobs=(worlds.job(suspended=True),), pods=(old, ended))
    assert policy.decide(once_more).action is Action.BEGIN
    assert (after(once_more).run.status.attempt, after(once_more).run.status.job_attempt) == (3, 1)


def test_what_an_earlier_pod_of_the_job_said_is_not_the_next_attempts_word() -> None:
    waits = after(dataclasses.replace(EVICTED, snapshot=worlds.snapshot(9), snapshot_pod="pod-1", now=worlds.at(70)))
    assert waits.run.status.job_attempt == 1
    assert waits.live_snapshot is None
    assert waits.newest_snapshot is None


def test_an_eviction_that_nobody_saw_is_told_by_the_jobs_new_start() -> None:
    new = worlds.running(uid="pod-2", created=worlds.at(201), started=worlds.at(205))
    seen_late = queued(jobs=(worlds.job(started=worlds.at(200)),), pods=(worlds.ended(75), new), now=worlds.at(300))
    assert seen_late.members == (worlds.ended(75),), "what runs now is the next attempt's"
    found = after(seen_late)
    assert (found.attempt, found.members) == (2, (new,))
    assert found.run.status.earlier_active_seconds == 55
    assert written(found).phase is Phase.RUNNING


def test_a_job_that_is_lost_while_it_waits_again_is_made_anew_under_its_own_number() -> None:
    waits = after(dataclasses.replace(EVICTED, now=worlds.at(70)))
    lost = dataclasses.replace(waits, jobs=(), pods=())
    assert policy.decide(lost).action is Action.CREATE
    own = dataclasses.replace(lost, jobs=(worlds.job(2, suspended=True),))
    assert (own.number, own.strays) == (2, ())


def test_the_job_that_goes_on_is_no_stray() -> None:
    waits = after(dataclasses.replace(EVICTED, now=worlds.at(70)))
    assert waits.strays == ()
    assert policy.decide(waits).action is Action.FOLLOW


def test_a_run_that_kueue_holds_back_has_no_part_in_the_operators_limits() -> None:
    line = Line(Limits(1, {"nvidia.com/gpu": 0}))
    for name, spec in (("a", QUEUE), ("b", {"managedBy": "kueue.x-k8s.io/multikueue"})):
        found = worlds.run(spec, name=name, uid=name)
        line.see(found)
        assert line.turn(name).admitted
        assert not line.turn(name).never
        assert not admission.is_limited(found)
    line.see(worlds.run({"resources.deviceResource": ""}, name="c", uid="c"))
    assert line.called() == {"c"}, "the others take nobody's place"


@pytest.mark.parametrize(("waited", "pause"), [(0, 5), (200, 10), (10**6, 120)])
def test_the_longer_it_waits_the_less_often_kueue_is_asked(waited: float, pause: float) -> None:
    world = queued(started=False, jobs=(worlds.job(suspended=True, created=worlds.NOW),), now=worlds.at(waited))
    assert due.next_look(world, policy.decide(world), settings=worlds.SETTINGS) == pause


PATH = "/apis/kueue.x-k8s.io/v1beta2/namespaces/ml/workloads"
BODY = {"metadata": {"name": "w"}, "status": {"conditions": [{"type": "Admitted", "status": "True"}]}}


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        pytest.param({"items": [BODY], "metadata": {}}, Workload.parse(BODY), id="one"),
        pytest.param({"items": [], "metadata": {}}, Silence.NO_WORKLOAD, id="none yet"),
    ],
)
async def test_the_workload_is_found_by_its_jobs_uid(
    api: Connection, server: ApiServer, answer: Any, found: Any
) -> None:
    server.on("GET", PATH, answer)
    cluster = KubernetesCluster(api, cache=worlds.cache())
    world = queued(started=False, jobs=(SUSPENDED,))
    assert await cluster.workload(world) == found
    assert await cluster.workload(world) == found
    assert len(server.asked) == 1, "not again at once"


@pytest.mark.parametrize(
    ("code", "found"), [(404, Silence.NOT_INSTALLED), (403, Silence.UNREADABLE), (429, Silence.NO_ANSWER)]
)
async def test_without_kueue_or_the_right_to_look_nothing_breaks(
    api: Connection, server: ApiServer, code: int, found: Silence
) -> None:
    server.refuses("GET", PATH, code, message="no")
    assert await KubernetesCluster(api, cache=worlds.cache()).workload(queued(jobs=(SUSPENDED,))) is found
