"""What is to be done with a run now: an ordered tuple of checks, of which the first that has an answer decides. Pure.

Read CHECKS at the end as the table of contents. A check looks at one World and never at a clock of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from finetune_api.fields import cut
from finetune_api.snapshot import FINAL_CODES, REASONS, ExitCode
from finetune_api.spec import MANAGED_BY
from finetune_api.status import Failure
from finetune_operator import support
from finetune_operator.children import Pod
from finetune_operator.world import World

INVALID = "Invalid"
"""The spec breaks a rule of the API."""
NOT_SUPPORTED = "NotSupported"
"""The spec asks for what this version doesn't do."""
JOB_LOST = "JobLost"
"""The attempt's Job is gone, though it had begun."""
POD_LOST = "PodLost"
"""The attempt's pod is gone without a word."""
TRAINER_FAILED = "TrainerFailed"
"""The trainer ended with a code that has no meaning of its own."""
OUT_OF_MEMORY = "OutOfMemory"
"""The kernel killed the trainer for want of memory."""
DISRUPTED = "Disrupted"
"""The pod was evicted, preempted, or its node went away."""


class Action(Enum):
    """What follows."""

    IGNORE = auto()
    """Nothing, not even a look."""
    REST = auto()
    """Nothing: the run has ended."""
    REFUSE = auto()
    """End the run before it begins, and say why."""
    BEGIN = auto()
    """Record a new attempt in the status; its Job is created once that is written."""
    CREATE = auto()
    """Create the claim and the Job of the recorded attempt."""
    FOLLOW = auto()
    """Report what the attempt does."""
    SUCCEED = auto()
    """End the run: the model is there."""
    FAIL = auto()
    """End the run: the model isn't there."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """An action and its reason.

    `failure` says what ended the attempt, where one did; `counted` whether that uses up a restart without progress.
    """

    action: Action
    failure: Failure | None = None
    counted: bool = False


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


def leave_finished_runs_alone(world: World) -> Decision | None:
    return Decision(action=Action.REST) if world.run.status.is_finished else None


def refuse_what_cannot_be_read(world: World) -> Decision | None:
    """A run that has begun goes on: it was accepted once, by an API that has changed since."""
    if world.run.problem is None or world.attempt > 0:
        return None
    return Decision(action=Action.REFUSE, failure=Failure(reason=INVALID, message=cut(str(world.run.problem))))


def refuse_what_is_not_built(world: World) -> Decision | None:
    if world.attempt > 0 or world.run.spec is None:
        return None
    found = [str(gap) for gap in support.gaps(world.run.spec)]
    if not found:
        return None
    return Decision(action=Action.REFUSE, failure=Failure(reason=NOT_SUPPORTED, message=cut("; ".join(found))))


def begin_the_first_attempt(world: World) -> Decision | None:
    return Decision(action=Action.BEGIN) if world.attempt == 0 else None


def create_what_was_recorded(world: World) -> Decision | None:
    """A recorded attempt that never started has no Job only because creating it was interrupted.

    Two trainers never share a volume: a pod that still runs is waited for, also one whose Job was deleted.
    """
    if world.job is None and world.started is None and all(pod.ended for pod in world.pods):
        return Decision(action=Action.CREATE)
    return None


def finish_with_a_model(world: World) -> Decision | None:
    if world.job is None or not world.job.complete or _alive(world, world.attempt):
        return None
    return Decision(action=Action.SUCCEED)


def judge_an_attempt_that_failed(world: World) -> Decision | None:
    """Try again, unless the next attempt would end the same way or too many have ended without a newer checkpoint."""
    lost = world.job is None and world.started is not None
    if not lost and (world.job is None or not world.job.failed):
        return None
    if _alive(world, world.attempt) or world.run.spec is None:
        return None
    failure = what_failed(world)
    counted = not _is_free(failure)
    used = 0 if made_progress(world) else world.run.status.restarts_without_progress
    limit = world.run.spec.recovery.max_restarts_without_progress
    if failure.exit_code in FINAL_CODES or (counted and used >= limit):
        return Decision(action=Action.FAIL, failure=failure)
    return Decision(action=Action.BEGIN, failure=failure, counted=counted)


def follow(world: World) -> Decision | None:
    """A pod may be gone by the time its Job has failed, so why it ended is recorded as soon as it is seen."""
    ended_badly = world.pod is not None and world.pod.ended and world.pod.exit_code not in (None, ExitCode.DONE)
    return Decision(action=Action.FOLLOW, failure=what_failed(world) if ended_badly else None)


CHECKS: tuple[Check, ...] = (
    ignore_runs_of_others,
    leave_finished_runs_alone,
    refuse_what_cannot_be_read,
    refuse_what_is_not_built,
    begin_the_first_attempt,
    create_what_was_recorded,
    finish_with_a_model,
    judge_an_attempt_that_failed,
    follow,
)


def made_progress(world: World) -> bool:
    """Whether the newest attempt saved a checkpoint."""
    start, word = world.started, world.newest_snapshot
    times = [checkpoint.time for checkpoint in world.run.status.checkpoints]
    times += [checkpoint.time for checkpoint in (word.checkpoints if word else ())]
    return start is not None and any(time >= start for time in times)


def what_failed(world: World) -> Failure:
    """Why the newest attempt ended, from the pod's exit code and the trainer's last word."""
    pod, word, recorded = world.pod, world.last_word, world.run.status.failure
    if pod is None or pod.exit_code is None:
        return recorded if recorded and recorded.attempt == world.attempt else _without_a_word(world)
    code = pod.exit_code
    error = word.error if word and word.error and word.error.exit_code == code else None
    where = f"Pod {pod.name} ended with exit code {code}"
    said = error.message if error else _plain_last_word(pod)
    return Failure(
        reason=_reason(pod, said=error.reason if error else ""),
        message=cut(f"{said} ({where})" if said else f"{where}{_hint(pod)}"),
        exit_code=code,
        pod=pod.name,
        attempt=world.attempt,
    )


def _without_a_word(world: World) -> Failure:
    pod, job = world.pod, world.job
    if job is None:
        reason, message = JOB_LOST, "The attempt's Job was deleted while it ran"
    elif pod is not None:
        reason = DISRUPTED if pod.disrupted else POD_LOST
        message = f"Pod {pod.name} ended without an exit code: {pod.disrupted or pod.exit_reason or 'no reason given'}"
    else:
        reason, message = POD_LOST, f"The attempt's pod is gone: {job.reason} {job.message}".strip()
    return Failure(reason=reason, message=cut(message), pod=pod.name if pod else None, attempt=world.attempt)


def _reason(pod: Pod, *, said: str) -> str:
    """A disruption explains any code that isn't final; else the trainer's own word does, or the code."""
    if pod.disrupted and pod.exit_code not in FINAL_CODES:
        return DISRUPTED
    if pod.exit_reason == "OOMKilled":
        return OUT_OF_MEMORY
    return said or REASONS.get(pod.exit_code or 0, TRAINER_FAILED)


def _hint(pod: Pod) -> str:
    if pod.exit_reason == "OOMKilled":
        return " (OOMKilled): raise spec.resources.memory, or lower training.batchSize or maxSequenceLength"
    return f" and no message; see kubectl logs {pod.name}"


def _plain_last_word(pod: Pod) -> str:
    """A termination message that isn't a snapshot is shown as it is."""
    return "" if pod.last_word.startswith("{") else cut(pod.last_word, 500)


def _is_free(failure: Failure) -> bool:
    """Whether the attempt ended through no fault of its own."""
    return failure.exit_code == ExitCode.STOPPED or failure.reason in (DISRUPTED, JOB_LOST)


def _alive(world: World, attempt: int) -> bool:
    """Whether a pod of that attempt may still run."""
    return any(pod.attempt == attempt and not pod.ended for pod in world.pods)
