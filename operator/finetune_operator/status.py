"""The status that follows from what was observed and decided. Pure: equal input, equal status, nothing to write.

Never derived from what was just done: an attempt is recorded before its Job is created, a pod counts as started once it
was seen running.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_api.fields import cut
from finetune_api.snapshot import EventType
from finetune_api.status import (
    Condition,
    ConditionStatus,
    ConditionType,
    FineTuneRunStatus,
    Output,
    Phase,
    Progress,
    QueueState,
    ResolvedModel,
    RunEvent,
)
from finetune_operator import manifests, policy, progress, support
from finetune_operator.policy import Action, Decision
from finetune_operator.progress import Happening
from finetune_operator.settings import Settings
from finetune_operator.waiting import Waiting
from finetune_operator.world import Run, World, paused

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN
_ENDS = frozenset({Action.REFUSE, Action.SUCCEED, Action.FAIL, Action.CANCEL})


def compute(world: World, decision: Decision, *, waiting: Waiting | None, settings: Settings) -> FineTuneRunStatus:
    """The status to write; the old one if nothing is to be said."""
    if decision.action in (Action.IGNORE, Action.DELETE):
        return world.run.status
    if world.run.status.is_finished:
        return _seen(world.run)
    facts = _Facts(world, decision, None if decision.action in _ENDS else waiting, settings)
    new = _derive(facts)
    # that time goes by is nothing to write of
    return new if new == world.run.status else new.model_copy(update={"active_seconds": _active_seconds(facts)})


def _seen(run: Run) -> FineTuneRunStatus:
    """Of a run that has ended, after a change of a verb: nothing but that it was seen, or tools would wait for ever."""
    seen = run.metadata.generation
    conditions = tuple(c.model_copy(update={"observed_generation": seen}) for c in run.status.conditions)
    return run.status.model_copy(update={"observed_generation": seen, "conditions": conditions})


def material(status: FineTuneRunStatus) -> FineTuneRunStatus:
    """The status without what only tells of progress: writes of the rest don't wait."""
    steady = tuple(event for event in status.events if event.type not in progress.IN_PLACE)
    immaterial = {"progress": None, "checkpoints": (), "active_seconds": 0, "queue": None}
    return status.model_copy(update=immaterial | {"events": steady})


@dataclass(frozen=True)
class _Facts:
    world: World
    decision: Decision
    waiting: Waiting | None
    settings: Settings

    @property
    def now(self) -> datetime:
        return self.world.now

    @property
    def old(self) -> FineTuneRunStatus:
        return self.world.run.status

    @property
    def attempt(self) -> int:
        return self.old.attempt + (1 if self.decision.action == Action.BEGIN else 0)

    @property
    def ends(self) -> bool:
        return self.decision.action in _ENDS

    @property
    def attempt_ends(self) -> bool:
        """Whether the newest attempt is over with this decision."""
        return self.ends or self.decision.action in (Action.BEGIN, Action.PAUSE)

    @property
    def rests(self) -> bool:
        """Whether the run is paused, also while something is left over of it."""
        stays = self.decision.action == Action.STOP and paused(self.world.run)
        return stays or self.decision.action == Action.PAUSE

    @property
    def running(self) -> bool:
        """From the pod's start to the attempt's end, also while the pod is gone and its Job hasn't ended yet."""
        pod = self.world.pod
        started = pod.started if pod else self.world.started
        follows = self.decision.action in (Action.FOLLOW, Action.STOP)
        return follows and not self.rests and started is not None


def _derive(facts: _Facts) -> FineTuneRunStatus:
    old, snapshot = facts.old, facts.world.newest_snapshot
    pod = facts.world.pod
    update: dict[str, Any] = {
        "observed_generation": facts.world.run.metadata.generation,
        "phase": _phase(facts),
        "conditions": _conditions(facts),
        "attempt": facts.attempt,
        "restarts_without_progress": _restarts(facts),
        "start_time": old.start_time or (pod.started if pod else None),
        "completion_time": _ended(facts) if facts.ends else None,
        "hang_restarts": _hang_restarts(facts),
        "earlier_active_seconds": _active_seconds(facts) if facts.attempt_ends else old.earlier_active_seconds,
        "earlier_step": policy.newest_step(facts.world) if facts.attempt_ends else old.earlier_step,
        "model": _model(facts),
        "events": _events(facts),
        "progress": _progress(facts),
        "checkpoints": progress.checkpoints(old, snapshot) if snapshot else old.checkpoints,
        "output": _output(facts),
        "failure": facts.decision.failure or (None if facts.decision.action == Action.SUCCEED else old.failure),
        "queue": _queue(facts),
    }
    return FineTuneRunStatus(**(dict(old) | update))


def _phase(facts: _Facts) -> Phase:
    match facts.decision.action:
        case Action.SUCCEED:
            return Phase.COMPLETED
        case Action.FAIL | Action.REFUSE:
            return Phase.FAILED
        case Action.CANCEL:
            return Phase.CANCELED
        case _ if facts.rests:
            return Phase.SUSPENDED
        case _ if facts.running:
            return Phase.RUNNING
        case _ if facts.waiting is not None and facts.waiting.for_room:
            return Phase.QUEUED
        case _:
            return Phase.STARTING


def _restarts(facts: _Facts) -> int:
    """Each attempt's end is counted once, by BEGIN or PAUSE, with its failure if it had one."""
    if not facts.attempt_ends or facts.ends:
        return facts.old.restarts_without_progress
    used = 0 if policy.made_progress(facts.world) else facts.old.restarts_without_progress
    return used + (1 if facts.decision.counted else 0)


def _hang_restarts(facts: _Facts) -> int:
    failure = facts.decision.failure
    if not facts.attempt_ends or facts.ends:
        return facts.old.hang_restarts
    used = 0 if policy.made_progress(facts.world) else facts.old.hang_restarts
    return used + (1 if failure is not None and failure.reason == policy.HUNG else 0)


def _active_seconds(facts: _Facts) -> int:
    return max(facts.old.active_seconds, round(facts.world.active_seconds))


def _model(facts: _Facts) -> ResolvedModel | None:
    found = facts.world.model
    return found if facts.attempt > 0 and isinstance(found, ResolvedModel) else facts.old.model


def _queue(facts: _Facts) -> QueueState | None:
    if facts.waiting is None or not facts.waiting.for_room:
        return None
    position = facts.world.turn.position if facts.decision.action == Action.WAIT else None
    return QueueState(position=position, message=facts.waiting.message)


def _ended(facts: _Facts) -> datetime:
    pod = facts.world.pod
    return pod.finished if pod and pod.finished else facts.now


def _progress(facts: _Facts) -> Progress | None:
    snapshot = facts.world.newest_snapshot
    found = progress.fold(facts.old.progress, snapshot) if snapshot else facts.old.progress
    if found is None:
        return None
    if facts.decision.action == Action.SUCCEED:
        return found.model_copy(update={"percent": 100, "done": "100%", "eta_seconds": None, "eta": "", "stale": False})
    if facts.attempt_ends:
        return found.model_copy(update={"eta_seconds": None, "eta": "", "stale": False})
    return found.model_copy(update={"stale": _is_stale(facts, found)})


def _is_stale(facts: _Facts, found: Progress) -> bool:
    if not facts.running or found.reported_time is None:
        return False
    return (facts.now - found.reported_time).total_seconds() > facts.settings.stale_seconds


def _output(facts: _Facts) -> Output | None:
    if facts.decision.action != Action.SUCCEED or facts.world.run.spec is None:
        return facts.old.output
    word = facts.world.newest_snapshot
    saved = word.output if word else None
    path = saved.path if saved else "output"
    uri = cut(manifests.output_uri(facts.world.run, path), 512)
    return Output(uri=uri, checkpoint=saved.checkpoint if saved else "")


def _events(facts: _Facts) -> tuple[RunEvent, ...]:
    events = facts.old.events
    for happening in (*_before(facts), *_told(facts), *_after(facts)):
        events = progress.record(events, happening)
    return events


def _before(facts: _Facts) -> list[Happening]:
    """What precedes the trainer's own story."""
    created = facts.world.run.metadata.creation_timestamp or facts.now
    found = [Happening(type=EventType.CREATED, time=created, message="Run created.")]
    pod, attempt = facts.world.pod, facts.old.attempt
    if facts.waiting and facts.waiting.for_room:
        waits = facts.old.attempt + 1 if facts.decision.action == Action.WAIT else attempt
        message = facts.waiting.message
        found.append(Happening(type=EventType.QUEUED, time=facts.now, message=message, attempt=waits))
    if pod is not None and pod.started is not None:
        message = f"Run started: attempt {attempt}, pod {pod.name} on node {pod.node}."
        found.append(Happening(type=EventType.STARTED, time=pod.started, message=message, attempt=attempt))
    return found


def _told(facts: _Facts) -> list[Happening]:
    snapshot = facts.world.newest_snapshot
    if snapshot is None or progress.is_older(snapshot, facts.old.progress):
        return []
    return list(progress.happenings(snapshot))


def _after(facts: _Facts) -> list[Happening]:
    failure, attempt = facts.decision.failure, facts.old.attempt or None
    said = failure.message if failure else ""
    match facts.decision.action:
        case Action.SUCCEED:
            output = _output(facts)
            message = f"Run completed. Final weights saved to {output.uri if output else 'the volume'}."
            return [Happening(type=EventType.COMPLETED, time=_ended(facts), message=message, attempt=attempt)]
        case Action.FAIL | Action.REFUSE:
            return [Happening(type=EventType.FAILED, time=_ended(facts), message=said, attempt=attempt)]
        case Action.BEGIN if failure is not None:
            message = f"Attempt {facts.attempt} follows: {said}"
            return [Happening(type=EventType.RESTARTED, time=_ended(facts), message=message, attempt=facts.attempt)]
        case Action.BEGIN if paused(facts.world.run) and facts.old.attempt > 0:
            message = f"Run resumed: attempt {facts.attempt} follows."
            return [Happening(type=EventType.RESUMED, time=facts.now, message=message, attempt=facts.attempt)]
        case Action.PAUSE:
            message = f"Run suspended, its devices are free. {_saved(facts)}"
            return [Happening(type=EventType.SUSPENDED, time=facts.now, message=message, attempt=facts.old.attempt)]
        case Action.CANCEL:
            message = f"Run canceled. {_saved(facts)}"
            return [Happening(type=EventType.CANCELED, time=facts.now, message=message, attempt=attempt)]
        case Action.FOLLOW if facts.decision.hung:
            hung = facts.decision.hung
            return [Happening(type=EventType.HUNG, time=facts.now, message=hung, attempt=attempt)]
        case _:
            return []


def _saved(facts: _Facts) -> str:
    """What there is to go on from."""
    snapshot = facts.world.newest_snapshot
    found = progress.checkpoints(facts.old, snapshot) if snapshot else facts.old.checkpoints
    if not found:
        return "No checkpoint was saved."
    names = ", ".join(checkpoint.name for checkpoint in found)
    return f"Saved in {manifests.output_uri(facts.world.run, 'checkpoints')}: {names}."


def _conditions(facts: _Facts) -> tuple[Condition, ...]:
    old = facts.old
    return tuple(_condition(facts, old.condition(kind), kind) for kind in ConditionType)


def _condition(facts: _Facts, old: Condition | None, kind: ConditionType) -> Condition:
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


def _state(facts: _Facts, kind: ConditionType) -> tuple[ConditionStatus, str, str]:
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


def _suspended(facts: _Facts) -> tuple[ConditionStatus, str, str]:
    match facts.decision.action:
        case Action.PAUSE:
            return TRUE, "Suspended", "Set spec.suspend to false to go on."
        case Action.STOP if facts.rests:
            return TRUE, "Stopping", "What was left over is ended."
        case Action.WAIT if paused(facts.world.run):
            return TRUE, "WaitingForTurn", "The run goes on when its turn comes."
        case _:
            return FALSE, "NotSuspended", ""


def _degraded(facts: _Facts) -> tuple[ConditionStatus, str, str]:
    """What the trainer says is wrong, or what shows from outside."""
    old, snapshot = facts.old.condition(ConditionType.DEGRADED), facts.world.live_snapshot
    if not facts.running or facts.attempt_ends:
        return FALSE, "NotRunning", ""
    if facts.decision.hung:
        return TRUE, policy.HUNG, facts.decision.hung
    if snapshot is None:  # a new operator hasn't heard of it yet
        return (TRUE, old.reason, old.message) if old and old.status == TRUE else (FALSE, "AsExpected", "")
    now = _progress(facts)
    if now is not None and now.stale:
        return TRUE, "TrainerSilent", "The trainer doesn't answer when it is asked for its progress."
    if snapshot.troubles:
        return TRUE, snapshot.troubles[0].reason, "; ".join(trouble.message for trouble in snapshot.troubles)
    return FALSE, "AsExpected", ""


def _accepted(facts: _Facts) -> tuple[ConditionStatus, str, str]:
    failure = facts.decision.failure
    if facts.decision.action == Action.REFUSE and failure is not None:
        return FALSE, failure.reason, failure.message
    spec, problem = facts.world.run.spec, facts.world.run.problem
    if problem is not None:
        return FALSE, policy.INVALID, f"The run goes on as it began. {problem}"
    later = [str(gap) for gap in support.gaps(spec)] if spec else []
    if later:
        return FALSE, policy.NOT_SUPPORTED, f"The run goes on without it. {'; '.join(later)}"
    return TRUE, "Valid", "The spec can be carried out."


def _admitted(facts: _Facts) -> tuple[ConditionStatus, str, str]:
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


def _reconciling(facts: _Facts) -> tuple[ConditionStatus, str, str]:
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


def _outcome(facts: _Facts, kind: ConditionType) -> tuple[ConditionStatus, str, str]:
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
