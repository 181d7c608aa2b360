"""Direct preference optimization (DPO, arXiv 2305.18290): learns from pairs of answers which one people preferred.

What a pair's answers were worth to the model that the training started from is asked of that model itself where it is
still there, which is under a new adapter; otherwise it is computed once before the first step and kept in checkpoints.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from finetune_api.method import LoraBias
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.data import batch
from finetune_trainer.data.dataset import Dataset
from finetune_trainer.learning.model import Learner


class Reference(Protocol):
    """What the model at the start says of the rows of a micro-batch."""

    def scores(self, records: Sequence[int], tensors: batch.Tensors) -> torch.Tensor:
        """Log-probabilities, chosen and rejected answers by turns."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """-log sigmoid(beta x ((chosen - its reference) - (rejected - its reference))); a unit is a pair."""

    learner: Learner
    data: Dataset
    beta: float
    reference: Reference

    def units(self, records: Sequence[int]) -> int:
        """Pairs."""
        return len(records)

    def loss(self, records: Sequence[int]) -> torch.Tensor:
        """The loss, summed over the pairs."""
        with self.learner.data_wait:
            tensors = batch.build(self.data, records, packed=self.learner.packed, device=self.learner.device)
        reference = self.reference.scores(records, tensors)
        gained = (self.learner.scores(tensors) - reference).view(-1, 2)
        return -functional.logsigmoid(self.beta * (gained[:, 0] - gained[:, 1])).sum()


@dataclass(frozen=True, eq=False)
class WithoutAdapter:
    """The model without its adapter: no second model, no second pass before the training."""

    learner: Learner

    def scores(self, records: Sequence[int], tensors: batch.Tensors) -> torch.Tensor:  # noqa: ARG002 - asked for by others
        """Computed anew."""
        with self.learner.only_looking(), self.learner.network.disable_adapter():
            return self.learner.scores(tensors)


@dataclass(frozen=True, eq=False)
class Remembered:
    """What was computed before the training; a row a record, chosen and rejected."""

    table: torch.Tensor

    def scores(self, records: Sequence[int], tensors: batch.Tensors) -> torch.Tensor:
        """Looked up."""
        return self.table[list(records)].flatten().to(tensors.targets.device)


def start_is_under_the_adapter(config: TrainerConfig) -> bool:
    """Whether the model without its adapter is the one that the training started from."""
    adapter = config.method.adapter
    return adapter is not None and adapter.bias == LoraBias.NONE and config.model.adapter_path is None


def compute(learner: Learner, data: Dataset, records: Iterable[int], *, at_once: int) -> torch.Tensor:
    """The table of `Remembered`, for these records; nothing but NaN for others. Records of like length go together."""
    lengths = data.lengths
    table = torch.full((len(lengths), 2), float("nan"))
    order = sorted(records, key=lambda record: -lengths[record])
    with learner.only_looking():
        for start in range(0, len(order), at_once):
            some = order[start : start + at_once]
            tensors = batch.build(data, some, packed=learner.packed, device=learner.device)
            table[some] = learner.scores(tensors).view(-1, 2).cpu()
    return table
