"""Why an attempt ended: from the pod's exit code, the trainer's last word, and what the Job still knows. Pure."""

from finetune_api.fields import cut
from finetune_api.snapshot import FINAL_CODES, REASONS, ExitCode
from finetune_api.status import Failure
from finetune_operator import failurerules, kueue
from finetune_operator.children import Job, Pod
from finetune_operator.world import World

INVALID = "Invalid"
"""The spec breaks a rule of the API."""
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
MODEL_NOT_FOUND = "ModelNotFound"
"""`spec.model.uri` names a run that isn't there, hasn't finished, or has nothing to start from."""
LIMIT_EXCEEDED = "LimitExceeded"
"""The run asks for more devices than all runs together may use."""
NOT_ALLOWED = "NotAllowed"
"""The run asks for more than its profile allows."""
DEADLINE_EXCEEDED = "DeadlineExceeded"
"""The run was active for longer than spec.activeDeadlineSeconds."""
EVICTED = "Evicted"
"""Kueue took back the quota that the attempt ran on."""
HUNG = "Hung"
"""The training made no step any more."""
KNOWN = frozenset(REASONS.values()) | frozenset(
    {
        INVALID,
        JOB_LOST,
        POD_LOST,
        TRAINER_FAILED,
        OUT_OF_MEMORY,
        DISRUPTED,
        MODEL_NOT_FOUND,
        LIMIT_EXCEEDED,
        NOT_ALLOWED,
        DEADLINE_EXCEEDED,
        EVICTED,
        HUNG,
    }
)
"""The words that may come out here; a trainer may say others."""
OTHER = "Other"
"""In metrics: any other word."""

_ENDED_EARLY = frozenset({HUNG, DEADLINE_EXCEEDED})
"""Reasons for which the operator itself ends an attempt, once they are recorded."""


def what_failed(world: World) -> Failure:
    """Why the newest attempt ended, from the pod's exit code and the trainer's last word."""
    pod, known = world.pod, world.run.status.failure
    word = world.word_of(pod) if pod is not None else None
    early = recorded(world)
    if early is not None:
        return early
    if pod is None or pod.exit_code is None or (world.job is None and pod.exit_code not in FINAL_CODES):
        return known if known and known.attempt == world.attempt else _without_a_word(world)
    code = pod.exit_code
    error = word.error if word and word.error and word.error.exit_code == code else None
    where = f"Pod {pod.name} ended with exit code {code}"
    said = error.message if error else _plain_last_word(pod)
    return Failure(
        reason=_reason(pod, said=error.reason if error else ""),
        message=cut(f"{said} ({where})" if said else f"{where}{_hint(pod)}"),
        exit_code=code if 0 <= code <= 255 else None,
        pod=pod.name,
        attempt=world.attempt,
    )


def _without_a_word(world: World) -> Failure:
    pod, job, code = world.pod, world.job, None
    if job is None:
        ended = f"; pod {pod.name} ended with exit code {pod.exit_code}" if pod and pod.exit_code is not None else ""
        reason, message = JOB_LOST, f"The attempt's Job was deleted while it ran{ended}"
    elif pod is not None:
        reason = DISRUPTED if pod.disrupted else POD_LOST
        message = f"Pod {pod.name} ended without an exit code: {pod.disrupted or pod.exit_reason or 'no reason given'}"
    else:
        reason, code, message = _from_the_job(job, rules=failurerules.of(world.run))
    return Failure(
        reason=reason, message=cut(message), exit_code=code, pod=pod.name if pod else None, attempt=world.attempt
    )


def evicted(world: World) -> Failure:
    """The newest attempt, ended by Kueue."""
    pod = world.pod
    code = pod.exit_code if pod is not None else None
    how = f" Pod {pod.name} ended with exit code {code}." if pod is not None and code is not None else ""
    return Failure(
        reason=EVICTED,
        message=cut(f"{kueue.evicted(world.workload)}{how}"),
        exit_code=code if code is not None and 0 <= code <= 255 else None,
        pod=pod.name if pod is not None else None,
        attempt=world.attempt,
    )


def _from_the_job(job: Job, *, rules: tuple[ExitCode | str, ...]) -> tuple[str, ExitCode | None, str]:
    """What a Job still knows of a pod that is gone: which rule of its podFailurePolicy the pod met."""
    rule = failurerules.named_by(job.message, rules=rules) if job.reason == "PodFailurePolicy" else None
    if isinstance(rule, ExitCode):
        return REASONS[rule], rule, f"The attempt's pod is gone; it had ended with exit code {rule}"
    if rule == failurerules.DISRUPTION:
        return DISRUPTED, None, "The attempt's pod is gone: it was evicted or preempted, or its node went away"
    return POD_LOST, None, f"The attempt's pod is gone: {job.reason} {job.message}".strip()


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


def is_free(world: World, failure: Failure) -> bool:
    """Whether the attempt ended through no fault of its own."""
    deleted = world.job is None and not is_early(failure)
    return deleted or failure.exit_code == ExitCode.STOPPED or failure.reason in (DISRUPTED, EVICTED)


def recorded(world: World) -> Failure | None:
    """The reason for which the operator ends the newest attempt, once it is written down."""
    failure = world.run.status.failure
    mine = failure is not None and failure.attempt == world.attempt
    return failure if mine and is_early(failure) else None


def is_early(failure: Failure | None) -> bool:
    """Whether it is the operator that ends the attempt, and not a trainer that speaks of the like."""
    return failure is not None and failure.exit_code is None and failure.reason in _ENDED_EARLY


def ended_early(world: World, reason: str, message: str) -> Failure:
    """The newest attempt, ended by the operator."""
    pod = world.pod.name if world.pod else None
    return Failure(reason=reason, message=cut(message), pod=pod, attempt=world.attempt)


def known(failure: Failure | None) -> str:
    """The reason as one of a bounded set: any image may invent words."""
    return failure.reason if failure is not None and failure.reason in KNOWN else OTHER
