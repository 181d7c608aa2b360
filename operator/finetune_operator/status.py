"""The status that follows from what was observed and decided. Pure: equal input, equal status, nothing to write.

Never derived from what was just done: an attempt is recorded before its Job is created, a pod counts as started once it
was seen running.
"""

from datetime import datetime
from typing import Any

from finetune_api.fields import cut
from finetune_api.snapshot import EventType
from finetune_api.status import (
    FineTuneRunStatus,
    Output,
    Phase,
    QueueState,
    ResolvedModel,
    RunEvent,
)
from finetune_operator import conditions, failures, kueue, mounts, policy, progress
from finetune_operator.facts import ENDS, Facts
from finetune_operator.policy import Action, Decision
from finetune_operator.progress import Happening
from finetune_operator.run import Run, paused
from finetune_operator.settings import Settings
from finetune_operator.waiting import Waiting
from finetune_operator.world import World


def compute(world: World, decision: Decision, *, waiting: Waiting | None, settings: Settings) -> FineTuneRunStatus:
    """The status to write; the old one if nothing is to be said."""
    if decision.action in (Action.IGNORE, Action.DELETE):
        return world.run.status
    if world.run.status.is_finished:
        return _seen(world.run)
    facts = Facts(world, decision, None if decision.action in ENDS else waiting, settings)
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
    immaterial = {"progress": None, "checkpoints": (), "active_seconds": 0, "queue": None, "tracking": None}
    return status.model_copy(update=immaterial | {"events": steady})


def _derive(facts: Facts) -> FineTuneRunStatus:
    old, snapshot = facts.old, facts.world.newest_snapshot
    pod = facts.world.pod
    update: dict[str, Any] = {
        "observed_generation": facts.world.run.metadata.generation,
        "phase": _phase(facts),
        "conditions": conditions.conditions(facts),
        "attempt": facts.attempt,
        "job_attempt": _job_attempt(facts),
        "job_start_time": _job_start(facts),
        "restarts_without_progress": _restarts(facts),
        "start_time": old.start_time or (pod.started if pod else None),
        "completion_time": _ended(facts) if facts.ends else None,
        "hang_restarts": _hang_restarts(facts),
        "earlier_active_seconds": _active_seconds(facts) if facts.attempt_ends else old.earlier_active_seconds,
        "earlier_step": policy.newest_step(facts.world) if facts.attempt_ends else old.earlier_step,
        "model": _model(facts),
        "profile": facts.world.run.profile if facts.attempt > 0 else None,
        "events": _events(facts),
        "progress": facts.progress,
        "checkpoints": progress.checkpoints(old, snapshot) if snapshot else old.checkpoints,
        "output": _output(facts),
        "failure": facts.decision.failure or (None if facts.decision.action == Action.SUCCEED else old.failure),
        "queue": _queue(facts),
        "tracking": progress.tracking(old, snapshot) if snapshot else old.tracking,
    }
    return FineTuneRunStatus(**(dict(old) | update))


def _job_attempt(facts: Facts) -> int:
    """Under Kueue an attempt may go on in the Job of an earlier one."""
    if facts.decision.action != Action.BEGIN:
        return facts.old.job_attempt
    return facts.world.number if facts.decision.same_job else 0


def _job_start(facts: Facts) -> datetime | None:
    """Kept from the attempt's own start on: it tells whether the Job was started anew since."""
    job, known = facts.world.job, facts.old.job_start_time
    if facts.decision.action == Action.BEGIN or not kueue.concerns(facts.world.run.spec):
        return None
    if job is None or (facts.world.recorded_start is not None and known is not None):
        return known
    return job.started


def _phase(facts: Facts) -> Phase:
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


def _restarts(facts: Facts) -> int:
    """Each attempt's end is counted once, by BEGIN or PAUSE, with its failure if it had one."""
    if not facts.attempt_ends or facts.ends:
        return facts.old.restarts_without_progress
    used = 0 if policy.made_progress(facts.world) else facts.old.restarts_without_progress
    return used + (1 if facts.decision.counted else 0)


def _hang_restarts(facts: Facts) -> int:
    failure = facts.decision.failure
    if not facts.attempt_ends or facts.ends:
        return facts.old.hang_restarts
    used = 0 if policy.made_progress(facts.world) else facts.old.hang_restarts
    return used + (1 if failure is not None and failure.reason == failures.HUNG else 0)


def _active_seconds(facts: Facts) -> int:
    return max(facts.old.active_seconds, round(facts.world.active_seconds))


def _model(facts: Facts) -> ResolvedModel | None:
    found = facts.world.model
    return found if facts.attempt > 0 and isinstance(found, ResolvedModel) else facts.old.model


def _queue(facts: Facts) -> QueueState | None:
    if facts.waiting is None or not facts.waiting.for_room:
        return None
    place = facts.world.turn.position if facts.decision.action == Action.WAIT else None
    return QueueState(position=None if place is None else rounded(place), message=facts.waiting.message)


def rounded(place: int) -> int:
    """A place in the queue as it is told, rounded up to one digit: else each start would rewrite all that wait."""
    unit: int = 10 ** (len(str(place)) - 1)
    return -(-place // unit) * unit


def _ended(facts: Facts) -> datetime:
    pod = facts.world.pod
    return pod.finished if pod and pod.finished else facts.now


def _output(facts: Facts) -> Output | None:
    if facts.decision.action != Action.SUCCEED or facts.world.run.spec is None:
        return facts.old.output
    word = facts.world.newest_snapshot
    saved = word.output if word else None
    path = saved.path if saved else "output"
    uri = cut(mounts.output_uri(facts.world.run, path), 512)
    uploaded = cut(saved.upload_uri, 512) if saved and saved.upload_uri else None
    tracked = word.tracked if word else None
    return Output(
        uri=uri,
        checkpoint=cut(saved.checkpoint, 64) if saved else "",
        upload_uri=uploaded,
        mlflow_run_id=(tracked and tracked.mlflow_run_id) or None,
        registered_model=(tracked and cut(tracked.registered_model, 320)) or None,
    )


def _events(facts: Facts) -> tuple[RunEvent, ...]:
    events = facts.old.events
    for happening in (*_before(facts), *_told(facts), *_after(facts)):
        events = progress.record(events, happening)
    return events


def _before(facts: Facts) -> list[Happening]:
    """What precedes the trainer's own story."""
    created = facts.world.run.metadata.creation_timestamp or facts.now
    found = [Happening(type=EventType.CREATED, time=created, message="Run created.")]
    pod, attempt, started = facts.world.first, facts.old.attempt, facts.world.all_started
    if facts.waiting and facts.waiting.for_room and not facts.running:
        waits = facts.old.attempt + 1 if facts.decision.action == Action.WAIT else attempt
        message = facts.waiting.message
        found.append(Happening(type=EventType.QUEUED, time=facts.now, message=message, attempt=waits))
    if pod is not None and started is not None:
        others = f" and {len(facts.world.members) - 1} more" if len(facts.world.members) > 1 else ""
        message = f"Run started: attempt {attempt}, pod {pod.name} on node {pod.node}{others}."
        found.append(Happening(type=EventType.STARTED, time=started, message=message, attempt=attempt))
    return found


def _told(facts: Facts) -> list[Happening]:
    snapshot = facts.world.newest_snapshot
    if snapshot is None or progress.is_older(snapshot, facts.old.progress):
        return []
    return list(progress.happenings(snapshot))


def _after(facts: Facts) -> list[Happening]:
    failure, attempt = facts.decision.failure, facts.old.attempt or None
    said = failure.message if failure else ""
    match facts.decision.action:
        case Action.SUCCEED:
            output = _output(facts)
            copied = f", uploaded to {output.upload_uri}" if output and output.upload_uri else ""
            message = f"Run completed. Final weights saved to {output.uri if output else 'the volume'}{copied}."
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


def _saved(facts: Facts) -> str:
    """What there is to go on from."""
    snapshot = facts.world.newest_snapshot
    found = progress.checkpoints(facts.old, snapshot) if snapshot else facts.old.checkpoints
    ran = any(event.type is EventType.STARTED and event.attempt == facts.old.attempt for event in facts.old.events)
    if not found and ran and not facts.world.last_word:
        return "What its pod saved last wasn't seen."
    if not found:
        return "No checkpoint was saved."
    names = ", ".join(checkpoint.name for checkpoint in found)
    return f"Saved in {mounts.output_uri(facts.world.run, 'checkpoints')}: {names}."
