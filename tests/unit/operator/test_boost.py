"""Which boost a run gets: by the work at stake, only while it runs, and never near the next priority class."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator import boost
from finetune_operator.boost import Boosted
from finetune_operator.world import World
from tests import worlds
from tests.unit.operator.test_policy import queued

FIRST = timedelta(minutes=10)
SUSPENDED = worlds.job(suspended=True)
AGAIN = worlds.world(
    worlds.run({"queue.name": "team-a"}, status=worlds.status(2, jobAttempt=1, jobStartTime=worlds.at(3))),
    jobs=(SUSPENDED,),
)
"""The second attempt waits for quota in the Job of the first."""
MINE: Any = {
    "manager": "finetune-operator",
    "fieldsV1": {"f:metadata": {"f:annotations": {f"f:{boost.ANNOTATION}": {}}}},
}


def checkpoint(seconds: float, **changes: Any) -> dict[str, Any]:
    """One that was complete so many seconds after NOW."""
    known = {"name": f"ep1-ba{abs(int(seconds))}", "time": worlds.at(seconds), "complete": True}
    return worlds.saved().model_dump() | known | changes


def running(seconds: float, *checkpoints: dict[str, Any]) -> World:
    """A run in a queue, started five seconds after NOW, seen so many seconds after NOW."""
    told: dict[str, Any] = {"jobStartTime": worlds.at(3), "checkpoints": list(checkpoints)}
    run = worlds.run({"queue.name": "team-a"}, status=worlds.status(started=True, **told))
    return worlds.world(run, now=worlds.at(seconds), jobs=(worlds.job(),), pods=(worlds.running(),))


@pytest.mark.parametrize(
    ("world", "seconds"),
    [
        pytest.param(running(3605), 3600, id="all of it, without a checkpoint"),
        pytest.param(running(3605, checkpoint(3000)), 605, id="since the last checkpoint"),
        pytest.param(running(3605, checkpoint(3000), checkpoint(600)), 605, id="since the last, in whatever order"),
        pytest.param(running(3605, checkpoint(3000, complete=False)), 3600, id="a checkpoint that isn't complete"),
        pytest.param(running(3605, checkpoint(-900)), 3600, id="a checkpoint that an earlier attempt left"),
        pytest.param(running(3605, checkpoint(4000)), 0, id="a checkpoint of a clock that is ahead"),
        pytest.param(queued(started=False, jobs=(worlds.job(),)), None, id="a pod that hasn't started"),
        pytest.param(queued(jobs=(SUSPENDED,)), None, id="a Job that waits again"),
        pytest.param(queued(jobs=(worlds.job(started=worlds.at(90)),)), None, id="a Job that was just let in again"),
    ],
)
def test_at_stake_is(world: World, seconds: float | None) -> None:
    found = boost.at_stake(world)
    assert (None if found is None else found.total_seconds()) == seconds


@pytest.mark.parametrize(
    ("world", "concerned"),
    [
        pytest.param(running(60), True, id="a run in a queue"),
        pytest.param(queued(jobs=(SUSPENDED,)), True, id="one that waits again"),
        pytest.param(AGAIN, True, id="likewise, with a new attempt"),
        pytest.param(queued(started=False, jobs=(SUSPENDED,)), False, id="one that hasn't run yet"),
        pytest.param(queued(jobs=()), False, id="one without a Job"),
        pytest.param(queued(jobs=(worlds.job(failed=True),)), False, id="one whose Job has ended"),
        pytest.param(queued(jobs=(worlds.job(deleted=True),)), False, id="one whose Job is being deleted"),
        pytest.param(
            worlds.world(worlds.run(status=worlds.status(started=True)), jobs=(worlds.job(),)), False, id="no queue"
        ),
    ],
)
def test_it_concerns(world: World, concerned: bool) -> None:
    assert boost.concerns(world) is concerned


@pytest.mark.parametrize(
    ("minutes", "wanted", "then"),
    [(0, 0, 10), (9.5, 0, 0.5), (10, 1, 10), (19, 1, 1), (20, 2, 20), (79, 3, 1), (320, 6, None), (10_000, 6, None)],
)
def test_each_step_stands_for_twice_the_work(minutes: float, wanted: int, then: float | None) -> None:
    stake = timedelta(minutes=minutes)
    assert boost.wanted(stake, first=FIRST) == wanted
    assert boost.next_step(stake, first=FIRST) == (None if then is None else timedelta(minutes=then))


def test_what_does_not_run_gets_none() -> None:
    assert boost.wanted(None, first=FIRST) == 0
    assert boost.next_step(None, first=FIRST) is None


@pytest.mark.parametrize(
    ("priority", "classes", "room"),
    [
        pytest.param(0, (), boost.MOST, id="no classes"),
        pytest.param(0, (0, -5, 1000), boost.MOST, id="one far above"),
        pytest.param(0, (7,), 6, id="one just far enough"),
        pytest.param(0, (1000, 3), 2, id="the nearest counts"),
        pytest.param(0, (1, 1000), 0, id="one just above"),
        pytest.param(100, (0, 100), boost.MOST, id="its own and lower ones"),
    ],
)
def test_the_next_class_leaves_so_much_room(priority: int, classes: tuple[int, ...], room: int) -> None:
    assert boost.room(priority, classes) == room


PRIORITY = st.integers(-(2**31), 2**31 - 1)


@given(PRIORITY, st.lists(PRIORITY), st.timedeltas(timedelta(), timedelta(days=365)))
def test_whatever_may_preempt_a_run_without_a_boost_may_do_so_with_it(
    priority: int, classes: list[int], stake: timedelta
) -> None:
    found = min(boost.wanted(stake, first=FIRST), boost.room(priority, classes))
    assert 0 <= found <= boost.MOST
    assert all(value > priority + found for value in classes if value > priority)


@given(st.timedeltas(timedelta(), timedelta(days=2)), st.timedeltas(timedelta(seconds=1), timedelta(hours=1)))
def test_the_next_step_is_where_more_is_wanted_and_not_before(stake: timedelta, first: timedelta) -> None:
    now, left = boost.wanted(stake, first=first), boost.next_step(stake, first=first)
    if left is None:
        assert now == boost.MOST
    else:
        assert boost.wanted(stake + left, first=first) == now + 1
        assert boost.wanted(stake + left - timedelta(microseconds=1), first=first) == now


def workload(annotations: dict[str, str] | None = None, *fields: Any, **spec: Any) -> dict[str, Any]:
    metadata = {"name": "job-1", "uid": "w", "annotations": annotations, "managedFields": list(fields)}
    return {"metadata": {key: value for key, value in metadata.items() if value}, "spec": spec}


@pytest.mark.parametrize(
    ("body", "boosted", "by_another"),
    [
        pytest.param(workload(), "", False, id="none"),
        pytest.param(workload({"other": "1"}), "", False, id="another annotation"),
        pytest.param(workload({boost.ANNOTATION: "2"}, MINE), "2", False, id="one's own"),
        pytest.param(workload({boost.ANNOTATION: "2"}), "2", True, id="nobody's"),
        pytest.param(
            workload({boost.ANNOTATION: "-9"}, MINE | {"manager": "kubectl"}, {"manager": "finetune-operator"}),
            "-9",
            True,
            id="somebody else's",
        ),
    ],
)
def test_a_workload_tells_its_boost_and_whose_it_is(body: Any, boosted: str, by_another: bool) -> None:
    found = Boosted.parse(body)
    assert (found.boost, found.by_another) == (boosted, by_another)


def test_a_workload_without_a_priority_has_0() -> None:
    assert [Boosted.parse(body).priority for body in (workload(), workload(priority=100))] == [0, 100]


def test_a_patch_says_nothing_but_which_workload_and_which_boost() -> None:
    found = Boosted.parse(workload())
    assert found.patch(3) == {"metadata": {"uid": "w", "annotations": {boost.ANNOTATION: "3"}}}
    assert found.patch(0) == {"metadata": {"uid": "w", "annotations": {boost.ANNOTATION: None}}}
