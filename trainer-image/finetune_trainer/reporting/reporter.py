"""What the trainer says of itself: milestones, progress, checkpoints, last word. From any thread; never blocks.

Holds the state behind /progress, writes one log line per event and sets the metrics. Knows nothing of tensors.
"""

import logging
import math
import re
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from finetune_api.fields import cut
from finetune_api.snapshot import (
    EventType,
    LastError,
    Milestone,
    MilestoneType,
    SavedCheckpoint,
    SavedOutput,
    Snapshot,
    Tracked,
    TrainProgress,
    Trouble,
)
from finetune_trainer.reporting import journal, lastword, metrics
from finetune_trainer.reporting.progress import Evaluated, Extent, Pace, Step

logger = logging.getLogger(__name__)

CHECKPOINT_FAILED, EVALUATION_FAILED, MEMORY_FULL = "CheckpointFailed", "EvaluationNotFinite", "MemoryFull"
"""Troubles: something is wrong, and the training goes on."""


class Reporter:
    """One attempt's account of itself."""

    def __init__(
        self, run_uid: str, *, attempt: int, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._clock = clock
        self._lock = threading.RLock()  # a signal handler may speak while the main thread does
        self._sequence = 0
        self._device: metrics.DeviceSample | None = None
        self._chosen: Mapping[str, str] = {}
        self._pace = Pace(Extent(epochs=0, steps=0, tokens=0, in_tokens=False), tokens_done=0)
        self._now = Snapshot(run_uid=run_uid, attempt=attempt, sequence=0, time=clock())

    def snapshot(self) -> Snapshot:
        """All there is to say at this moment."""
        with self._lock:
            self._sequence += 1
            return self._now.model_copy(update={"sequence": self._sequence, "time": self._clock()})

    def milestone(self, kind: MilestoneType, message: str) -> None:
        """Something that happens once in an attempt; said again, it takes the place of what was said before."""
        reached = Milestone(type=kind, time=self._clock(), message=cut(message))
        with self._lock:
            others = (earlier for earlier in self._now.milestones if earlier.type != kind)
            self._update(milestones=(*others, reached))
        journal.event(logger, kind.value, message)

    def trouble(self, reason: str, message: str) -> None:
        """Something is wrong, and the training goes on."""
        with self._lock:
            others = tuple(trouble for trouble in self._now.troubles if trouble.reason != reason)
            since = next((t.since for t in self._now.troubles if t.reason == reason), self._clock())
            self._update(troubles=(*others, Trouble(reason=reason, message=cut(message), since=since))[-8:])
        journal.event(logger, re.sub("(?<!^)(?=[A-Z])", "_", reason).upper(), message, logging.WARNING)

    def cured(self, reason: str) -> None:
        """It isn't wrong any more."""
        with self._lock:
            self._update(troubles=tuple(trouble for trouble in self._now.troubles if trouble.reason != reason))

    def training_begins(self, extent: Extent, *, tokens_done: int) -> None:
        """How far the training goes, and how many tokens earlier attempts have done."""
        with self._lock:
            self._pace = Pace(extent, tokens_done=tokens_done)

    def resumed_at(self, progress: TrainProgress) -> None:
        """How far earlier attempts came; their rate isn't this attempt's."""
        unknown = {"eta_seconds": None, "tokens_per_second_per_device": None}
        self._update(progress=progress.model_copy(update=unknown))

    def step_done(self, step: Step) -> None:
        """An optimizer step was taken."""
        with self._lock:
            progress = self._pace.after(step, before=self._now.progress, now=self._clock())
            progress = progress.model_copy(update=self._device_fields())
            self._update(progress=progress)
        metrics.record_step(step, progress, rate=self._pace.rate)
        journal.event(
            logger,
            EventType.TRAIN_UPDATED.value,
            f"step {step.number}/{progress.total_batches}: loss {step.loss:.4f}",
            **progress.model_dump(mode="json", by_alias=True, exclude_none=True),
        )

    def evaluated(self, found: Evaluated) -> None:
        """An evaluation was done. One whose loss is no number is told as a trouble, until another's is one."""
        finite = math.isfinite(found.loss)
        with self._lock:
            if self._now.progress is not None:
                loss = found.loss if finite else None
                self._update(progress=self._now.progress.model_copy(update={"eval_loss": loss}))
        metrics.eval_loss.set(found.loss)
        metrics.evaluation_duration.observe(found.seconds)
        told = f"step {found.step}: loss {found.loss:.4f} on {found.records:,} records that are not learned"
        journal.event(
            logger, "EVALUATED", told, evalLoss=found.loss if finite else None, seconds=round(found.seconds, 3)
        )
        if finite:
            self.cured(EVALUATION_FAILED)
        else:
            self.trouble(
                EVALUATION_FAILED,
                f"the loss on dataset.eval is {found.loss} after step {found.step}; the training goes on: look at these"
                " records, lower training.learningRate, or try precision FP32",
            )

    def device_sampled(self, sample: metrics.DeviceSample) -> None:
        """How busy the device is; told with the next progress, and put into the current one."""
        with self._lock:
            self._device = sample
            if self._now.progress is not None:
                self._update(progress=self._now.progress.model_copy(update=self._device_fields()))

    def chose(self, chosen: Mapping[str, str]) -> None:
        """What the settings leave to the trainer, as it is in this attempt."""
        self._chosen = chosen

    @property
    def chosen(self) -> Mapping[str, str]:
        """The same; empty until the model is there."""
        return self._chosen

    @property
    def device(self) -> metrics.DeviceSample | None:
        """How busy the device was when that was last looked at."""
        return self._device

    def tracked_is(self, tracked: Tracked) -> None:
        """What a tracking server has of the run."""
        metrics.tracking_pending.set(tracked.pending_steps)
        self._update(tracked=tracked)

    def checkpoints_are(self, saved: tuple[SavedCheckpoint, ...]) -> None:
        """The complete checkpoints there are now, oldest first."""
        self._update(checkpoints=saved[-100:])

    def checkpoint_saved(self, saved: SavedCheckpoint, *, seconds: float, stalled: float = 0.0) -> None:
        """A checkpoint is complete; for so many of the `seconds` the training stood still."""
        self.cured(CHECKPOINT_FAILED)
        self.cured(MEMORY_FULL)  # the smaller forward passes are kept with it
        metrics.checkpoint_duration.observe(seconds)
        metrics.last_checkpoint_timestamp.set(saved.time.timestamp())
        metrics.checkpoint_size.set(saved.size_bytes)
        journal.event(
            logger,
            EventType.CHECKPOINT_SAVED.value,
            f"checkpoint {saved.name} saved",
            seconds=round(seconds, 3),
            stalledSeconds=round(stalled, 4),
            bytes=saved.size_bytes,
            sha256=saved.sha256,
        )

    def checkpoint_failed(self, name: str, error: OSError) -> None:
        """A checkpoint could not be saved; the training goes on, and it is a trouble until one is."""
        metrics.checkpoint_failures.inc()
        self.trouble(
            CHECKPOINT_FAILED,
            f"checkpoint {name} could not be saved: {error}; the earlier ones are kept, the training goes on",
        )

    def output_is(self, output: SavedOutput) -> None:
        """The finished model is in place."""
        self._update(output=output)
        journal.event(logger, "OUTPUT_SAVED", f"the finished model is in {output.path}", checkpoint=output.checkpoint)

    def recall(self, earlier: Snapshot) -> None:
        """Say again what the attempt said that finished this run."""
        self._update(
            milestones=earlier.milestones,
            progress=earlier.progress,
            checkpoints=earlier.checkpoints,
            output=earlier.output,
        )

    def failed(self, *, reason: str, message: str, exit_code: int, traceback: bool = False) -> None:
        """Why the training ends."""
        self._update(error=LastError(reason=reason, message=cut(message), exit_code=exit_code))
        level = logging.WARNING if reason == "Stopped" else logging.ERROR
        logger.log(
            level,
            "%s",
            message,
            exc_info=traceback,
            extra={"event": reason, "fields": {"exitCode": exit_code}},
        )

    def write_last_word(self) -> None:
        """Leave the snapshot where the kubelet reads it."""
        lastword.leave(self.snapshot())

    def _update(self, **changes: object) -> None:
        with self._lock:
            self._now = self._now.model_copy(update=changes)

    def _device_fields(self) -> dict[str, float | int | None]:
        sample = self._device
        if sample is None:
            return {}
        return {
            "device_utilization": sample.utilization,
            "cpu_utilization": sample.cpu_cores,
            "device_memory_bytes": sample.memory_used,
        }
