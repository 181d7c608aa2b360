"""So many writes a second, and no more, over any time."""

from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.budget import Budget
from tests import worlds


def test_a_burst_of_two_seconds_worth_then_an_even_flow() -> None:
    clock = worlds.Clock()
    budget = Budget(per_second=5, clock=clock)
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False]
    clock.tick(0.2)
    assert [budget.take(), budget.take()] == [True, False]


def test_less_than_one_a_second_is_still_one_sometimes() -> None:
    clock = worlds.Clock()
    budget = Budget(per_second=0.1, clock=clock)
    assert [budget.take(), budget.take()] == [True, False]
    clock.tick(9)
    assert not budget.take()
    clock.tick(2)
    assert budget.take()


def test_a_clock_that_is_set_back_gives_and_takes_nothing() -> None:
    clock = worlds.Clock()
    budget = Budget(per_second=1, clock=clock)
    assert [budget.take() for _ in range(3)] == [True, True, False]
    clock.tick(-3600)
    assert not budget.take()
    clock.tick(1)
    assert budget.take()


@given(st.lists(st.floats(0, 3), max_size=60), st.sampled_from((0.5, 1.0, 7.0)))
def test_never_more_than_the_flow_and_one_burst(pauses: list[float], per_second: float) -> None:
    clock = worlds.Clock()
    budget = Budget(per_second=per_second, clock=clock)
    taken = 0
    for pause in pauses:
        clock.tick(pause)
        taken += sum(budget.take() for _ in range(10))
    passed = (clock.now - worlds.NOW).total_seconds()
    assert taken <= passed * per_second + max(1.0, 2 * per_second) + 1e-6
