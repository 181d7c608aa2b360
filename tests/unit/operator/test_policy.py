"""What is decided, check by check and exit code by exit code."""

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.snapshot import FINAL_CODES, REASONS, ExitCode
from finetune_operator import failures, policy
from finetune_operator.errors import UserError
from finetune_operator.policy import CHECKS, Action, Check, Decision
from finetune_operator.world import Turn, World
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


def ended_at(seconds: float, **spec: Any) -> World:
    """A run that ended that many seconds ago."""
    done = worlds.status(1, conditions=[FINISHED], completionTime=worlds.NOW)
    return world(status=done, changes=spec, now=worlds.at(seconds))


PAUSED = {
    "type": "Suspended",
    "status": "True",
    "reason": "Suspended",
    "lastTransitionTime": worlds.NOW.isoformat(),
}
WAITS = Turn(admitted=False, position=3, reason="NamespaceLimit", message="10 of 10 are active.")


def paused(attempt: int = 1, *, changes: dict[str, Any] | None = None, **parts: Any) -> World:
    """It is recorded that the run is paused."""
    status = worlds.status(attempt, started=attempt > 0, conditions=[PAUSED], **parts.pop("told", {}))
    return world(status=status, changes=changes, **parts)


def early(reason: str) -> dict[str, Any]:
    """The operator has recorded that it ends attempt 1."""
    return {"reason": reason, "message": "It takes too long.", "attempt": 1}


DEADLINE_OF_ITS_OWN = early(failures.DEADLINE_EXCEEDED) | {"exitCode": 1}
RUNS: dict[str, Any] = {"jobs": (worlds.job(),), "pods": (worlds.running(),)}
SUSPEND: dict[str, Any] = {"suspend": True}
CANCEL: dict[str, Any] = {"cancel": True}
COMPLETE: dict[str, Any] = {"jobs": (worlds.job(complete=True),), "pods": (worlds.ended(0),)}
STOPPED: dict[str, Any] = {"jobs": (FAILED_JOB,), "pods": (worlds.ended(75),)}
HANGS = worlds.snapshot(
    5, time=worlds.at(2000), progress=worlds.progress(5, last_step_time=worlds.at(100), cpu_utilization=0.0)
)


def active(seconds: float, *, limit: int, earlier: int = 0, **parts: Any) -> World:
    """Attempt 1 has run for so long, the attempts before it for `earlier`."""
    status = worlds.status(1, started=True, earlierActiveSeconds=earlier, **parts.pop("told", {}))
    found = RUNS | {"now": worlds.at(5 + seconds), "changes": {"activeDeadlineSeconds": limit}} | parts
    return world(status=status, **found)


def story(id_: str, found: World, check: Check, action: Action) -> Any:
    return pytest.param(found, check, action, id=id_)


def queued(*, started: bool = True, changes: dict[str, Any] | None = None, **parts: Any) -> World:
    """Kueue decides; the Job of attempt 1 was started at 3 s, if it was."""
    told = {"jobStartTime": worlds.at(3)} if started else {}
    status = worlds.status(1, started=started, **told)
    return world(status=status, changes={"queue.name": "team-a"} | (changes or {}), **parts)


LIFECYCLE: list[Any] = [
    story(
        "the time after its end is over",
        ended_at(3600, ttlSecondsAfterFinished=3600),
        policy.delete_what_has_outlived_its_time,
        Action.DELETE,
    ),
    story(
        "it is to be deleted at its end",
        ended_at(0, ttlSecondsAfterFinished=0),
        policy.delete_what_has_outlived_its_time,
        Action.DELETE,
    ),
    story(
        "the time after its end is not over",
        ended_at(3599, ttlSecondsAfterFinished=3600),
        policy.leave_finished_runs_alone,
        Action.REST,
    ),
    story(
        "a job turns up after the end",
        world(**RUNS, status=worlds.status(1, conditions=[FINISHED])),
        policy.end_what_outlived_its_run,
        Action.STOP,
    ),
    story(
        "a job of an earlier attempt turns up beside the newest one's",
        world(2, jobs=(worlds.job(1), worlds.job(2)), pods=(worlds.running(2),)),
        policy.end_what_outlived_its_attempt,
        Action.STOP,
    ),
    story("it is kept for ever", ended_at(10**9), policy.leave_finished_runs_alone, Action.REST),
    story(
        "a time to live says nothing of a run that goes on",
        world(**RUNS, changes={"ttlSecondsAfterFinished": 0}, now=worlds.at(10**6)),
        policy.follow,
        Action.FOLLOW,
    ),
    story(
        "Kueue has evicted it, and its pod still saves",
        queued(jobs=(worlds.job(suspended=True),), pods=(worlds.running(deletion=worlds.at(400)),)),
        policy.follow,
        Action.FOLLOW,
    ),
    story(
        "Kueue has evicted it, and its pod has saved",
        queued(jobs=(worlds.job(suspended=True),), pods=(worlds.ended(75),)),
        policy.go_on_when_kueue_lets_it,
        Action.BEGIN,
    ),
    story(
        "Kueue has evicted it and let it run again, while nobody looked",
        queued(jobs=(worlds.job(started=worlds.at(90)),), pods=(worlds.running(created=worlds.at(91)),)),
        policy.catch_up_with_kueue,
        Action.BEGIN,
    ),
    story(
        "Kueue holds it back",
        queued(started=False, jobs=(worlds.job(suspended=True),)),
        policy.follow,
        Action.FOLLOW,
    ),
    story(
        "another suspends the job of a run that isn't Kueue's",
        world(jobs=(worlds.job(suspended=True),), pods=(worlds.ended(75),)),
        policy.follow,
        Action.FOLLOW,
    ),
    story(
        "it is paused while Kueue holds it back",
        queued(started=False, jobs=(worlds.job(suspended=True),), changes=SUSPEND),
        policy.stop_what_must_end,
        Action.STOP,
    ),
    story("paused before its first attempt", worlds.world(worlds.run(SUSPEND)), policy.pause, Action.PAUSE),
    story("paused while it waits", worlds.world(worlds.run(SUSPEND), turn=WAITS), policy.pause, Action.PAUSE),
    story(
        "paused when an attempt is recorded, without a job",
        world(started=False, changes=SUSPEND),
        policy.pause,
        Action.PAUSE,
    ),
    story(
        "paused before its pod runs",
        world(started=False, changes=SUSPEND, jobs=(worlds.job(),), pods=(worlds.pod(),)),
        policy.stop_what_must_end,
        Action.STOP,
    ),
    story("paused while it trains", world(**RUNS, changes=SUSPEND), policy.stop_what_must_end, Action.STOP),
    story(
        "paused, the job is gone and the pod saves",
        world(changes=SUSPEND, pods=(worlds.running(deletion=worlds.at(300)),)),
        policy.stop_what_must_end,
        Action.STOP,
    ),
    story("paused, job and pod are gone", world(changes=SUSPEND), policy.pause, Action.PAUSE),
    story(
        "paused, the pod has saved and ended",
        world(changes=SUSPEND, pods=(worlds.ended(75),)),
        policy.pause,
        Action.PAUSE,
    ),
    story(
        "paused while its job fails",
        world(**STOPPED, changes=SUSPEND),
        policy.judge_an_attempt_that_failed,
        Action.PAUSE,
    ),
    story(
        "paused while its trainer finds bad data",
        world(jobs=(FAILED_JOB,), pods=(worlds.ended(65),), changes=SUSPEND),
        policy.judge_an_attempt_that_failed,
        Action.FAIL,
    ),
    story("paused while it completes", world(**COMPLETE, changes=SUSPEND), policy.finish_with_a_model, Action.SUCCEED),
    story("it is paused", paused(changes=SUSPEND), policy.pause, Action.PAUSE),
    story(
        "it is paused, its failed job is still there", paused(**STOPPED, changes=SUSPEND), policy.pause, Action.PAUSE
    ),
    story(
        "it is paused, a pod turns up late",
        paused(changes=SUSPEND, pods=(worlds.running(),)),
        policy.stop_what_must_end,
        Action.STOP,
    ),
    story("it goes on", paused(), policy.begin, Action.BEGIN),
    story("it goes on, its failed job is still there", paused(**STOPPED), policy.begin, Action.BEGIN),
    story("it goes on, and its turn hasn't come", paused(turn=WAITS), policy.wait_for_its_turn, Action.WAIT),
    story("paused before its first attempt, and it goes on", paused(0), policy.begin, Action.BEGIN),
    story("canceled before its first attempt", worlds.world(worlds.run(CANCEL)), policy.cancel, Action.CANCEL),
    story("canceled while it waits", worlds.world(worlds.run(CANCEL), turn=WAITS), policy.cancel, Action.CANCEL),
    story(
        "canceled when an attempt is recorded, without a job",
        world(started=False, changes=CANCEL),
        policy.cancel,
        Action.CANCEL,
    ),
    story("canceled while it trains", world(**RUNS, changes=CANCEL), policy.stop_what_must_end, Action.STOP),
    story("canceled, job and pod are gone", world(changes=CANCEL), policy.cancel, Action.CANCEL),
    story("canceled while its job fails", world(**STOPPED, changes=CANCEL), policy.cancel, Action.CANCEL),
    story(
        "canceled between two attempts",
        world(2, started=False, changes=CANCEL, **STOPPED),
        policy.cancel,
        Action.CANCEL,
    ),
    story("canceled while it is paused", paused(changes=CANCEL | SUSPEND), policy.cancel, Action.CANCEL),
    story(
        "canceled when its job is complete",
        world(**COMPLETE, changes=CANCEL),
        policy.finish_with_a_model,
        Action.SUCCEED,
    ),
    story("active for less than the deadline", active(59, limit=60), policy.follow, Action.FOLLOW),
    story("active for as long as the deadline", active(60, limit=60), policy.end_what_runs_too_long, Action.FOLLOW),
    story(
        "active for too long over two attempts",
        active(30, limit=60, earlier=30),
        policy.end_what_runs_too_long,
        Action.FOLLOW,
    ),
    story(
        "ended for its deadline, and not yet gone",
        active(70, limit=60, told={"failure": early(failures.DEADLINE_EXCEEDED)}),
        policy.stop_what_must_end,
        Action.STOP,
    ),
    story(
        "ended for its deadline, which was raised too late",
        active(70, limit=600, told={"failure": early(failures.DEADLINE_EXCEEDED)}, jobs=(), pods=()),
        policy.fail_after_the_deadline,
        Action.FAIL,
    ),
    story("its deadline was raised in time", active(70, limit=600), policy.follow, Action.FOLLOW),
    story(
        "its job failed when the time was over",
        active(70, limit=60, jobs=(FAILED_JOB,), pods=(worlds.ended(1, finished=worlds.at(66)),)),
        policy.fail_after_the_deadline,
        Action.FAIL,
    ),
    story(
        "complete when the time was over", active(70, limit=60, **COMPLETE), policy.finish_with_a_model, Action.SUCCEED
    ),
    story(
        "it is paused, and time goes by",
        paused(
            changes=SUSPEND | {"activeDeadlineSeconds": 60}, now=worlds.at(10**6), told={"earlierActiveSeconds": 59}
        ),
        policy.pause,
        Action.PAUSE,
    ),
    story(
        "a trainer that speaks of a deadline of its own",
        world(
            **RUNS, status=worlds.status(1, started=True, failure=early(failures.DEADLINE_EXCEEDED) | {"exitCode": 1})
        ),
        policy.follow,
        Action.FOLLOW,
    ),
    story("it hangs", world(**RUNS, snapshot=HANGS), policy.notice_a_hang, Action.FOLLOW),
    story(
        "ended because it hung, and not yet gone",
        world(**RUNS, status=worlds.status(1, started=True, failure=early(failures.HUNG))),
        policy.stop_what_must_end,
        Action.STOP,
    ),
    story(
        "ended because it hung, job and pod are gone",
        world(status=worlds.status(1, started=True, failure=early(failures.HUNG))),
        policy.judge_an_attempt_that_failed,
        Action.BEGIN,
    ),
    story(
        "ended because it hung, and complete after all",
        world(**COMPLETE, status=worlds.status(1, started=True, failure=early(failures.HUNG))),
        policy.finish_with_a_model,
        Action.SUCCEED,
    ),
    story(
        "ended because it hung, and paused meanwhile",
        world(status=worlds.status(1, started=True, failure=early(failures.HUNG)), changes=SUSPEND),
        policy.judge_an_attempt_that_failed,
        Action.PAUSE,
    ),
    story(
        "the attempt before hung",
        world(
            2,
            status=worlds.status(2, started=True, failure=early(failures.HUNG)),
            jobs=(worlds.job(2),),
            pods=(worlds.running(2),),
        ),
        policy.follow,
        Action.FOLLOW,
    ),
    story(
        "a spec that can't be read any more, recorded and without a job",
        world(started=False, changes={"training.maxDuration": "3 epochs"}),
        policy.create_what_was_recorded,
        Action.FAIL,
    ),
    story(
        "a job of the run without an attempt's number",
        worlds.world(jobs=(worlds.job(0, complete=True),), pods=(worlds.ended(0, 0),)),
        policy.begin,
        Action.BEGIN,
    ),
]


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
        worlds.world(
            dataclasses.replace(worlds.run(), not_allowed=(UserError("spec.resources.nodes", "3 is too many"),))
        ),
        policy.refuse_what_its_profile_does_not_allow,
        Action.REFUSE,
        id="a spec that asks for more than its profile allows",
    ),
    pytest.param(
        worlds.world(dataclasses.replace(worlds.run({"resources.nodes": 2}), missing_profile="a100")),
        policy.wait_for_its_profile,
        Action.WAIT,
        id="its profile isn't there yet, which may say what it lacks",
    ),
    pytest.param(
        worlds.world(dataclasses.replace(worlds.run(CANCEL), missing_profile="a100")),
        policy.cancel,
        Action.CANCEL,
        id="canceled while its profile isn't there",
    ),
    pytest.param(
        worlds.world(worlds.run({"resources.nodes": 2})),
        policy.refuse_what_contradicts_itself,
        Action.REFUSE,
        id="several nodes with a volume of one",
    ),
    pytest.param(
        worlds.world(worlds.run({"model.uri": "run://nobody"})),
        policy.refuse_a_model_that_is_not_there,
        Action.REFUSE,
        id="a model of a run that isn't there",
    ),
    pytest.param(
        world(changes={"model.uri": "run://nobody"}, jobs=(worlds.job(),), pods=(worlds.running(),)),
        policy.follow,
        Action.FOLLOW,
        id="the model's run is gone, this one has begun",
    ),
    pytest.param(worlds.world(), policy.begin, Action.BEGIN, id="a new run"),
    pytest.param(worlds.world(turn=WAITS), policy.wait_for_its_turn, Action.WAIT, id="its turn hasn't come"),
    pytest.param(
        worlds.world(turn=Turn(admitted=False, never="asks for 9 gpus, and all may use 8: ask for fewer")),
        policy.refuse_what_never_fits,
        Action.REFUSE,
        id="its turn can never come",
    ),
    *LIFECYCLE,
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
        world(2, started=False, pods=(worlds.running(1, deletion=worlds.at(30)),)),
        policy.follow,
        Action.FOLLOW,
        id="the first one's job is deleted, its pod still runs",
    ),
    pytest.param(
        world(started=False, pods=(worlds.pod(deletion=worlds.at(30)),)),
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
        world(pods=(worlds.running(deletion=worlds.at(30)),)),
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
    assert decision.failure.reason == REASONS.get(code, failures.TRAINER_FAILED)
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
            failures.TRAINER_FAILED,
            "Segmentation fault (Pod",
            id="a last word in plain text is shown",
        ),
        pytest.param(
            failed(worlds.ended(1, last_word='{"half')),
            failures.TRAINER_FAILED,
            "no message; see kubectl logs support-bot-1-abcde",
            id="half a snapshot is not",
        ),
        pytest.param(
            failed(worlds.ended(137, exit_reason="OOMKilled")),
            failures.OUT_OF_MEMORY,
            "raise spec.resources.memory",
            id="out of memory",
        ),
        pytest.param(
            failed(worlds.pod(phase="Failed", disrupted="EvictionByEvictionAPI")),
            failures.DISRUPTED,
            "EvictionByEvictionAPI",
            id="evicted before the container ran",
        ),
        pytest.param(
            failed(worlds.pod(phase="Failed", exit_reason="NodeLost")),
            failures.POD_LOST,
            "NodeLost",
            id="failed without a word",
        ),
        pytest.param(failed(None), failures.POD_LOST, "BackoffLimitExceeded too many", id="the pod is gone"),
        pytest.param(world(), failures.JOB_LOST, "was deleted", id="the job is gone"),
        pytest.param(
            worlds.world(worlds.run({"method.type": "LORA"})), failures.INVALID, "spec.method.type", id="not valid"
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


def hung(times: int, *, saved: int = 0, limit: int = 100) -> Decision:
    """Ended because it hung, after so many that were."""
    there = [worlds.saved(saved).model_dump()] if saved else []
    told = {"hangRestarts": times, "restartsWithoutProgress": times, "checkpoints": there}
    status = worlds.status(1, started=True, failure=early(failures.HUNG), **told)
    return policy.decide(world(status=status, changes={"recovery.maxRestartsWithoutProgress": limit}))


@pytest.mark.parametrize(
    ("decision", "action"),
    [
        pytest.param(hung(0), Action.BEGIN, id="the first"),
        pytest.param(hung(2), Action.BEGIN, id="the third in a row"),
        pytest.param(hung(3), Action.FAIL, id="the fourth in a row"),
        pytest.param(hung(3, saved=5), Action.BEGIN, id="a new checkpoint forgives the earlier ones"),
        pytest.param(hung(1, limit=1), Action.FAIL, id="the user allows fewer"),
    ],
)
def test_an_attempt_that_hung_is_followed_by_another_three_times_in_a_row(decision: Decision, action: Action) -> None:
    assert decision.action is action
    assert decision.failure is not None
    assert decision.failure.reason == failures.HUNG
    assert decision.counted is (action is Action.BEGIN)


@pytest.mark.parametrize(("asked", "recorded"), [("Notify", False), ("Restart", True)])
def test_a_hang_is_told_and_ends_the_attempt_only_if_that_is_asked_for(asked: str, recorded: bool) -> None:
    decision = policy.decide(world(**RUNS, snapshot=HANGS, changes={"recovery.onHang": asked}))
    assert decision.action is Action.FOLLOW
    assert decision.hung.startswith("No step since batch 5 at 2026-03-01 12:01:40 UTC")
    assert (decision.failure is not None and decision.failure.reason == failures.HUNG) is recorded


def test_a_deadline_says_how_long_the_run_was_active() -> None:
    decision = policy.decide(active(40, limit=60, earlier=30))
    assert decision.failure is not None
    assert decision.failure.message == "The run was active for 70 s; spec.activeDeadlineSeconds is 60"
    assert (decision.failure.attempt, decision.failure.pod) == (1, "support-bot-1-abcde")


@pytest.mark.parametrize(
    ("found", "left"),
    [
        pytest.param(ended_at(10, ttlSecondsAfterFinished=60), timedelta(seconds=50), id="later"),
        pytest.param(ended_at(70, ttlSecondsAfterFinished=60), timedelta(seconds=-10), id="already"),
        pytest.param(ended_at(0, ttlSecondsAfterFinished=0), timedelta(), id="at once"),
        pytest.param(ended_at(10), None, id="never"),
        pytest.param(world(**RUNS, changes={"ttlSecondsAfterFinished": 0}), None, id="not while it goes on"),
    ],
)
def test_when_a_run_is_deleted(found: World, left: timedelta | None) -> None:
    assert policy.expires(found) == left


@pytest.mark.parametrize(
    ("found", "left"),
    [
        pytest.param(active(20, limit=60), 40, id="while it runs"),
        pytest.param(active(20, limit=60, earlier=30), 10, id="after other attempts"),
        pytest.param(paused(changes={"activeDeadlineSeconds": 60}, told={"earlierActiveSeconds": 25}), 35, id="paused"),
        pytest.param(
            active(900, limit=60, jobs=(FAILED_JOB,), pods=(worlds.ended(1),)), 5, id="its pod has ended after 55 s"
        ),
    ],
)
def test_time_that_is_left_is_active_time(found: World, left: float) -> None:
    assert policy.time_left(found) == timedelta(seconds=left)


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


def spent(used: int, *, limit: int = 3, code: int = 1, saved: int = 0) -> Decision:
    """After so many restarts without progress; the attempts before saved step 5, this one `saved`."""
    there = [worlds.saved(saved).model_dump()] if saved else []
    status = worlds.status(1, started=True, restartsWithoutProgress=used, earlierStep=5, checkpoints=there)
    changes = {"recovery.maxRestartsWithoutProgress": limit}
    return policy.decide(failed(worlds.ended(code), status=status, changes=changes))


@pytest.mark.parametrize(
    ("decision", "action"),
    [
        pytest.param(spent(2), Action.BEGIN, id="one restart is left"),
        pytest.param(spent(3), Action.FAIL, id="none is left"),
        pytest.param(spent(0, limit=0), Action.FAIL, id="none was allowed"),
        pytest.param(spent(3, code=75), Action.BEGIN, id="a free one is always left"),
        pytest.param(spent(3, saved=6), Action.BEGIN, id="a checkpoint of a later step forgives the earlier ones"),
        pytest.param(spent(3, saved=5), Action.FAIL, id="the same step again doesn't"),
        pytest.param(spent(0, code=65, saved=6), Action.FAIL, id="bad data is final all the same"),
    ],
)
def test_restarts_without_progress_are_limited(decision: Decision, action: Action) -> None:
    assert decision.action is action


@pytest.mark.parametrize(("step", "progressed"), [(4, False), (5, False), (6, True)])
def test_a_later_step_in_the_last_word_is_progress_even_if_nobody_saw_the_pod_run(step: int, progressed: bool) -> None:
    word = worlds.last_word(1, checkpoints=(worlds.saved(step),))
    status = worlds.status(1, earlierStep=5)
    assert policy.made_progress(failed(worlds.ended(1, last_word=word), status=status)) is progressed


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
        pytest.param(2, Action.BEGIN, failures.POD_LOST, id="of the attempt before"),
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
        pytest.param(137, failures.DISRUPTED, id="a kill is the disruption's"),
        pytest.param(1, failures.DISRUPTED, id="so is a crash at that time"),
        pytest.param(65, "DataInvalid", id="bad data is bad data"),
    ],
)
def test_a_disruption_explains_what_is_not_final(code: int, expected: str) -> None:
    assert reason(failed(worlds.ended(code, disrupted="EvictionByEvictionAPI"))) == expected
