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
    RunEvent,
)
from finetune_operator import manifests, policy, progress, support
from finetune_operator.policy import Action, Decision
from finetune_operator.progress import Happening
from finetune_operator.settings import Settings
from finetune_operator.waiting import Waiting
from finetune_operator.world import Run, World

TRUE, FALSE, UNKNOWN = ConditionStatus.TRUE, ConditionStatus.FALSE, ConditionStatus.UNKNOWN


def compute(
    world: World, decision: Decision, *, waiting: Waiting | None, settings: Settings, now: datetime
) -> FineTuneRunStatus:
    """The status to write; the old one if nothing is to be said."""
    if decision.action == Action.IGNORE:
        return world.run.status
    if decision.action == Action.REST:
        return _seen(world.run)
    facts = _Facts(world, decision, waiting, settings, now)
    return _derive(facts)


def _seen(run: Run) -> FineTuneRunStatus:
    """Of a run that has ended, after a change of a verb: nothing but that it was seen, or tools would wait for ever."""
    seen = run.metadata.generation
    conditions = tuple(c.model_copy(update={"observed_generation": seen}) for c in run.status.conditions)
    return run.status.model_copy(update={"observed_generation": seen, "conditions": conditions})


def material(status: FineTuneRunStatus) -> FineTuneRunStatus:
    """The status without what only tells of progress: writes of the rest don't wait."""
    steady = tuple(event for event in status.events if event.type not in progress.IN_PLACE)
    return status.model_copy(update={"progress": None, "checkpoints": (), "events": steady})


@dataclass(frozen=True)
class _Facts:
    world: World
    decision: Decision
    waiting: Waiting | None
    settings: Settings
    now: datetime

    @property
    def old(self) -> FineTuneRunStatus:
        return self.world.run.status

    @property
    def attempt(self) -> int:
        return self.old.attempt + (1 if self.decision.action == Action.BEGIN else 0)

    @property
    def ends(self) -> bool:
        return self.decision.action in (Action.REFUSE, Action.SUCCEED, Action.FAIL)

    @property
    def running(self) -> bool:
        pod = self.world.pod
        return self.decision.action == Action.FOLLOW and pod is not None and pod.started is not None


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
        "active_seconds": old.active_seconds + _active_seconds(facts),
        "events": _events(facts),
        "progress": _progress(facts),
        "checkpoints": progress.checkpoints(old, snapshot) if snapshot else old.checkpoints,
        "output": _output(facts),
        "failure": facts.decision.failure or (None if facts.decision.action == Action.SUCCEED else old.failure),
        "queue": QueueState(message=facts.waiting.message) if facts.waiting and facts.waiting.for_room else None,
    }
    return FineTuneRunStatus(**(dict(old) | update))


def _phase(facts: _Facts) -> Phase:
    match facts.decision.action:
        case Action.SUCCEED:
            return Phase.COMPLETED
        case Action.FAIL | Action.REFUSE:
            return Phase.FAILED
        case _ if facts.running:
            return Phase.RUNNING
        case _ if facts.waiting is not None and facts.waiting.for_room:
            return Phase.QUEUED
        case _:
            return Phase.STARTING


def _restarts(facts: _Facts) -> int:
    if facts.decision.action != Action.BEGIN or facts.decision.failure is None:
        return facts.old.restarts_without_progress
    used = 0 if policy.made_progress(facts.world) else facts.old.restarts_without_progress
    return used + (1 if facts.decision.counted else 0)


def _active_seconds(facts: _Facts) -> int:
    """Of an attempt that has ended: how long its pod ran."""
    pod = facts.world.pod
    ended = facts.decision.action in (Action.SUCCEED, Action.FAIL, Action.BEGIN)
    if not ended or pod is None or pod.started is None:
        return 0
    return max(0, round(((pod.finished or facts.now) - pod.started).total_seconds()))


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
    if facts.ends:
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
        message = facts.waiting.message
        found.append(Happening(type=EventType.QUEUED, time=facts.now, message=message, attempt=attempt))
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
        case _:
            return []


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
            return FALSE, "NotSuspended", ""
        case ConditionType.RECONCILING:
            return _reconciling(facts)
        case _:
            return _outcome(facts, kind)


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
    return status, failure.reason if failure else "Failed", failure.message if failure else ""
