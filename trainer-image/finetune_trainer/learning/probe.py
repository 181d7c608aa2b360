"""How many records a forward pass may hold: found at the start for `perDevice: Auto`, less after memory ran out.

A step keeps its records, so without dropout the split changes the result by rounding alone. On CUDA the largest planned
forward and backward pass is tried. Where a try that fails would do harm it is reckoned: what two small passes keep for
their backward passes is counted tensor by tensor, and grows with the tokens in a line. On CPU the kernel would kill the
process; with weights spread over several devices the others would be left in the middle of a pass, and the messages of
the next one mixed up with those of this.
"""

import gc
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from finetune_trainer import memory
from finetune_trainer.data import batch
from finetune_trainer.data.plan import MicroBatch, Plan
from finetune_trainer.errors import OutOfMemory
from finetune_trainer.learning import lora, sharding
from finetune_trainer.learning.objective import Objective
from finetune_trainer.reporting import journal

logger = logging.getLogger(__name__)

LOOKED_AT = 1_000_000
"""Records of the plan among which the largest micro-batch is looked for."""
SPARE = 0.9
"""Share of what is free that may be used: allocators leave gaps."""
BACKWARD = 1.75
"""The backward pass needs gradients of activations beside the activations themselves; measured: 1.3 to 1.7 in all."""


def split(plan: Plan, per_device: int) -> Plan:
    """The same steps in forward passes of at most `per_device` records."""
    together = plan.per_device * plan.accumulation
    share = together // plan.devices
    size = next(n for n in range(min(per_device, share), 0, -1) if share % n == 0)
    return replace(plan, per_device=size, accumulation=together // size)


def fit(objective: Objective, plan: Plan, *, free: Callable[[], int] = memory.free_bytes) -> Plan:
    """The plan with the largest forward passes that fit. Raises OutOfMemory if not even one record does.

    `free` tells of main memory; a CUDA device is asked itself.
    """
    on_cuda = objective.learner.device.type == "cuda"
    free = partial(_free_on_cuda, objective) if on_cuda else free
    tries = on_cuda and not objective.learner.spread
    fits = _Trial(objective, free) if tries else _Reckoning(objective, plan, free)
    size = plan.per_device * plan.accumulation if on_cuda else plan.per_device
    sharing = 1 if on_cuda else objective.learner.ranks.place.local_size
    while True:
        candidate = split(plan, size)
        largest = largest_micro_batch(candidate, objective)
        needed, left = fits.needed(largest), fits.free() // sharing
        tokens = batch.cost(objective.data, largest, packed=objective.learner.packed)
        told = f"{_count(candidate.per_device)} in a forward pass, {tokens:,} tokens at most: {_gib(needed)} GiB needed"
        journal.event(logger, "MEMORY_PROBED", f"{told}, {_gib(left)} GiB free", needed=needed, free=left)
        if not objective.learner.ranks.any(needed is None or needed > left * SPARE):
            return candidate
        if candidate.per_device == 1:
            raise OutOfMemory(
                f"not even one record fits into a forward pass: {told}, {_gib(left)} GiB free; lower"
                " training.maxSequenceLength, set gradientCheckpointing to Enabled, or ask for more memory"
            )
        size = candidate.per_device // 2


def largest_micro_batch(plan: Plan, objective: Objective) -> MicroBatch:
    """The one with the most tokens, padding included, of the epochs that are planned; of the first ones if many."""
    epochs = max(1, min(plan.epochs, LOOKED_AT // len(plan.lengths)))
    steps = min(plan.steps, epochs * plan.steps_per_epoch)
    packed, data = objective.learner.packed, objective.data
    micro_batches = (micro for step in range(steps) for micro in plan.batch(step))
    return max(micro_batches, key=lambda records: batch.cost(data, records, packed=packed))


def _free_on_cuda(objective: Objective) -> int:
    """What the device leaves, and what is kept in reserve."""
    let_go(objective)
    reserved = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    return int(torch.cuda.mem_get_info()[0] + reserved)


class _Trial:
    """Tries on the device."""

    def __init__(self, objective: Objective, free: Callable[[], int]) -> None:
        self._objective = objective
        self.free = free

    def needed(self, records: MicroBatch) -> int | None:
        """What the pass took, and the optimizer will take beside it; None if it was too much."""
        let_go(self._objective)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        try:
            self._objective.loss(records).backward()  # type: ignore[no-untyped-call]
        except torch.OutOfMemoryError:
            return None
        return torch.cuda.max_memory_allocated() - before + _optimizer_bytes(self._objective)


class _Reckoning:
    """Reckons from what two small passes keep: a part that is always there, and one for each token."""

    def __init__(self, objective: Objective, plan: Plan, free: Callable[[], int]) -> None:
        self._objective = objective
        self.free = free
        by_length = sorted(range(len(plan.lengths)), key=lambda record: plan.lengths[record])
        middle = len(by_length) // 2
        one, two = ((by_length[middle],), tuple(by_length[max(0, middle - 1) : middle + 1]))
        kept = [kept_bytes(objective, records) for records in (one, two)]
        tokens = [self._tokens(records) for records in (one, two)]
        self._a_token = (kept[1] - kept[0]) / (tokens[1] - tokens[0]) if one != two else kept[0] / tokens[0]
        self._always = max(0.0, kept[0] - self._a_token * tokens[0])

    def needed(self, records: MicroBatch) -> int | None:
        """Activations, gradients, optimizer state, and weights of others that are here for a while."""
        learner = self._objective.learner
        gradients = sum(sharding.here(weight).nbytes for weight in learner.trained.values())
        visiting = sharding.visiting_bytes(learner.network) if learner.spread else 0
        return int(self.activations(records) * BACKWARD) + gradients + _optimizer_bytes(self._objective) + visiting

    def activations(self, records: MicroBatch) -> float:
        """What is kept for the backward pass."""
        return self._always + self._a_token * self._tokens(records)

    def _tokens(self, records: MicroBatch) -> int:
        return batch.cost(self._objective.data, records, packed=self._objective.learner.packed)


def kept_bytes(objective: Objective, records: MicroBatch) -> int:
    """The bytes that are kept for the backward pass of these records; weights are there anyway, or come again."""
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        objective.loss(records)
    return sum(kept.values())


def _optimizer_bytes(objective: Objective) -> int:
    """Two moments for each number that is trained."""
    return sum(2 * sharding.here(weight).nbytes for weight in objective.learner.trained.values())


def let_go(objective: Objective) -> None:
    """Forget gradients, and what a pass that broke off has left."""
    for weight in objective.learner.trained.values():
        weight.grad = None
    lora.forget(objective.learner.network)
    gc.collect()
    if objective.learner.device.type == "cuda":
        torch.cuda.empty_cache()


def _count(records: int) -> str:
    return f"{records:,} record{'' if records == 1 else 's'}"


def _gib(size: int | None) -> str:
    return "more" if size is None else f"{size / 2**30:.2f}"
