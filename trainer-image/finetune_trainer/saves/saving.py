"""When a checkpoint is due, and that the training goes on meanwhile: the state is copied, a thread writes the copy.

One is written at a time: the next one waits for it. Told only when it is complete. What can't be saved is told, and
the training goes on, unless the save is one that must be: the last, and the one of a stop.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from finetune_api.durations import Duration, Unit
from finetune_api.snapshot import SavedCheckpoint
from finetune_trainer.errors import StorageFailed
from finetune_trainer.reporting.reporter import Reporter
from finetune_trainer.saves.content import Content, Position


class Saver:
    """Decides when to save, and does it. Leaving its block waits for the save under way."""

    def __init__(
        self,
        *,
        interval: Duration,
        steps_per_epoch: int,
        saved_step: int,
        take: Callable[[Position], Content],
        write: Callable[[Content], SavedCheckpoint],
        complete: Callable[[], tuple[SavedCheckpoint, ...]],
        reporter: Reporter,
        copies: bool,
        thread_begins: Callable[[], None] | None = None,
    ) -> None:
        """`saved_step` is where the newest checkpoint was made; 0 before the first.

        `take` gives the state as it is now. If it `copies` it, the training goes on while `write` is at work, in a
        thread that calls `thread_begins` first.
        """
        self._interval = interval
        self._steps_per_epoch = steps_per_epoch
        self._saved_step = saved_step
        self._take, self._write, self._complete = take, write, complete
        self._reporter = reporter
        self._copies = copies
        self._saved_at = time.monotonic()
        self._error: OSError | None = None
        self._under_way: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save", initializer=thread_begins)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self._wait()

    def is_due(self, position: Position) -> bool:
        """Whether the interval has passed. One of minutes counts from the end of the last save."""
        count, unit = self._interval.count, self._interval.unit
        if unit == Unit.MINUTES:
            at_work = self._under_way is not None and not self._under_way.done()
            return not at_work and time.monotonic() - self._saved_at >= count * 60
        every = count * (self._steps_per_epoch if unit == Unit.EPOCHS else 1)
        return position.step % every == 0

    def save(self, position: Position, *, must: bool) -> None:
        """Begin to save, once a step. If it `must`, it is complete when this is over: else StorageFailed."""
        started = time.monotonic()
        self._wait()
        if position.step != self._saved_step:
            content = self._take(position)
            stalled = time.monotonic() - started if self._copies and not must else None
            self._under_way = self._thread.submit(self._save, content, started, stalled)
            if stalled is None:
                self._wait()
        if must and position.step != self._saved_step:
            assert self._error is not None
            raise storage_failed(f"checkpoint {position.name}", self._error) from self._error

    def _wait(self) -> None:
        """For the save under way; an error that isn't the volume's is raised here."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def _save(self, content: Content, started: float, stalled: float | None) -> None:
        """In the thread: write, and tell how it went."""
        position = content.reached.position
        try:
            saved = self._write(content)
        except OSError as error:
            self._error, self._saved_at = error, time.monotonic()
            self._reporter.checkpoint_failed(position.name, error)
            return
        self._saved_step, self._saved_at = position.step, time.monotonic()
        seconds = self._saved_at - started
        self._reporter.checkpoints_are(self._complete())
        self._reporter.checkpoint_saved(saved, seconds=seconds, stalled=seconds if stalled is None else stalled)


def storage_failed(what: str, error: OSError) -> StorageFailed:
    """The error for a volume that can't be written."""
    return StorageFailed(f"{what} could not be saved: {error}; give the run more storage, then retry it")
