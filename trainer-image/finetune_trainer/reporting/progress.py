"""How far a training is, as its steps tell: the rate, the time left, and where the last steps' time went. Pure."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from finetune_api.snapshot import TrainProgress

RATE_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one optimizer step did, as told to users."""

    number: int
    epoch: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    records: int
    seconds: float
    data_seconds: float = 0.0
    """Of these, in which it waited for its data."""
    mfu: float | None = None
    """Share of the devices' peak that the model's arithmetic made up; none where the peak isn't known."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What an evaluation found."""

    step: int
    epoch: int
    loss: float
    """Not always a number."""
    records: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How long the whole training is."""

    epochs: int
    steps: int
    tokens: int
    in_tokens: bool
    devices: int = 1
    """That train together."""


class Pace:
    """The steps of one attempt, as they come."""

    def __init__(self, extent: Extent, *, tokens_done: int) -> None:
        """`tokens_done` are those of the attempts before."""
        self._extent = extent
        self._tokens = tokens_done
        self._recent: deque[Step] = deque(maxlen=RATE_STEPS)

    @property
    def rate(self) -> float:
        """Tokens per second of the last steps."""
        return sum(step.tokens for step in self._recent) / self._recent_seconds

    def after(self, step: Step, *, before: TrainProgress | None, now: datetime) -> TrainProgress:
        """How far it is once the step is done; nothing of its devices."""
        self._recent.append(step)
        self._tokens += step.tokens
        left, rate = max(self._extent.tokens - self._tokens, 0), self.rate
        return TrainProgress(
            epoch=step.epoch,
            total_epochs=self._extent.epochs,
            batch=step.number,
            total_batches=self._extent.steps,
            tokens=self._tokens,
            total_tokens=self._extent.tokens,
            in_tokens=self._extent.in_tokens,
            eta_seconds=round(left / rate) if rate > 0 else None,
            loss=step.loss,
            learning_rate=step.learning_rate,
            grad_norm=step.grad_norm,
            tokens_per_second_per_device=round(rate / self._extent.devices, 1),
            last_step_time=now,
            step_seconds=round(((before and before.step_seconds) or 0.0) + step.seconds, 3),
            eval_loss=None if before is None else before.eval_loss,
            data_wait_ratio=self._share(lambda s: s.data_seconds),
            mfu_ratio=self._share(lambda s: None if s.mfu is None else s.mfu * s.seconds),
        )

    @property
    def _recent_seconds(self) -> float:
        return max(sum(step.seconds for step in self._recent), 1e-9)

    def _share(self, seconds: Callable[[Step], float | None]) -> float | None:
        """Which share of the last steps' time these seconds are; None where one of them isn't known."""
        found = [seconds(step) for step in self._recent]
        known = [each for each in found if each is not None]
        return round(min(1.0, sum(known) / self._recent_seconds), 4) if len(known) == len(found) else None
