"""What is to be done with a run now: an ordered tuple of checks, of which the first that has an answer decides. Pure.

Read CHECKS at the end as the table of contents. A check looks at one World and never at a clock of its own.

What ends an attempt before its time is recorded before anything is deleted, in the spec (suspend, cancel) or in
`status.failure`, so that a restarted operator goes on as the one before would have.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto

from finetune_api.fields import cut
from finetune_api.snapshot import FINAL_CODES, ExitCode
from finetune_api.spec import MANAGED_BY, OnHang
from finetune_api.status import Failure
from finetune_operator import failures, gang, hang
from finetune_operator.errors import UserError
from finetune_operator.run import paused
from finetune_operator.world import World

HANG_RESTARTS = 3
"""Attempts in a row without a newer checkpoint that may be ended because they hung."""


class Action(Enum):
    """What follows."""

    IGNORE = auto()
    """Nothing, not even a look."""
    REST = auto()
    """Nothing: the run has ended."""
    DELETE = auto()
    """Delete the run: its time after the end is over."""
    REFUSE = auto()
    """End the run before it begins, and say why."""
    WAIT = auto()
    """Tell what the run waits for: its turn hasn't come."""
    BEGIN = auto()
    """Record a new attempt in the status; its Job is created once that is written."""
    CREATE = auto()
    """Create the claim and the Job of the recorded attempt."""
    FOLLOW = auto()
    """Report what the attempt does."""
    STOP = auto()
    """End the attempt before its time: the trainer saves a checkpoint, and its devices become free."""
    PAUSE = auto()
    """Record that the run is paused, nothing of it runs."""
    CANCEL = auto()
    """End the run at its user's wish."""
    SUCCEED = auto()
    """End the run: the model is there."""
    FAIL = auto()
    """End the run: the model isn't there."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """An action and its reason.

    `failure` says what ended the attempt, where one did; `counted` whether that uses up a restart without progress;
    `hung` why it seems to hang.
    """

    action: Action
    failure: Failure | None = None
    counted: bool = False
    hung: str = ""
    same_job: bool = False
    """Of BEGIN: the attempt goes on in the Job that there is."""


Check = Callable[[World], Decision | None]


def decide(world: World) -> Decision:
    """The first answer of CHECKS."""
    for check in CHECKS:
        decision = check(world)
        if decision is not None:
            return decision
    raise AssertionError("the last check always answers")


def ignore_runs_of_others(world: World) -> Decision | None:
    other = world.run.spec is not None and world.run.spec.managed_by != MANAGED_BY
    return Decision(action=Action.IGNORE) if other or world.run.metadata.deletion_timestamp else None


def delete_what_has_outlived_its_time(world: World) -> Decision | None:
    due = expires(world)
    return Decision(action=Action.DELETE) if due is not None and due <= timedelta() else None


def end_what_outlived_its_run(world: World) -> Decision | None:
    """A create that was still on its way when its operator died may arrive after the run has ended."""
    return Decision(action=Action.STOP) if world.run.status.is_finished and _runs(world) else None


def leave_finished_runs_alone(world: World) -> Decision | None:
    return Decision(action=Action.REST) if world.run.status.is_finished else None


def end_what_outlived_its_attempt(world: World) -> Decision | None:
    """Likewise of an attempt: its number is over, and two must never train at once."""
    return Decision(action=Action.STOP) if world.strays else None


def refuse_what_cannot_be_read(world: World) -> Decision | None:
    """A run that has begun goes on: it was accepted once, by an API that has changed since."""
    if world.run.problem is None or world.attempt > 0:
        return None
    return _refuse(failures.INVALID, str(world.run.problem))


def refuse_what_its_profile_does_not_allow(world: World) -> Decision | None:
    if world.attempt > 0 or not world.run.not_allowed:
        return None
    return _refuse(failures.NOT_ALLOWED, "; ".join(str(problem) for problem in world.run.not_allowed))


def refuse_what_contradicts_itself(world: World) -> Decision | None:
    """A run whose profile isn't there isn't whole yet."""
    if world.attempt > 0 or world.run.spec is None or world.run.missing_profile:
        return None
    found = [str(problem) for problem in gang.contradictions(world.run.spec)]
    return _refuse(failures.INVALID, "; ".join(found)) if found else None


def refuse_a_model_that_is_not_there(world: World) -> Decision | None:
    if world.attempt > 0 or not isinstance(world.model, UserError):
        return None
    return _refuse(failures.MODEL_NOT_FOUND, str(world.model))


def finish_with_a_model(world: World) -> Decision | None:
    if world.job is None or not world.job.complete or _alive(world, world.number):
        return None
    return Decision(action=Action.SUCCEED)


def stop_what_must_end(world: World) -> Decision | None:
    """Also a pod that was left over: what is paused or canceled runs nowhere."""
    wanted = _canceled(world) or _suspended(world) or failures.recorded(world) is not None
    return Decision(action=Action.STOP) if wanted and _runs(world) else None


def cancel(world: World) -> Decision | None:
    return Decision(action=Action.CANCEL) if _canceled(world) else None


def fail_after_the_deadline(world: World) -> Decision | None:
    """One that was ended for it, or one that has no time left for another attempt."""
    failure = failures.recorded(world)
    if failure is None and world.attempt > 0 and not _runs(world):
        failure = _too_long(world)
    if failure is None or failure.reason != failures.DEADLINE_EXCEEDED:
        return None
    return Decision(action=Action.FAIL, failure=failure)


def judge_an_attempt_that_failed(world: World) -> Decision | None:
    """Try again, unless the next attempt would end the same way or too many have ended without a newer checkpoint."""
    if paused(world.run) or _alive(world, world.number):
        return None
    lost = world.job is None and world.started is not None
    stopped = _suspended(world) and failures.recorded(world) is None
    if (not lost and (world.job is None or not world.job.failed)) or (lost and stopped):
        return None
    failure = failures.what_failed(world)
    if failure.exit_code in FINAL_CODES or _is_one_too_many(world, failure):
        return Decision(action=Action.FAIL, failure=failure)
    action = Action.PAUSE if _suspended(world) else Action.BEGIN
    return Decision(action=action, failure=failure, counted=not failures.is_free(world, failure))


def catch_up_with_kueue(world: World) -> Decision | None:
    """It has evicted the attempt and let the Job run again, and nobody looked: what runs now is the next attempt."""
    if not world.evicted or not world.begun_anew or failures.recorded(world) is not None:
        return None
    return Decision(action=Action.BEGIN, failure=failures.evicted(world), same_job=True)


def go_on_when_kueue_lets_it(world: World) -> Decision | None:
    """The Job stays, and with it its place in the queue: what runs in it next is the next attempt."""
    if not world.evicted or _alive(world, world.number):
        return None
    return Decision(action=Action.BEGIN, failure=failures.evicted(world), same_job=True)


def pause(world: World) -> Decision | None:
    return Decision(action=Action.PAUSE) if _suspended(world) else None


def wait_for_its_profile(world: World) -> Decision | None:
    """It may come after the run, as it does where both are applied together."""
    return Decision(action=Action.WAIT) if world.attempt == 0 and world.run.missing_profile else None


def refuse_what_never_fits(world: World) -> Decision | None:
    return _refuse(failures.LIMIT_EXCEEDED, f"spec.resources {world.turn.never}") if world.turn.never else None


def wait_for_its_turn(world: World) -> Decision | None:
    between = world.attempt == 0 or paused(world.run)
    return Decision(action=Action.WAIT) if between and not world.turn.admitted else None


def begin(world: World) -> Decision | None:
    """The first attempt, or the next one of a run that was paused."""
    return Decision(action=Action.BEGIN) if world.attempt == 0 or paused(world.run) else None


def create_what_was_recorded(world: World) -> Decision | None:
    """A recorded attempt that never started has no Job only because creating it was interrupted.

    Two trainers never share a volume: a pod that still runs is waited for, also one whose Job was deleted.
    """
    if world.job is not None or world.started is not None or world.live_pods:
        return None
    if world.run.spec is None:
        failure = Failure(reason=failures.INVALID, message=cut(str(world.run.problem)), attempt=world.attempt)
        return Decision(action=Action.FAIL, failure=failure)
    return Decision(action=Action.CREATE)


def end_what_runs_too_long(world: World) -> Decision | None:
    """Recorded first; once it is, stop_what_must_end follows."""
    failure = _too_long(world)
    return Decision(action=Action.FOLLOW, failure=failure) if failure else None


def notice_a_hang(world: World) -> Decision | None:
    """Told; or, where that is asked for, recorded as the attempt's end, and stop_what_must_end follows."""
    if world.run.spec is None:
        return None
    recovery = world.run.spec.recovery
    found = hang.why(world, timeout=timedelta(seconds=recovery.hang_timeout_seconds))
    if found is None:
        return None
    restart = recovery.on_hang == OnHang.RESTART
    return Decision(
        action=Action.FOLLOW, hung=found, failure=failures.ended_early(world, failures.HUNG, found) if restart else None
    )


def follow(world: World) -> Decision | None:
    """A pod may be gone by the time its Job has failed, so why it ended is recorded as soon as it is seen."""
    ended_badly = world.pod is not None and world.pod.ended and world.pod.exit_code not in (None, ExitCode.DONE)
    return Decision(action=Action.FOLLOW, failure=failures.what_failed(world) if ended_badly else None)


CHECKS: tuple[Check, ...] = (
    ignore_runs_of_others,
    delete_what_has_outlived_its_time,
    end_what_outlived_its_run,
    leave_finished_runs_alone,
    end_what_outlived_its_attempt,
    refuse_what_cannot_be_read,
    refuse_what_its_profile_does_not_allow,
    refuse_what_contradicts_itself,
    refuse_a_model_that_is_not_there,
    catch_up_with_kueue,
    finish_with_a_model,
    stop_what_must_end,
    cancel,
    fail_after_the_deadline,
    judge_an_attempt_that_failed,
    go_on_when_kueue_lets_it,
    pause,
    wait_for_its_profile,
    refuse_what_never_fits,
    wait_for_its_turn,
    begin,
    create_what_was_recorded,
    end_what_runs_too_long,
    notice_a_hang,
    follow,
)


def has_time_to_live(world: World) -> bool:
    """Whether the run is to be deleted some time after its end."""
    return world.run.spec is not None and world.run.spec.ttl_seconds_after_finished is not None


def expires(world: World) -> timedelta | None:
    """Time until a run that has ended is deleted; None for never."""
    seconds = world.run.spec.ttl_seconds_after_finished if world.run.spec else None
    end = world.run.status.completion_time
    if seconds is None or end is None or not world.run.status.is_finished:
        return None
    return timedelta(seconds=seconds) - (world.now - end)


def time_left(world: World) -> timedelta | None:
    """Time until the run was active for too long; None for never."""
    limit = world.run.spec.active_deadline_seconds if world.run.spec else None
    return None if limit is None else timedelta(seconds=max(limit - world.active_seconds, -1))


def _canceled(world: World) -> bool:
    return world.run.spec is not None and world.run.spec.cancel


def _suspended(world: World) -> bool:
    return world.run.spec is not None and world.run.spec.suspend


def _refuse(reason: str, message: str) -> Decision:
    return Decision(action=Action.REFUSE, failure=Failure(reason=reason, message=cut(message)))


def _too_long(world: World) -> Failure | None:
    left, spec = time_left(world), world.run.spec
    if left is None or left > timedelta() or spec is None:
        return None
    limit = spec.active_deadline_seconds
    message = f"The run was active for {round(world.active_seconds)} s; spec.activeDeadlineSeconds is {limit}"
    return failures.ended_early(world, failures.DEADLINE_EXCEEDED, message)


def _runs(world: World) -> bool:
    """Whether something of the run may still work."""
    return (world.job is not None and not world.job.ended) or bool(world.strays or world.live_pods)


def _is_one_too_many(world: World, failure: Failure) -> bool:
    if failures.is_free(world, failure) or world.run.spec is None:
        return world.run.spec is None
    progressed = made_progress(world)
    status = world.run.status
    used = 0 if progressed else status.restarts_without_progress
    hung = 0 if progressed else status.hang_restarts
    too_often = used >= world.run.spec.recovery.max_restarts_without_progress
    return too_often or (failure.reason == failures.HUNG and hung >= HANG_RESTARTS)


def made_progress(world: World) -> bool:
    """Whether the newest attempt saved a checkpoint of a later step than all before it did."""
    return newest_step(world) > world.run.status.earlier_step


def newest_step(world: World) -> int:
    """The last step that was saved, by any attempt."""
    status, word = world.run.status, world.newest_snapshot
    steps = [checkpoint.step for checkpoint in status.checkpoints]
    steps += [checkpoint.step for checkpoint in (word.checkpoints if word else ())]
    return max([status.earlier_step, *steps])


def _alive(world: World, attempt: int) -> bool:
    """Whether a pod of that attempt may still run."""
    return any(pod.attempt == attempt and not pod.ended for pod in world.pods)
