"""What is decided, check by check and exit code by exit code."""

from datetime import timedelta
from typing import Any

import pytest

from finetune_api.snapshot import FINAL_CODES, REASONS, ExitCode
from finetune_operator import policy
from finetune_operator.policy import CHECKS, Action, Check, Decision
from finetune_operator.world import World
from tests import worlds

FINISHED = {
    "type": "Finished",
    "status": "True",
    "reason": "Completed",
    "lastTransitionTime": worlds.NOW.isoformat(),
}
FAILED_JOB = worlds.job(failed=True, reason="BackoffLimitExceeded", message="too many")


def world(attempt: int = 1, *, started: bool = True, changes: dict[str, Any] | None = None, **parts: Any) -> World:
    status = parts.pop("status", None) or worlds.status(attempt, started=started)
    return worlds.world(worlds.run(changes, status=status), **parts)


def failed(pod: Any, **more: Any) -> World:
    return world(jobs=(FAILED_JOB,), pods=(pod,) if pod else (), **more)


def decided_by(found: World) -> Check:
    return next(check for check in CHECKS if check(found) is not None)


def deleted() -> World:
    return worlds.world(worlds.run(deletionTimestamp="2026-03-01T13:00:00Z"))


STORIES: list[Any] = [
    pytest.param(deleted(), policy.ignore_runs_of_others, Action.IGNORE, id="a run being deleted"),
    pytest.param(
        worlds.world(worlds.run({"managedBy": "kueue.x-k8s.io/multikueue"})),
        policy.ignore_runs_of_others,
        Action.IGNORE,
        id="a run that another controller manages",
    ),
    pytest.param(
        world(status=worlds.status(1, conditions=[FINISHED])),
        policy.leave_finished_runs_alone,
        Action.REST,
        id="a finished run whose job is gone",
    ),
    pytest.param(
        world(status=worlds.status(1, conditions=[FINISHED]), jobs=(FAILED_JOB,), pods=(worlds.ended(1),)),
        policy.leave_finished_runs_alone,
        Action.REST,
        id="a finished run whose job failed later",
    ),
    pytest.param(
        worlds.world(worlds.run({"training.maxDuration": "3 epochs"})),
        policy.refuse_what_cannot_be_read,
        Action.REFUSE,
        id="a spec that can't be read",
    ),
    pytest.param(
        worlds.world(worlds.run({"suspend": True})),
        policy.refuse_what_is_not_built,
        Action.REFUSE,
        id="a spec that asks for what isn't built",
    ),
    pytest.param(worlds.world(), policy.begin_the_first_attempt, Action.BEGIN, id="a new run"),
    pytest.param(
        world(started=False), policy.create_what_was_recorded, Action.CREATE, id="an attempt recorded, without a job"
    ),
    pytest.param(
        world(2, started=False, jobs=(FAILED_JOB,), pods=(worlds.ended(75),)),
        policy.create_what_was_recorded,
        Action.CREATE,
        id="a second attempt recorded, the first one's pod has ended",
    ),
    pytest.param(
        world(2, started=False, jobs=(FAILED_JOB,), pods=(worlds.running(1),)),
        policy.follow,
        Action.FOLLOW,
        id="a second attempt recorded, the first one's pod still runs",
    ),
    pytest.param(
        world(2, started=False, pods=(worlds.running(1, deleted=True),)),
        policy.follow,
        Action.FOLLOW,
        id="the first one's job is deleted, its pod still runs",
    ),
    pytest.param(
        world(started=False, pods=(worlds.pod(deleted=True),)),
        policy.follow,
        Action.FOLLOW,
        id="the job was deleted before its pod ran, and the pod is still there",
    ),
    pytest.param(world(started=False, jobs=(worlds.job(),)), policy.follow, Action.FOLLOW, id="a job without a pod"),
    pytest.param(world(jobs=(worlds.job(),), pods=(worlds.running(),)), policy.follow, Action.FOLLOW, id="it trains"),
    pytest.param(
        world(jobs=(worlds.job(),), pods=(worlds.ended(0),)),
        policy.follow,
        Action.FOLLOW,
        id="the pod has ended, the job doesn't say so yet",
    ),
    pytest.param(
        world(jobs=(worlds.job(complete=True),), pods=(worlds.ended(0),)),
        policy.finish_with_a_model,
        Action.SUCCEED,
        id="the job is complete",
    ),
    pytest.param(
        world(started=False, jobs=(worlds.job(complete=True),)),
        policy.finish_with_a_model,
        Action.SUCCEED,
        id="the job is complete, its pod was removed while nobody looked",
    ),
    pytest.param(
        world(jobs=(worlds.job(complete=True),), pods=(worlds.running(),)),
        policy.follow,
        Action.FOLLOW,
        id="the job is complete, but a pod still runs",
    ),
    pytest.param(failed(worlds.ended(65)), policy.judge_an_attempt_that_failed, Action.FAIL, id="the data is bad"),
    pytest.param(failed(worlds.ended(1)), policy.judge_an_attempt_that_failed, Action.BEGIN, id="the trainer crashed"),
    pytest.param(failed(worlds.running()), policy.follow, Action.FOLLOW, id="the job has failed, its pod still ends"),
    pytest.param(world(), policy.judge_an_attempt_that_failed, Action.BEGIN, id="the job was deleted while it ran"),
    pytest.param(
        world(pods=(worlds.running(deleted=True),)),
        policy.follow,
        Action.FOLLOW,
        id="the job was deleted while it ran, its pod still ends",
    ),
    pytest.param(
        world(started=False, pods=(worlds.ended(75),)),
        policy.judge_an_attempt_that_failed,
        Action.BEGIN,
        id="the job was deleted, its pod ran and ended since the last look",
    ),
]


@pytest.mark.parametrize(("found", "check", "action"), STORIES)
def test_the_first_check_that_has_an_answer_decides(found: World, check: Check, action: Action) -> None:
    assert decided_by(found) is check
    assert policy.decide(found).action is action


def test_every_check_and_every_action_is_in_the_stories() -> None:
    assert {story.values[1] for story in STORIES} == set(CHECKS)
    assert {story.values[2] for story in STORIES} == set(Action)


CODES = (*(int(code) for code in ExitCode if code != ExitCode.DONE), 1, 2, 128, 139)


@pytest.mark.parametrize("code", CODES)
def test_an_exit_code_decides_whether_there_is_another_attempt(code: int) -> None:
    decision = policy.decide(failed(worlds.ended(code)))
    assert decision.action is (Action.FAIL if code in FINAL_CODES else Action.BEGIN)
    if decision.action is Action.BEGIN:
        assert decision.counted is (code != ExitCode.STOPPED)
    assert decision.failure is not None
    assert decision.failure.exit_code == code
    assert decision.failure.pod == "support-bot-1-abcde"
    assert decision.failure.attempt == 1
    assert decision.failure.reason == REASONS.get(code, policy.TRAINER_FAILED)
    assert f"exit code {code}" in decision.failure.message


def reason(found: World) -> str:
    failure = policy.decide(found).failure
    assert failure is not None
    return failure.reason


@pytest.mark.parametrize(
    ("found", "expected", "says"),
    [
        pytest.param(
            failed(worlds.ended(65, last_word=worlds.last_word(65, reason="DataInvalid", message="line 17: no key"))),
            "DataInvalid",
            "line 17: no key (Pod support-bot-1-abcde ended with exit code 65)",
            id="the trainer's own words",
        ),
        pytest.param(
            failed(worlds.ended(137, last_word=worlds.last_word(65, message="line 17"))),
            "Killed",
            "exit code 137 and no message",
            id="words about another exit code don't count",
        ),
        pytest.param(
            failed(worlds.ended(1, last_word="Segmentation fault")),
            policy.TRAINER_FAILED,
            "Segmentation fault (Pod",
            id="a last word in plain text is shown",
        ),
        pytest.param(
            failed(worlds.ended(1, last_word='{"half')),
            policy.TRAINER_FAILED,
            "no message; see kubectl logs support-bot-1-abcde",
            id="half a snapshot is not",
        ),
        pytest.param(
            failed(worlds.ended(137, exit_reason="OOMKilled")),
            policy.OUT_OF_MEMORY,
            "raise spec.resources.memory",
            id="out of memory",
        ),
        pytest.param(
            failed(worlds.pod(phase="Failed", disrupted="EvictionByEvictionAPI")),
            policy.DISRUPTED,
            "EvictionByEvictionAPI",
            id="evicted before the container ran",
        ),
        pytest.param(
            failed(worlds.pod(phase="Failed", exit_reason="NodeLost")),
            policy.POD_LOST,
            "NodeLost",
            id="failed without a word",
        ),
        pytest.param(failed(None), policy.POD_LOST, "BackoffLimitExceeded too many", id="the pod is gone"),
        pytest.param(world(), policy.JOB_LOST, "was deleted", id="the job is gone"),
        pytest.param(
            worlds.world(worlds.run({"method.type": "QLoRA"})), policy.NOT_SUPPORTED, "spec.method.type", id="not built"
        ),
        pytest.param(
            worlds.world(worlds.run({"method.type": "LORA"})), policy.INVALID, "spec.method.type", id="not valid"
        ),
    ],
)
def test_each_reason_says_what_happened(found: World, expected: str, says: str) -> None:
    assert reason(found) == expected
    failure = policy.decide(found).failure
    assert failure is not None
    assert says in failure.message


def test_a_long_last_word_is_cut() -> None:
    for word in (worlds.last_word(1, message="x" * 1000), "y" * 4000):
        failure = policy.decide(failed(worlds.ended(1, last_word=word))).failure
        assert failure is not None
        assert len(failure.message) <= 1024


@pytest.mark.parametrize(
    ("pod", "counted"),
    [
        pytest.param(worlds.ended(1), True, id="a crash counts"),
        pytest.param(worlds.ended(137, exit_reason="OOMKilled"), True, id="too little memory counts"),
        pytest.param(worlds.ended(73), True, id="a full volume counts"),
        pytest.param(worlds.ended(75), False, id="stopped on request is free"),
        pytest.param(worlds.ended(137, disrupted="PreemptionByScheduler"), False, id="a preemption is free"),
        pytest.param(worlds.pod(phase="Failed", disrupted="DeletionByTaintManager"), False, id="a lost node is free"),
    ],
)
def test_what_uses_up_a_restart(pod: Any, counted: bool) -> None:
    decision = policy.decide(failed(pod))
    assert decision.action is Action.BEGIN
    assert decision.counted is counted


def test_a_lost_job_is_free() -> None:
    assert not policy.decide(world()).counted


def spent(used: int, *, limit: int = 3, code: int = 1, saved: float | None = None) -> Decision:
    """After so many restarts without progress; a checkpoint was saved so many seconds after NOW."""
    there = [] if saved is None else [worlds.saved(5, time=worlds.at(saved)).model_dump()]
    status = worlds.status(1, started=True, restartsWithoutProgress=used, checkpoints=there)
    changes = {"recovery.maxRestartsWithoutProgress": limit}
    return policy.decide(failed(worlds.ended(code), status=status, changes=changes))


@pytest.mark.parametrize(
    ("decision", "action"),
    [
        pytest.param(spent(2), Action.BEGIN, id="one restart is left"),
        pytest.param(spent(3), Action.FAIL, id="none is left"),
        pytest.param(spent(0, limit=0), Action.FAIL, id="none was allowed"),
        pytest.param(spent(3, code=75), Action.BEGIN, id="a free one is always left"),
        pytest.param(spent(3, saved=30), Action.BEGIN, id="a new checkpoint forgives the earlier ones"),
        pytest.param(spent(3, saved=-30), Action.FAIL, id="an old checkpoint doesn't"),
        pytest.param(spent(0, code=65, saved=30), Action.FAIL, id="bad data is final all the same"),
    ],
)
def test_restarts_without_progress_are_limited(decision: Decision, action: Action) -> None:
    assert decision.action is action


def test_a_checkpoint_in_the_last_word_is_progress_even_if_nobody_saw_the_pod_run() -> None:
    word = worlds.last_word(1, checkpoints=(worlds.saved(5, time=worlds.at(30)),))
    found = failed(worlds.ended(1, last_word=word), started=False)
    assert found.started is not None
    assert policy.made_progress(found)
    before = worlds.last_word(1, checkpoints=(worlds.saved(5, time=worlds.at(5) - timedelta(seconds=1)),))
    assert not policy.made_progress(failed(worlds.ended(1, last_word=before), started=False))


RECORDED = {"reason": "DataInvalid", "message": "line 17", "exitCode": 65, "attempt": 1}


def test_why_a_pod_ended_is_known_before_its_job_has_failed() -> None:
    decision = policy.decide(world(jobs=(worlds.job(),), pods=(worlds.ended(65),)))
    assert decision.action is Action.FOLLOW
    assert decision.failure is not None
    assert decision.failure.exit_code == 65


@pytest.mark.parametrize(
    ("attempt", "action", "expected"),
    [
        pytest.param(1, Action.FAIL, "DataInvalid", id="of this attempt"),
        pytest.param(2, Action.BEGIN, policy.POD_LOST, id="of the attempt before"),
    ],
)
def test_what_was_recorded_of_an_attempt_outlives_its_pod(attempt: int, action: Action, expected: str) -> None:
    status = worlds.status(attempt, started=True, failure=RECORDED)
    decision = policy.decide(world(status=status, jobs=(worlds.job(attempt, failed=True),)))
    assert decision.action is action
    assert decision.failure is not None
    assert decision.failure.reason == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param(137, policy.DISRUPTED, id="a kill is the disruption's"),
        pytest.param(1, policy.DISRUPTED, id="so is a crash at that time"),
        pytest.param(65, "DataInvalid", id="bad data is bad data"),
    ],
)
def test_a_disruption_explains_what_is_not_final(code: int, expected: str) -> None:
    assert reason(failed(worlds.ended(code, disrupted="EvictionByEvictionAPI"))) == expected
