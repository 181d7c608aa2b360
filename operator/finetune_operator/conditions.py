"""The conditions of a run: one small function each, (status, reason, message). Pure."""

from finetune_api.fields import cut
from finetune_api.status import Condition, ConditionStatus, ConditionType
from finetune_operator import failures, waiting
from finetune_operator.facts import Facts
from finetune_operator.policy import Action
from finetune_operator.run import paused

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN


def conditions(facts: Facts) -> tuple[Condition, ...]:
    """All of them, each with the time of its last change."""
    old = facts.old
    return tuple(_condition(facts, old.condition(kind), kind) for kind in ConditionType)


def _condition(facts: Facts, old: Condition | None, kind: ConditionType) -> Condition:
    status, reason, message = _state(facts, kind)
    changed = old is None or old.status != status
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=cut(message),
        last_transition_time=facts.now if old is None or changed else old.last_transition_time,
        observed_generation=facts.world.run.metadata.generation,
    )


def _state(facts: Facts, kind: ConditionType) -> tuple[ConditionStatus, str, str]:
    match kind:
        case ConditionType.ACCEPTED:
            return _accepted(facts)
        case ConditionType.ADMITTED:
            return _admitted(facts)
        case ConditionType.SUSPENDED:
            return _suspended(facts)
        case ConditionType.DEGRADED:
            return _degraded(facts)
        case ConditionType.RECONCILING:
            return _reconciling(facts)
        case _:
            return _outcome(facts, kind)


def _suspended(facts: Facts) -> tuple[ConditionStatus, str, str]:
    match facts.decision.action:
        case Action.PAUSE:
            return TRUE, "Suspended", "Set spec.suspend to false to go on."
        case Action.STOP if facts.rests:
            return TRUE, "Stopping", "What was left over is ended."
        case Action.WAIT if paused(facts.world.run):
            return TRUE, "WaitingForTurn", "The run goes on when its turn comes."
        case _:
            return FALSE, "NotSuspended", ""


def _degraded(facts: Facts) -> tuple[ConditionStatus, str, str]:
    """What the trainer says is wrong, or what shows from outside."""
    old, snapshot = facts.old.condition(ConditionType.DEGRADED), facts.world.live_snapshot
    if not facts.running or facts.attempt_ends:
        return FALSE, "NotRunning", ""
    if facts.decision.hung:
        return TRUE, failures.HUNG, facts.decision.hung
    if snapshot is None:  # a new operator hasn't heard of it yet
        return (TRUE, old.reason, old.message) if old and old.status == TRUE else (FALSE, "AsExpected", "")
    now = facts.progress
    if now is not None and now.stale:
        return TRUE, "TrainerSilent", "The trainer doesn't answer when it is asked for its progress."
    if snapshot.troubles:
        return TRUE, snapshot.troubles[0].reason, "; ".join(trouble.message for trouble in snapshot.troubles)
    return FALSE, "AsExpected", ""


def _accepted(facts: Facts) -> tuple[ConditionStatus, str, str]:
    failure = facts.decision.failure
    if facts.decision.action == Action.REFUSE and failure is not None:
        return FALSE, failure.reason, failure.message
    problem = facts.world.run.problem
    if problem is not None:
        return FALSE, failures.INVALID, f"The run goes on as it began. {problem}"
    if waiting.lacks_its_profile(facts.world) and facts.waiting is not None:
        return UNKNOWN, facts.waiting.reason, facts.waiting.message
    profile = facts.world.run.profile
    under = f" under profile {profile.name}, generation {profile.generation}" if profile else ""
    return TRUE, "Valid", f"The spec can be carried out{under}."


def _admitted(facts: Facts) -> tuple[ConditionStatus, str, str]:
    old = facts.old.condition(ConditionType.ADMITTED)
    if facts.decision.action == Action.PAUSE:
        return FALSE, "Suspended", ""
    if facts.waiting is not None:
        return FALSE, facts.waiting.reason, facts.waiting.message
    if facts.running:
        return TRUE, "Scheduled", "The cluster has room for the run."
    if facts.decision.action == Action.SUCCEED or (facts.ends and facts.world.started is not None):
        return TRUE, "Scheduled", "The cluster has room for the run."
    if facts.ends and old is not None and old.status != UNKNOWN:
        return old.status, old.reason, old.message
    return UNKNOWN, "Waiting", ""


def _reconciling(facts: Facts) -> tuple[ConditionStatus, str, str]:
    if facts.ends:
        return FALSE, "Finished", ""
    if facts.decision.action == Action.PAUSE:
        return TRUE, "Suspended", "The run is paused."
    if facts.decision.action == Action.STOP:
        return TRUE, "Stopping", f"Attempt {facts.attempt} saves a checkpoint and ends."
    if facts.waiting is not None:
        return TRUE, facts.waiting.reason, facts.waiting.message
    if facts.running:
        return TRUE, "Training", f"Attempt {facts.attempt} runs."
    return TRUE, "Starting", f"Attempt {facts.attempt} starts."


def _outcome(facts: Facts, kind: ConditionType) -> tuple[ConditionStatus, str, str]:
    """Stalled, Succeeded and Finished: the three ways to ask for the end."""
    failure = facts.decision.failure
    if not facts.ends:
        return (UNKNOWN if kind == ConditionType.SUCCEEDED else FALSE), "Active", ""
    if facts.decision.action == Action.SUCCEED:
        return (FALSE if kind == ConditionType.STALLED else TRUE), "Completed", "The model is trained and saved."
    status = FALSE if kind == ConditionType.SUCCEEDED else TRUE
    if facts.decision.action == Action.CANCEL:
        return status, "Canceled", "The run was ended by its user (spec.cancel)."
    return status, failure.reason if failure else "Failed", failure.message if failure else ""
