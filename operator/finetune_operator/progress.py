"""Fold what a trainer says into a run's progress, checkpoints and history. Pure.

Idempotent, and within an attempt never backwards.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from finetune_api.fields import cut
from finetune_api.snapshot import EventType, SavedCheckpoint, Snapshot, TrainProgress
from finetune_api.status import Checkpoint, FineTuneRunStatus, Progress, RunEvent, TrackingState

EVENT_LIMIT = 64
"""Entries of a run's history."""
_KEPT_FIRST = 8
"""Of a history that is too long, so many are kept from its beginning."""
IN_PLACE = frozenset({EventType.TRAIN_UPDATED, EventType.CHECKPOINT_SAVED})
"""Kinds of which only the newest is kept, at the place of the first."""
RETOLD = IN_PLACE | {EventType.RESUMED}
"""Kinds that say more the second time: the operator knows that a run goes on, its trainer later from where."""
PER_ATTEMPT = frozenset(
    {
        EventType.STARTED,
        EventType.RESTARTED,
        EventType.RESUMED,
        EventType.QUEUED,
        EventType.SUSPENDED,
        EventType.HUNG,
    }
)
"""Kinds that may happen once in each attempt; all others happen once in a run."""


@dataclass(frozen=True, kw_only=True)
class Happening:
    """Something to be entered in the history, if it isn't there."""

    type: EventType
    time: datetime
    message: str
    attempt: int | None = None


def record(events: tuple[RunEvent, ...], happening: Happening) -> tuple[RunEvent, ...]:
    """The history with `happening` in it, exactly once."""
    same = next((event for event in events if _is_same(event, happening)), None)
    if same is None:
        sequence = max((event.sequence for event in events), default=0) + 1
        return _bounded((*events, _entry(sequence, happening)))
    if happening.type not in RETOLD or (same.message == cut(happening.message) and same.attempt == happening.attempt):
        return events
    return tuple(_entry(event.sequence, happening) if event is same else event for event in events)


def _is_same(event: RunEvent, happening: Happening) -> bool:
    return event.type == happening.type and (happening.type not in PER_ATTEMPT or event.attempt == happening.attempt)


def _entry(sequence: int, happening: Happening) -> RunEvent:
    return RunEvent(
        sequence=sequence,
        type=happening.type,
        time=happening.time,
        message=cut(happening.message),
        attempt=happening.attempt,
    )


def _bounded(events: tuple[RunEvent, ...]) -> tuple[RunEvent, ...]:
    """Without the oldest entry after the beginning, if there are too many.

    What happens once in a run stays, or it would be entered again.
    """
    if len(events) <= EVENT_LIMIT:
        return events
    dropped = next(event for event in events[_KEPT_FIRST:] if event.type in PER_ATTEMPT)
    return tuple(event for event in events if event is not dropped)


def is_older(snapshot: Snapshot, than: Progress | None) -> bool:
    """Whether a snapshot is from before what is known of the same attempt: told by its steps, since clocks jump."""
    if than is None or than.attempt != snapshot.attempt:
        return False
    return snapshot.progress is None or snapshot.progress.batch < than.batch


def happenings(snapshot: Snapshot) -> Iterator[Happening]:
    """What a snapshot tells, in the order in which it happens."""
    attempt = snapshot.attempt
    finished = [m for m in snapshot.milestones if m.type == EventType.TRAIN_FINISHED]
    for milestone in snapshot.milestones:
        if milestone not in finished:
            yield Happening(type=milestone.type, time=milestone.time, message=milestone.message, attempt=attempt)
    if snapshot.progress is not None:
        time = snapshot.progress.last_step_time or snapshot.time
        yield Happening(type=EventType.TRAIN_UPDATED, time=time, message=line(snapshot.progress), attempt=attempt)
    if snapshot.checkpoints:
        newest = snapshot.checkpoints[-1]
        message = f"Checkpoint {newest.name} saved ({_megabytes(newest)})."
        yield Happening(type=EventType.CHECKPOINT_SAVED, time=newest.time, message=message, attempt=attempt)
    for milestone in finished:
        yield Happening(type=milestone.type, time=milestone.time, message=milestone.message, attempt=attempt)


def line(progress: TrainProgress) -> str:
    """`[epoch=1/1][batch=50/56][ETA=5min] Train loss: 1.71`; tokens for batches if `maxDuration` is in tokens."""
    if progress.in_tokens:
        place = f"[token={progress.tokens}/{progress.total_tokens}]"
    else:
        place = f"[batch={progress.batch}/{progress.total_batches}]"
    eta = f"[ETA={eta_text(progress.eta_seconds)}]" if progress.eta_seconds is not None else ""
    loss = f" Train loss: {progress.loss:.2f}" if progress.loss is not None else ""
    return f"[epoch={progress.epoch}/{progress.total_epochs}]{place}{eta}{loss}"


def eta_text(seconds: int) -> str:
    """Seconds as people say them: 45s, 5min, 3h20min, 2d4h."""
    if seconds < 60:
        return f"{seconds}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes}min" if minutes else f"{hours}h"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if hours else f"{days}d"


def fold(old: Progress | None, snapshot: Snapshot) -> Progress | None:
    """The progress after `snapshot`. An older answer of the same attempt changes nothing."""
    new = snapshot.progress
    if new is None or is_older(snapshot, old):
        return old
    percent = _percent(new)
    return Progress(
        epoch=new.epoch,
        total_epochs=new.total_epochs,
        batch=new.batch,
        total_batches=new.total_batches,
        tokens=new.tokens,
        total_tokens=new.total_tokens,
        percent=percent,
        done=f"{percent}%",
        eta_seconds=new.eta_seconds,
        eta="" if new.eta_seconds is None else eta_text(new.eta_seconds),
        loss=_decimal(new.loss, 4),
        eval_loss=_decimal(new.eval_loss, 4),
        learning_rate=None if new.learning_rate is None else f"{new.learning_rate:.3g}",
        tokens_per_second_per_device=_decimal(new.tokens_per_second_per_device, 1),
        device_utilization=_decimal(new.device_utilization, 2),
        device_memory_bytes=new.device_memory_bytes,
        data_wait_ratio=_decimal(new.data_wait_ratio, 4),
        mfu_ratio=_decimal(new.mfu_ratio, 3),
        last_step_time=new.last_step_time,
        step_seconds=None if new.step_seconds is None else round(new.step_seconds),
        reported_time=snapshot.time,
        attempt=snapshot.attempt,
    )


def _percent(progress: TrainProgress) -> int:
    done, total = progress.batch, progress.total_batches
    if progress.in_tokens:
        done, total = progress.tokens, progress.total_tokens
    return min(100, done * 100 // total) if total else 0


def _decimal(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"[:32]


def checkpoints(status: FineTuneRunStatus, snapshot: Snapshot) -> tuple[Checkpoint, ...]:
    """The checkpoints that are there. A trainer that hasn't looked yet says nothing of the earlier attempts' ones."""
    if not snapshot.checkpoints or is_older(snapshot, status.progress):
        return status.checkpoints
    by_name = {saved.name: Checkpoint(**saved.model_dump()) for saved in snapshot.checkpoints}
    return tuple(by_name.values())


def tracking(status: FineTuneRunStatus, snapshot: Snapshot) -> TrackingState | None:
    """What the MLflow server has. A trainer that hasn't reached it yet knows of no MLflow run of earlier attempts."""
    told, known = snapshot.tracked, status.tracking
    if told is None or is_older(snapshot, status.progress):
        return known
    if known is not None and known.mlflow_run_id and not told.mlflow_run_id:
        return known.model_copy(update={"problem": cut(told.problem)})
    return TrackingState(mlflow_run_id=told.mlflow_run_id, url=told.url, problem=cut(told.problem))


def _megabytes(checkpoint: SavedCheckpoint) -> str:
    return f"{checkpoint.size_bytes / 1e6:.1f} MB"
