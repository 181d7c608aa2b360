"""The learning rate over the steps, and what weight decay touches."""

import pytest
import torch
import transformers

from finetune_api.method import LearningRateScaling, Scheduler, Training
from finetune_trainer.learning.optimizer import adamw, learning_rate

STEPS, WARMUP = 50, 5

REFERENCES = {
    Scheduler.CONSTANT: lambda o: transformers.get_constant_schedule_with_warmup(o, WARMUP),
    Scheduler.LINEAR: lambda o: transformers.get_linear_schedule_with_warmup(  # type: ignore[no-untyped-call]
        o, WARMUP, STEPS
    ),
    Scheduler.COSINE: lambda o: transformers.get_cosine_schedule_with_warmup(o, WARMUP, STEPS),
}


@pytest.mark.parametrize("scheduler", REFERENCES)
def test_after_the_warmup_the_rate_is_that_of_transformers(scheduler: Scheduler) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    reference = REFERENCES[scheduler](optimizer)
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    training = Training(learning_rate=0.01, scheduler=scheduler, warmup_ratio=WARMUP / STEPS)
    rates = [learning_rate(training, step=step, steps=STEPS) for step in range(STEPS)]
    assert rates[WARMUP:] == pytest.approx(expected[WARMUP:], rel=1e-9)


def test_the_warmup_is_a_line_from_zero_and_no_step_is_lost_at_zero() -> None:
    training = Training(learning_rate=0.06, warmup_ratio=0.1)
    rates = [learning_rate(training, step=step, steps=STEPS) for step in range(6)]
    assert rates == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])


def test_with_the_square_root_rule_the_rate_grows_with_the_root_of_the_devices() -> None:
    plain = Training(learning_rate=0.01)
    scaled = Training(learning_rate=0.01, scale_learning_rate_with_batch=LearningRateScaling.SQUARE_ROOT)
    for step in range(STEPS):
        one = learning_rate(plain, step=step, steps=STEPS)
        assert learning_rate(plain, step=step, steps=STEPS, devices=4) == one
        assert learning_rate(scaled, step=step, steps=STEPS) == one
        assert learning_rate(scaled, step=step, steps=STEPS, devices=4) == pytest.approx(2 * one)


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_a_single_step_has_a_rate(ratio: float) -> None:
    assert learning_rate(Training(warmup_ratio=ratio), step=0, steps=1) > 0


def test_weight_decay_is_for_matrices_only() -> None:
    layer = torch.nn.Linear(3, 3)
    groups = adamw(layer.parameters(), Training(weight_decay=0.1)).param_groups
    assert {tuple(p.shape): group["weight_decay"] for group in groups for p in group["params"]} == {
        (3, 3): 0.1,
        (3,): 0.0,
    }
