"""What is due by the clock is looked at again though nothing happens."""

from typing import Any

import pytest

from finetune_operator import due, policy
from finetune_operator.due import LATE_LOOK_SECONDS
from finetune_operator.policy import Action
from finetune_operator.world import Turn, World
from tests import worlds
from tests.unit.operator.test_policy import (
    CANCEL,
    COMPLETE,
    HANGS,
    RUNS,
    SUSPEND,
    active,
    ended_at,
    failed,
    paused,
    world,
)
from tests.worlds import SETTINGS

DAY = 86_400.0
TTL = {"ttlSecondsAfterFinished": 60}


def look(found: World) -> float | None:
    return due.next_look(found, policy.decide(found), settings=SETTINGS)


def waits(position: int | None) -> World:
    return worlds.world(turn=Turn(admitted=False, position=position, reason="NamespaceLimit", message="Later."))


def starting(seconds: float) -> World:
    return world(started=False, jobs=(worlds.job(),), now=worlds.at(seconds))


def story(id_: str, found: World, seconds: float | None) -> Any:
    return pytest.param(found, seconds, id=id_)


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        story("a recorded attempt is to be created", worlds.world(), 0.0),
        story("so is the next one", failed(worlds.ended(1)), 0.0),
        story(
            "a recorded hang is to be stopped",
            world(**RUNS, snapshot=HANGS, changes={"recovery.onHang": "Restart"}),
            0.0,
        ),
        story("a hang that is only told", world(**RUNS, snapshot=HANGS), None),
        story("a recorded deadline is to be stopped", active(60, limit=60), 0.0),
        story("a job was created", world(started=False), SETTINGS.queued_seconds),
        story("a job is being stopped", world(**RUNS, changes=SUSPEND), SETTINGS.queued_seconds),
        story("it should run soon", starting(3), SETTINGS.queued_seconds),
        story("it should run by now", starting(60), LATE_LOOK_SECONDS),
        story("it runs", world(**RUNS), None),
        story("a deadline is near", active(20, limit=60), 40.05),
        story("a deadline is far", active(20, limit=10**7), DAY),
        story("a pod takes its time to end", world(pods=(worlds.running(deletion=worlds.at(300)),)), LATE_LOOK_SECONDS),
        story("first in the line", waits(1), 10.0),
        story("100th in the line", waits(100), 100.0),
        story("14,999th in the line", waits(14_999), 600.0),
        story("its place isn't known", waits(None), 10.0),
        story("it is paused", world(changes=SUSPEND), None),
        story("it stays paused, with a deadline", paused(changes=SUSPEND | {"activeDeadlineSeconds": 60}), None),
        story("it has ended", ended_at(10), None),
        story("it is to be deleted later", ended_at(10, **TTL), 50.05),
        story("it is to be deleted next year", ended_at(10, ttlSecondsAfterFinished=31_536_000), DAY),
        story("it ends with a model, and is to be deleted", world(**COMPLETE, changes=TTL), 0.0),
        story("it fails, and is to be deleted", failed(worlds.ended(65), changes=TTL), 0.0),
        story("it is refused, and is to be deleted", worlds.world(worlds.run(TTL | {"resources.nodes": 2})), 0.0),
        story("it is canceled, and is to be deleted", world(changes=CANCEL | TTL), 0.0),
        story("it ends and stays", world(**COMPLETE), None),
        story("a run of another manager", worlds.world(worlds.run({"managedBy": "kueue.x-k8s.io/multikueue"})), None),
    ],
)
def test_when_a_run_is_looked_at_again(found: World, seconds: float | None) -> None:
    assert look(found) == (None if seconds is None else pytest.approx(seconds))


def test_no_wait_is_so_short_that_the_clock_is_not_over_yet() -> None:
    """Looked at again after the pause, what was due is due."""
    for found in (active(59.999, limit=60), ended_at(59.999, **TTL)):
        pause = look(found)
        assert pause is not None
        assert 0 < pause < 1
    later = ended_at(60.0, **TTL)
    assert policy.decide(later).action is Action.DELETE
