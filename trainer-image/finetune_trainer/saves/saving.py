"""When a checkpoint is due, and what is done where it can't be saved: the training goes on, unless it is the last."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.durations import Duration, Unit
from finetune_api.snapshot import SavedCheckpoint
from finetune_trainer.errors import StorageFailed
from finetune_trainer.reporting.reporter import Reporter
from finetune_trainer.saves.checkpoint import Position


@dataclass(kw_only=True)
class Saver:
    """Decides when to save, and does it."""

    interval: Duration
    steps_per_epoch: int
    saved_step: int
    """The step at which the newest checkpoint was made; 0 before the first."""
    save_now: Callable[[Position], SavedCheckpoint]
    complete: Callable[[], tuple[SavedCheckpoint, ...]]
    reporter: Reporter

    def __post_init__(self) -> None:
        self._saved_at = time.monotonic()

    def is_due(self, position: Position) -> bool:
        """Whether the interval has passed."""
        count, unit = self.interval.count, self.interval.unit
        if unit == Unit.MINUTES:
            return time.monotonic() - self._saved_at >= count * 60
        every = count * (self.steps_per_epoch if unit == Unit.EPOCHS else 1)
        return position.step % every == 0

    def save(self, position: Position, *, must: bool) -> None:
        """Save, once a step. Where it can't be done the training goes on, unless it `must`: then StorageFailed."""
        if position.step == self.saved_step:
            return
        started = time.monotonic()
        try:
            saved = self.save_now(position)
        except OSError as error:
            self._saved_at = time.monotonic()
            self.reporter.checkpoint_failed(position.name, error)
            if must:
                raise storage_failed(f"checkpoint {position.name}", error) from error
            return
        self.saved_step, self._saved_at = position.step, time.monotonic()
        self.reporter.checkpoints_are(self.complete())
        self.reporter.checkpoint_saved(saved, seconds=self._saved_at - started)


def storage_failed(what: str, error: OSError) -> StorageFailed:
    """The error for a volume that can't be written."""
    return StorageFailed(f"{what} could not be saved: {error}; give the run more storage, then retry it")
