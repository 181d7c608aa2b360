"""The training, from the first step to the last: forward, backward, clip, step, report, save. Reads top to bottom.

A loss or gradient that isn't a number ends it before the optimizer takes the step. Reporting never ends it.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from finetune_api.durations import Duration, Unit
from finetune_api.snapshot import EventType
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import batch, checkpoint, optimizer, output
from finetune_trainer.data import Dataset
from finetune_trainer.errors import Diverged, Stopped, StorageFailed
from finetune_trainer.history import History
from finetune_trainer.model import Learner
from finetune_trainer.plan import Batch, Plan
from finetune_trainer.reporter import Extent, Reporter, Step
from finetune_trainer.source import ModelFolder


@dataclass(frozen=True, eq=False, kw_only=True)
class Training:
    """All that a training needs."""

    config: TrainerConfig
    data: Dataset
    plan: Plan
    model: ModelFolder
    learner: Learner
    store: checkpoint.Store
    found: checkpoint.Found
    reporter: Reporter
    facts: Mapping[str, Any]
    stop_requested: Callable[[], bool]


def train(training: Training) -> None:
    """Train to the end and write the output. Raises Diverged, Stopped or StorageFailed."""
    config, plan, learner, reporter = training.config, training.plan, training.learner, training.reporter
    adamw = optimizer.adamw(learner.trained.values(), config.training)
    transformers.set_seed(config.training.seed)
    position = checkpoint.Position(step=0, epoch=1, tokens=0)
    if training.found.folder is not None:
        position, told_before = checkpoint.restore(training.found.folder, learner, adamw)
        reporter.resumed_at(told_before)
    steps = History(Path(config.run_path), steps_done=position.step)
    reporter.training_begins(_extent(plan), tokens_done=position.tokens)
    saver = _Saver(training, adamw, saved_step=position.step)

    while position.step < plan.steps:
        started = time.monotonic()
        drawn = plan.batch(position.step)
        rate = optimizer.learning_rate(config.training, step=position.step, steps=plan.steps)
        for group in adamw.param_groups:
            group["lr"] = rate
        loss, norm = gradient(learner, training.data, drawn, config.training.max_grad_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise _diverged(training, drawn, position.step, loss, norm)
        adamw.step()
        adamw.zero_grad(set_to_none=True)

        tokens = plan.tokens_in(drawn)
        step = position.step + 1
        position = checkpoint.Position(
            step=step, epoch=(step - 1) // plan.steps_per_epoch + 1, tokens=position.tokens + tokens
        )
        told = Step(
            number=step,
            epoch=position.epoch,
            loss=loss,
            grad_norm=norm,
            learning_rate=rate,
            tokens=tokens,
            records=sum(map(len, drawn)),
            seconds=time.monotonic() - started,
        )
        steps.add(told)
        reporter.step_done(told)
        last = position.step == plan.steps
        if last or saver.is_due(position):
            saver.save(position, must=last)
        if training.stop_requested() and not last:
            saver.save(position, must=True)
            raise Stopped(f"stopped on request after step {step} of {plan.steps}; checkpoint {position.name} saved")

    reporter.milestone(EventType.TRAIN_FINISHED, _summary(plan, reporter))
    _write_output(training, steps, position)


def gradient(learner: Learner, data: Dataset, drawn: Batch, limit: float) -> tuple[float, float]:
    """The step's gradient, clipped: returns the mean loss over all its targets, and the norm before clipping."""
    targets = sum(batch.targets_in(data, records) for records in drawn)
    total = torch.zeros((), device=learner.device)
    for records in drawn:
        tensors = batch.build(data, records, packed=learner.packed, device=learner.device)
        loss = learner.loss(tensors) / targets
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    norm = torch.nn.utils.clip_grad_norm_(learner.trained.values(), limit or math.inf)
    loss_and_norm: list[float] = torch.stack((total, norm.to(total))).tolist()  # the one wait for the device
    return loss_and_norm[0], loss_and_norm[1]


class _Saver:
    """Decides when to save, and does it."""

    def __init__(self, training: Training, adamw: torch.optim.Optimizer, *, saved_step: int) -> None:
        self._training = training
        self._adamw = adamw
        self._saved_step = saved_step
        self._saved_at = time.monotonic()
        self._interval = Duration.parse(training.config.checkpoint.interval)

    def is_due(self, position: checkpoint.Position) -> bool:
        """Whether the interval has passed."""
        count, unit = self._interval.count, self._interval.unit
        if unit == Unit.MINUTES:
            return time.monotonic() - self._saved_at >= count * 60
        every = count * (self._training.plan.steps_per_epoch if unit == Unit.EPOCHS else 1)
        return position.step % every == 0

    def save(self, position: checkpoint.Position, *, must: bool) -> None:
        """Save, once a step. Where it can't be done the training goes on, unless it `must`: then StorageFailed."""
        if position.step == self._saved_step:
            return
        training, started = self._training, time.monotonic()
        progress = training.reporter.snapshot().progress
        assert progress is not None
        try:
            saved = training.store.save(
                training.learner,
                self._adamw,
                position,
                model=training.model,
                progress=progress,
                facts=training.facts,
            )
        except OSError as error:
            self._saved_at = time.monotonic()
            training.reporter.checkpoint_failed(position.name, error)
            if must:
                raise storage_failed(f"checkpoint {position.name}", error) from error
            return
        self._saved_step, self._saved_at = position.step, time.monotonic()
        training.reporter.checkpoints_are(training.store.complete)
        training.reporter.checkpoint_saved(saved, seconds=self._saved_at - started)


def storage_failed(what: str, error: OSError) -> StorageFailed:
    """The error for a volume that can't be written."""
    return StorageFailed(f"{what} could not be saved: {error}; give the run more storage, then retry it")


def _diverged(training: Training, drawn: Batch, step: int, loss: float, norm: float) -> Diverged:
    records = [str(training.data.places[record]) for micro in drawn for record in micro]
    what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
    more = f" and {len(records) - 8} more" if len(records) > 8 else ""
    return Diverged(
        f"{what} at step {step + 1}, before the optimizer's step, in records {', '.join(records[:8])}{more}; lower"
        " training.learningRate, look at these records, or try precision FP32"
    )


def _extent(plan: Plan) -> Extent:
    in_tokens = plan.duration.unit == Unit.TOKENS
    return Extent(epochs=plan.epochs, steps=plan.steps, tokens=plan.tokens, in_tokens=in_tokens)


def _summary(plan: Plan, reporter: Reporter) -> str:
    progress = reporter.snapshot().progress
    loss = "" if progress is None or progress.loss is None else f" Loss of the last batch: {progress.loss:.4f}."
    epochs = f"{plan.epochs:,} epoch{'' if plan.epochs == 1 else 's'}"
    return f"Trained {plan.steps:,} batches in {epochs}, {plan.tokens:,} tokens.{loss}"


def _write_output(training: Training, steps: History, position: checkpoint.Position) -> None:
    reporter = training.reporter
    try:
        saved = output.write(
            training.config,
            training.learner,
            model=training.model,
            steps=steps,
            last=reporter.snapshot(),
            checkpoint=position.name,
        )
    except OSError as error:
        raise storage_failed("the output", error) from error
    reporter.output_is(saved)
