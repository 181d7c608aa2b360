"""What a training makes smaller: the loss of some records, as a sum over units of which a step takes the mean.

Sums make the gradient of a step the same, up to rounding, however it is split into micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from finetune_trainer.data import batch
from finetune_trainer.data.dataset import Dataset
from finetune_trainer.learning.model import Learner


class Objective(Protocol):
    """A loss over the records of one data set."""

    @property
    def learner(self) -> Learner:
        """The model whose loss it is."""

    @property
    def data(self) -> Dataset:
        """The records."""

    def units(self, records: Sequence[int]) -> int:
        """How many units these records have."""

    def loss(self, records: Sequence[int]) -> torch.Tensor:
        """Their loss, summed over the units."""


@dataclass(frozen=True, eq=False)
class NextToken:
    """Cross-entropy; a unit is a token that is learned."""

    learner: Learner
    data: Dataset

    def units(self, records: Sequence[int]) -> int:
        """Learned tokens of these records."""
        with self.learner.data_wait:
            return batch.targets_in(self.data, records)

    def loss(self, records: Sequence[int]) -> torch.Tensor:
        """Their cross-entropy, summed."""
        with self.learner.data_wait:
            tensors = batch.build(self.data, records, packed=self.learner.packed, device=self.learner.device)
        return self.learner.loss(tensors)
