"""Which records go into which step: a pure function of lengths, seed and settings, so that any attempt finds its place.

A batch is one optimizer step; it is made of micro-batches, one forward pass each. Every record comes once an epoch.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from finetune_api.durations import Duration, Unit
from finetune_api.method import BatchSize, Training
from finetune_trainer.errors import ConfigInvalid

AUTO_PER_DEVICE = 8
GROUPED_STEPS = 50
"""Without packing, records of so many steps are sorted by length together."""

MicroBatch = tuple[int, ...]
Batch = tuple[MicroBatch, ...]


@dataclass(frozen=True, eq=False)  # compared by identity: hashing a million lengths at each step would cost
class Plan:
    """The whole training, step by step."""

    lengths: tuple[int, ...]
    per_device: int
    accumulation: int
    """Forward passes in one step, over all devices."""
    packing: bool
    seed: int
    duration: Duration
    devices: int = 1
    """That share the forward passes of a step."""

    @classmethod
    def of(cls, training: Training, lengths: Sequence[int], *, devices: int = 1) -> "Plan":
        """The plan for records of these lengths. Raises ConfigInvalid where the batch sizes contradict each other."""
        per_device, accumulation = batch_sizes(training.batch_size, devices=devices)
        duration = Duration.parse(training.max_duration)
        return cls(tuple(lengths), per_device, accumulation, training.packing, training.seed, duration, devices)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one epoch; the last may be smaller."""
        return -(-len(self.lengths) // self._records_per_step)

    @property
    def steps(self) -> int:
        """Batches in the whole training."""
        return _extent(self)[0]

    @property
    def tokens(self) -> int:
        """Tokens in the whole training."""
        return _extent(self)[1]

    @property
    def most_tokens(self) -> int:
        """Tokens that one forward pass may have at most."""
        return sum(sorted(self.lengths)[-self.per_device :])

    @property
    def epochs(self) -> int:
        """Epochs, begun ones included."""
        return -(-self.steps // self.steps_per_epoch)

    @property
    def _records_per_step(self) -> int:
        return self.per_device * self.accumulation

    def batch(self, step: int) -> Batch:
        """The batch of the step with this index."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return _epoch(self, epoch)[position]

    def tokens_before(self, step: int) -> int:
        """Tokens in all batches before this step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        begun = sum(map(self.tokens_in, _epoch(self, epoch)[:position])) if position else 0
        return epoch * sum(self.lengths) + begun

    def tokens_in(self, batch: Batch) -> int:
        """Non-padding tokens of a batch."""
        return sum(self.lengths[record] for micro in batch for record in micro)


def batch_sizes(size: BatchSize, *, devices: int = 1) -> tuple[int, int]:
    """Records in one forward pass, and forward passes of all devices in one step."""
    per_device = AUTO_PER_DEVICE if size.per_device == "Auto" else size.per_device
    if size.global_ is None:
        return per_device, (size.gradient_accumulation_steps or 1) * devices
    if size.per_device == "Auto" and size.global_ % devices == 0:
        share = size.global_ // devices
        per_device = next(n for n in range(min(per_device, share), 0, -1) if share % n == 0)
    if size.global_ % (per_device * devices):
        over = f" on {devices} devices" if devices > 1 else ""
        raise ConfigInvalid(
            f"training.batchSize.global {size.global_} is not a multiple of perDevice {per_device}{over};"
            " change one of them"
        )
    return per_device, size.global_ // per_device


@lru_cache(maxsize=4)
def _extent(plan: Plan) -> tuple[int, int]:
    """Steps and tokens of the whole training."""
    count, per_epoch, tokens = plan.duration.count, plan.steps_per_epoch, sum(plan.lengths)
    if plan.duration.unit == Unit.EPOCHS:
        return count * per_epoch, count * tokens
    if plan.duration.unit == Unit.BATCHES:
        return count, plan.tokens_before(count)
    epoch, left = divmod(count, tokens)
    steps, done = epoch * per_epoch, epoch * tokens
    for batch in _epoch(plan, epoch) if left else ():
        if done >= count:
            break
        steps, done = steps + 1, done + plan.tokens_in(batch)
    return steps, done


@lru_cache(maxsize=4)
def _epoch(plan: Plan, epoch: int) -> tuple[Batch, ...]:
    """All batches of one epoch."""
    shuffle = random.Random(f"{plan.seed}/{epoch}")
    order = list(range(len(plan.lengths)))
    shuffle.shuffle(order)
    size = plan._records_per_step
    if plan.packing:
        return tuple(_batch(plan, chunk) for chunk in _chunks(order, size))
    batches = []
    for group in _chunks(order, size * GROUPED_STEPS):
        by_length = sorted(group, key=lambda record: -plan.lengths[record])
        batches += [_batch(plan, chunk) for chunk in _chunks(by_length, size)]
    shuffle.shuffle(batches)
    return tuple(batches)


def _batch(plan: Plan, records: Sequence[int]) -> Batch:
    return tuple(tuple(chunk) for chunk in _chunks(records, plan.per_device))


def _chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))
