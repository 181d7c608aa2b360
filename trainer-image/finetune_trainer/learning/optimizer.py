"""AdamW, and how the learning rate goes over the steps."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from finetune_api.method import LearningRateScaling, Scheduler, Training

if TYPE_CHECKING:
    import torch


def learning_rate(training: Training, *, step: int, steps: int, devices: int = 1) -> float:
    """The rate of the step with index `step` of `steps`: up from 0 in a line, then as the scheduler says."""
    peak = training.learning_rate
    if training.scale_learning_rate_with_batch == LearningRateScaling.SQUARE_ROOT:
        peak *= math.sqrt(devices)
    warmup = math.ceil(training.warmup_ratio * steps)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(steps - warmup, 1)
    shapes = {
        Scheduler.CONSTANT: 1.0,
        Scheduler.LINEAR: 1.0 - done,
        Scheduler.COSINE: 0.5 * (1.0 + math.cos(math.pi * done)),
    }
    return peak * shapes[training.scheduler]


def adamw(parameters: "Iterable[torch.nn.Parameter]", training: Training) -> "torch.optim.AdamW":
    """AdamW over `parameters`, with weight decay on matrices only: never on biases and norms."""
    import torch

    trained = list(parameters)
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=training.learning_rate, betas=(0.9, 0.999), eps=1e-8, fused=True)
