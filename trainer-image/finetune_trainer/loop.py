"""The training, from the first step to the last: forward, backward, clip, step, report, evaluate, save. Reads top to
bottom.

A loss or gradient that isn't a number ends it before the optimizer takes the step. Reporting never ends it.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers

from finetune_api.durations import Duration, Unit
from finetune_api.snapshot import EventType, SavedCheckpoint, TrainProgress
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.data.plan import Batch, Plan
from finetune_trainer.errors import Diverged, Stopped
from finetune_trainer.learning import flops, generators, optimizer, sharding
from finetune_trainer.learning.evaluation import Evaluator, Watch
from finetune_trainer.learning.model import Learner
from finetune_trainer.learning.objective import Objective
from finetune_trainer.reporting.history import History
from finetune_trainer.reporting.progress import Extent, Step
from finetune_trainer.reporting.reporter import Reporter
from finetune_trainer.saves import checkpoint, content, output, saving, staging, upload
from finetune_trainer.sources.modelfolder import ModelFolder


@dataclass(frozen=True, eq=False, kw_only=True)
class Training:
    """All that a training needs."""

    config: TrainerConfig
    plan: Plan
    model: ModelFolder
    learner: Learner
    objective: Objective
    evaluation: Objective | None
    """The same on data that isn't learned."""
    reference: Mapping[str, torch.Tensor]
    """What was computed before the first step, for checkpoints."""
    devices: int
    store: checkpoint.Store
    found: checkpoint.Found
    reporter: Reporter
    facts: Mapping[str, Any]
    utilization: flops.Utilization | None
    """How much of its devices it uses, where that can be told."""
    stop_requested: Callable[[], bool]
    """Of any process. Each must ask."""
    stop_requested_here: Callable[[], bool]
    """Of this one."""


def train(training: Training) -> None:
    """Train to the end and write the output. Raises Diverged, Stopped or StorageFailed."""
    config, plan, learner, reporter = training.config, training.plan, training.learner, training.reporter
    adamw = optimizer.adamw(learner.trained.values(), config.training)
    ranks = learner.ranks
    transformers.set_seed(config.training.seed + ranks.place.rank)
    position, watch = _beginning(training, adamw)
    steps = History(config, steps_done=position.step, writes=ranks.is_first)
    reporter.training_begins(_extent(plan), tokens_done=position.tokens)
    evaluator = _evaluator(training, watch, steps)
    with steps, _saver(training, adamw, evaluator, saved_step=position.step) as saver:
        while True:
            evaluated = evaluator.keep_up(position.step, position.epoch)
            ended = evaluated and (position.step == plan.steps or evaluator.had_enough)
            if ended or ranks.any(saver.is_due(position)):
                saver.save(position, must=ended)
            if ended:
                break
            if training.stop_requested():
                saver.save(position, must=True)
                raise _stopped(plan, position)

            started = time.monotonic()
            drawn = _draw(training, position.step)
            rate = optimizer.learning_rate(
                config.training, step=position.step, steps=plan.steps, devices=training.devices
            )
            for group in adamw.param_groups:
                group["lr"] = rate
            before = generators.take(learner.device)
            found = gradient(training.objective, drawn, config.training.max_grad_norm, training.stop_requested)
            if found is None:  # asked to stop in the middle: the step is left to the next attempt, whole
                adamw.zero_grad(set_to_none=True)
                before.put_back()
                continue
            loss, norm = found
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise _diverged(training, drawn, position.step, loss, norm)
            adamw.step()
            adamw.zero_grad(set_to_none=True)

            position = position.after(plan.tokens_in(drawn), steps_per_epoch=plan.steps_per_epoch)
            told = Step(
                number=position.step,
                epoch=position.epoch,
                loss=loss,
                grad_norm=norm,
                learning_rate=rate,
                tokens=plan.tokens_in(drawn),
                records=sum(map(len, drawn)),
                seconds=time.monotonic() - started,
                data_seconds=learner.data_wait.taken(),
                mfu=_mfu(training, drawn, seconds=time.monotonic() - started),
            )
            steps.add(told)
            reporter.step_done(told)

    _finish(training, steps, position, why=evaluator.why() if position.step < plan.steps else "")


def gradient(
    objective: Objective, drawn: Batch, limit: float, stop_requested: Callable[[], bool] = lambda: False
) -> tuple[float, float] | None:
    """The step's gradient, clipped: returns the mean loss over all its units, and the norm before clipping.

    None if a stop was asked for between two of its forward passes.
    """
    learner, ranks = objective.learner, objective.learner.ranks
    units = sum(map(objective.units, drawn))
    total = torch.zeros((), device=learner.device)
    for number, (records, counts) in enumerate(ranks.share(drawn)):
        if number and stop_requested():
            return None
        with learner.failing_together():
            loss = objective.loss(records) / units * counts
            (loss * learner.mean_of).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    ranks.sum(total)
    if not learner.spread:  # else the backward pass has added them up
        ranks.sum_gradients(learner.trained.values())
    norm = sharding.whole(torch.nn.utils.clip_grad_norm_(learner.trained.values(), limit or math.inf))
    loss_and_norm: list[float] = torch.stack((total, norm.to(total))).tolist()  # the one wait for the device
    return loss_and_norm[0], loss_and_norm[1]


def _draw(training: Training, step: int) -> Batch:
    """The step's records; the time that it waits for data is counted from here."""
    training.learner.data_wait.taken()
    with training.learner.data_wait:
        return training.plan.batch(step)


def _mfu(training: Training, drawn: Batch, *, seconds: float) -> float | None:
    return None if training.utilization is None else training.utilization.share(drawn, seconds=seconds)


def _beginning(training: Training, adamw: torch.optim.Optimizer) -> tuple[content.Position, Watch]:
    """The first step, or the one after the checkpoint."""
    if training.found.folder is None:
        return content.Position(step=0, epoch=1, tokens=0), Watch()
    reached = content.put_back(training.found.folder, training.learner, adamw)
    training.reporter.resumed_at(reached.progress)
    return reached.position, reached.watch


def _evaluator(training: Training, watch: Watch, steps: History) -> Evaluator:
    return Evaluator(
        training.evaluation,
        training.config.training,
        training.plan,
        watch=watch,
        history=steps,
        reporter=training.reporter,
        stop_requested=training.stop_requested,
    )


def _saver(training: Training, adamw: torch.optim.Optimizer, evaluator: Evaluator, *, saved_step: int) -> saving.Saver:
    learner = training.learner
    copied = learner.ranks.is_first and not learner.spread
    stage = staging.reserve(content.expected(learner), pinned=learner.device.type == "cuda") if copied else None

    def take(position: content.Position) -> content.Content:
        reached = content.Reached(position=position, watch=evaluator.watch, progress=_progress(training.reporter))
        return content.take(learner, adamw, reached, stage=stage)

    def write(state: content.Content) -> SavedCheckpoint:
        return training.store.write(
            state,
            learner,
            model=training.model,
            per_device=training.plan.per_device,
            reference=training.reference,
            facts=training.facts,
        )

    return saving.Saver(
        interval=Duration.parse(training.config.checkpoint.interval),
        steps_per_epoch=training.plan.steps_per_epoch,
        saved_step=saved_step,
        take=take,
        write=write,
        complete=lambda: training.store.complete,
        reporter=training.reporter,
        copies=stage is not None or not (copied or learner.spread),
        thread_begins=_taking_device(learner.device),
    )


def _taking_device(device: torch.device) -> Callable[[], None] | None:
    """For a thread: CUDA's current device is its own, and the first one until it is set.

    torch's distributed checkpoint waits for the copies on the current device alone, and would else write tensors of
    another one before they are there.
    """
    return partial(torch.cuda.set_device, torch.cuda.current_device()) if device.type == "cuda" else None


def _progress(reporter: Reporter) -> TrainProgress:
    progress = reporter.snapshot().progress
    assert progress is not None
    return progress


def _stopped(plan: Plan, position: content.Position) -> Stopped:
    if position.step == 0:
        return Stopped("stopped on request before the first step; nothing is lost")
    return Stopped(f"stopped on request after step {position.step} of {plan.steps}; checkpoint {position.name} saved")


def _diverged(training: Training, drawn: Batch, step: int, loss: float, norm: float) -> Diverged:
    places = training.objective.data.places
    records = [str(places[record]) for micro in drawn for record in micro]
    what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
    more = f" and {len(records) - 8} more" if len(records) > 8 else ""
    return Diverged(
        f"{what} at step {step + 1}, before the optimizer's step, in records {', '.join(records[:8])}{more}; lower"
        " training.learningRate, look at these records, or try precision FP32"
    )


def _extent(plan: Plan) -> Extent:
    in_tokens = plan.duration.unit == Unit.TOKENS
    return Extent(epochs=plan.epochs, steps=plan.steps, tokens=plan.tokens, in_tokens=in_tokens, devices=plan.devices)


def _summary(position: content.Position, reporter: Reporter, why: str) -> str:
    progress = _progress(reporter)
    epochs = f"{position.epoch:,} epoch{'' if position.epoch == 1 else 's'}"
    loss = "" if progress.loss is None else f" Loss of the last batch: {progress.loss:.4f}."
    held_out = "" if progress.eval_loss is None else f" Loss of the last evaluation: {progress.eval_loss:.4f}."
    trained = f"Trained {position.step:,} batches in {epochs}, {position.tokens:,} tokens.{loss}{held_out}"
    return f"{trained} {why}".rstrip()


def _finish(training: Training, steps: History, position: content.Position, *, why: str) -> None:
    """Say that it is done, and `why` so early, and write the output."""
    reporter = training.reporter
    reporter.milestone(EventType.TRAIN_FINISHED, _summary(position, reporter, why))
    try:
        saved = output.write(
            training.config,
            training.learner,
            model=training.model,
            steps=steps,
            last=reporter.snapshot(),
            checkpoint=position.name,
            ended_early=why,
        )
    except OSError as error:
        raise saving.storage_failed("the output", error) from error
    reporter.output_is(saved)
    if training.learner.ranks.is_first:
        upload.send(training.config, reporter, saved, stop_requested=training.stop_requested_here)
