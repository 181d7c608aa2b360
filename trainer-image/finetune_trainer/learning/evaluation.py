"""The loss on data that isn't learned, now and then, and whether it still gets better. Leaves no trace in the training.

What it has seen is part of a checkpoint, so that a resumed training stops where an undisturbed one does.
"""

import math
import time
from collections.abc import Callable

import torch

from finetune_api.durations import Duration, Unit
from finetune_api.fields import ApiModel
from finetune_api.method import EarlyStopping, Training
from finetune_trainer.data.plan import Plan
from finetune_trainer.learning.objective import Objective
from finetune_trainer.reporting.history import History
from finetune_trainer.reporting.progress import Evaluated
from finetune_trainer.reporting.reporter import Reporter


class Watch(ApiModel):
    """What the evaluations have shown so far."""

    step: int = 0
    """The step after which the last one was."""
    best: float | None = None
    """The lowest loss."""
    best_step: int = 0
    """The step after which that was."""
    without_improvement: int = 0
    """Evaluations since the last one that was better by `minDelta`."""

    def after(self, loss: float, *, step: int, min_delta: float) -> "Watch":
        """With one more evaluation; one that isn't a number is none that is better."""
        if math.isfinite(loss) and (self.best is None or loss < self.best - min_delta):
            return Watch(step=step, best=loss, best_step=step, without_improvement=0)
        return self.model_copy(update={"step": step, "without_improvement": self.without_improvement + 1})


class Evaluator:
    """Evaluates when it is due. Without evaluation data there is nothing to do."""

    def __init__(
        self,
        objective: Objective | None,
        training: Training,
        plan: Plan,
        *,
        watch: Watch,
        history: History,
        reporter: Reporter,
        stop_requested: Callable[[], bool],
    ) -> None:
        self.watch = watch
        self._objective = objective
        self._stopping: EarlyStopping | None = training.early_stopping
        self._plan = plan
        self._history = history
        self._reporter = reporter
        self._stop_requested = stop_requested
        interval = Duration.parse(training.evaluation_interval)
        self._every = interval.count * (plan.steps_per_epoch if interval.unit == Unit.EPOCHS else 1)

    @property
    def had_enough(self) -> bool:
        """Whether the training should end, as nothing gets better any more."""
        return self._stopping is not None and self.watch.without_improvement >= self._stopping.patience

    def why(self) -> str:
        """Why it had enough."""
        assert self._stopping is not None
        delta = f" by more than {self._stopping.min_delta:g}" if self._stopping.min_delta else ""
        best = "" if self.watch.best is None else f" Best: {self.watch.best:.4f} after batch {self.watch.best_step:,}."
        return (
            f"Ended early after batch {self.watch.step:,} of {self._plan.steps:,}: {self._stopping.metric} did not"
            f" improve{delta} in {self.watch.without_improvement} evaluations.{best}"
        )

    def keep_up(self, step: int, epoch: int) -> bool:
        """Evaluate if it is due after this step and wasn't done. False if a stop was asked for in the middle."""
        due = step % self._every == 0 or step == self._plan.steps
        if self._objective is None or not due or self.watch.step == step:
            return True
        started = time.monotonic()
        loss = mean_loss(self._objective, at_once=self._plan.per_device, stop_requested=self._stop_requested)
        if loss is None:
            return False
        min_delta = 0.0 if self._stopping is None else self._stopping.min_delta
        self.watch = self.watch.after(loss, step=step, min_delta=min_delta)
        seconds = time.monotonic() - started
        told = Evaluated(step=step, epoch=epoch, loss=loss, records=len(self._objective.data.lengths), seconds=seconds)
        self._history.add_evaluation(told)
        self._reporter.evaluated(told)
        return True


def mean_loss(objective: Objective, *, at_once: int, stop_requested: Callable[[], bool]) -> float | None:
    """The mean loss over all records, in a fixed order: those of like length together. None if asked to stop."""
    lengths = objective.data.lengths
    order = sorted(range(len(lengths)), key=lambda record: -lengths[record])
    total = torch.zeros((), dtype=torch.float64, device=objective.learner.device)
    ranks = objective.learner.ranks
    with objective.learner.only_looking():
        for records, counts in ranks.share([order[start : start + at_once] for start in range(0, len(order), at_once)]):
            if stop_requested():
                return None
            total += objective.loss(records).double() * counts
    ranks.sum(total)
    return float(total) / objective.units(order)
