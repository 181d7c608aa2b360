"""Which records go into which step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.method import BatchSize, Training
from finetune_trainer.data.plan import Plan, batch_sizes
from finetune_trainer.errors import ConfigInvalid

LENGTHS = st.lists(st.integers(min_value=2, max_value=300), min_size=1, max_size=60)


@given(
    lengths=LENGTHS,
    per_device=st.integers(1, 9),
    accumulation=st.integers(1, 4),
    packing=st.booleans(),
    seed=st.integers(0, 5),
)
def test_every_record_comes_exactly_once_an_epoch(
    *, lengths: list[int], per_device: int, accumulation: int, packing: bool, seed: int
) -> None:
    plan = _plan(lengths, per_device, accumulation, packing=packing, seed=seed, duration="3ep")
    for epoch in range(3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        batches = [plan.batch(step) for step in steps]
        assert sorted(record for batch in batches for micro in batch for record in micro) == list(range(len(lengths)))
        assert all(0 < len(micro) <= per_device for batch in batches for micro in batch)
        assert all(0 < len(batch) <= accumulation for batch in batches)
    assert plan.steps == 3 * plan.steps_per_epoch
    assert plan.tokens == 3 * sum(lengths)


@given(lengths=LENGTHS, count=st.integers(1, 5000), packing=st.booleans())
def test_a_length_in_tokens_ends_at_the_first_step_that_reaches_it(
    *, lengths: list[int], count: int, packing: bool
) -> None:
    plan = _plan(lengths, 2, 2, packing=packing, duration=f"{count}tok")
    assert plan.tokens == plan.tokens_before(plan.steps) >= count
    assert plan.tokens_before(plan.steps - 1) < count


@given(lengths=LENGTHS, count=st.integers(1, 100))
def test_tokens_before_a_step_are_those_of_all_earlier_batches(lengths: list[int], count: int) -> None:
    plan = _plan(lengths, 2, 2, duration=f"{count}ba")
    assert plan.steps == count
    assert plan.tokens == sum(plan.tokens_in(plan.batch(step)) for step in range(count))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    lengths = list(range(2, 50))
    first, same, other = (_plan(lengths, 4, 1, seed=seed, duration="2ep") for seed in (1, 1, 2))
    steps = range(first.steps)
    assert [first.batch(step) for step in steps] == [same.batch(step) for step in reversed(steps)][::-1]
    assert first.batch(0) != other.batch(0)
    assert first.batch(0) != first.batch(first.steps_per_epoch)


def test_without_packing_records_of_a_batch_have_like_lengths() -> None:
    lengths = [2 + (n * 7919) % 500 for n in range(400)]
    padding = {
        packing: sum(
            max(lengths[r] for r in micro) * len(micro) - sum(lengths[r] for r in micro)
            for step in range(50)
            for micro in _plan(lengths, 8, 1, packing=packing).batch(step)
        )
        for packing in (True, False)
    }
    assert padding[False] < 0.1 * padding[True]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (BatchSize(), (8, 1)),
        (BatchSize(per_device=3, gradient_accumulation_steps=4), (3, 4)),
        (BatchSize(per_device=4, global_=64), (4, 16)),
        (BatchSize(global_=64), (8, 8)),
        (BatchSize(global_=6), (6, 1)),
        (BatchSize(global_=14), (7, 2)),
    ],
    ids=["Auto is 8 records", "both given", "global", "global and Auto", "less than Auto", "Auto divides global"],
)
def test_batch_sizes(size: BatchSize, expected: tuple[int, int]) -> None:
    assert batch_sizes(size) == expected


def test_a_global_size_that_can_not_be_reached_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="global 10 is not a multiple of perDevice 4"):
        batch_sizes(BatchSize(per_device=4, global_=10))


def _plan(
    lengths: list[int],
    per_device: int,
    accumulation: int,
    *,
    packing: bool = True,
    seed: int = 0,
    duration: str = "1ep",
) -> Plan:
    size = BatchSize(per_device=per_device, gradient_accumulation_steps=accumulation)
    return Plan.of(Training(batch_size=size, packing=packing, seed=seed, max_duration=duration), lengths)
