"""What several processes that train together agree on, with threads in their place."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from finetune_trainer.distributed import Place
from finetune_trainer.ranks import Several


class Meeting:
    """Adds up the tensors of two."""

    def __init__(self) -> None:
        self.given: dict[int, torch.Tensor] = {}
        self.barrier = threading.Barrier(2, timeout=20)

    def sum(self, rank: int, tensor: torch.Tensor) -> None:
        """In place, for both."""
        self.given[rank] = tensor.clone()
        self.barrier.wait()
        tensor.copy_(self.given[0] + self.given[1])
        self.barrier.wait()


class OneOfTwo(Several):
    """Meets the other one there."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(Place(rank, 2, rank, 2), None)
        self._meeting = meeting

    def sum(self, tensor: torch.Tensor) -> None:
        """By the meeting."""
        self._meeting.sum(self.place.rank, tensor)


def test_a_weight_that_only_one_has_a_gradient_for_gets_it_everywhere() -> None:
    """An expert that no token of the other's records was sent to."""
    gradients: list[dict[str, Any]] = [
        {"both": torch.ones(2), "first": torch.full((3,), 2.0)},
        {"both": torch.ones(2), "second": torch.full((2, 2), 3.0)},
    ]
    meeting = Meeting()

    def train(rank: int) -> dict[str, Any]:
        shapes = {"both": (2,), "none": (5,), "first": (3,), "second": (2, 2)}
        weights = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}
        for name, gradient in gradients[rank].items():
            weights[name].grad = gradient
        OneOfTwo(rank, meeting).sum_gradients(weights.values())
        return {name: None if weight.grad is None else weight.grad.tolist() for name, weight in weights.items()}

    with ThreadPoolExecutor(2) as both:
        found = list(both.map(train, (0, 1)))
    assert found[0] == found[1]
    assert found[0] == {"both": [2, 2], "none": None, "first": [2, 2, 2], "second": [[3, 3], [3, 3]]}
