"""A hang takes two signs: no step for long, and nothing that works. What is only slow is left alone."""

from typing import Any

import pytest

from finetune_api.snapshot import EventType, Snapshot
from finetune_operator import hang
from finetune_operator.children import Pod
from tests import worlds
from tests.worlds import NOW

TIMEOUT = 1800
MINUTE = 60


def said(*, ago: float = TIMEOUT, last: bool = False, **changes: Any) -> Snapshot:
    """An answer an hour after NOW; the last step was made so many seconds before it."""
    now = worlds.at(3600)
    told = {"last_step_time": worlds.at(3600 - ago)} | changes
    milestones = (worlds.milestone(EventType.TRAIN_FINISHED if last else EventType.DATA_VALIDATED),)
    return worlds.snapshot(5, time=now, progress=worlds.progress(5, **told), milestones=milestones)


def why(snapshot: Snapshot | None, *, pod: Pod | None = None, seconds: float = 0) -> str | None:
    """Looked at so many seconds after the answer."""
    run = worlds.run(status=worlds.status(1, started=True))
    pods = (pod or worlds.running(),)
    found = worlds.world(run, now=worlds.at(3600 + seconds), jobs=(worlds.job(),), pods=pods, snapshot=snapshot)
    return hang.why(found, timeout=worlds.at(TIMEOUT) - NOW)


NO_STEP = "No step since batch 5 at 2026-03-01 12:30:00 UTC, and "


@pytest.mark.parametrize(
    ("signs", "says"),
    [
        pytest.param({"device_utilization": 0.0}, "the device is idle", id="an idle device"),
        pytest.param(
            {"device_utilization": 0.0, "cpu_utilization": 1.0}, "the device is idle", id="whatever the CPU does"
        ),
        pytest.param({"cpu_utilization": 0.0}, "the trainer uses no CPU", id="without a device, an idle CPU"),
        pytest.param({"cpu_utilization": 0.049}, "the trainer uses no CPU", id="nearly idle"),
        pytest.param(
            {"cpu_utilization": 0.0, "device_utilization": 0.97}, "the trainer uses no CPU", id="a device that spins"
        ),
    ],
)
def test_no_step_and_a_second_sign_are_a_hang(signs: dict[str, Any], says: str) -> None:
    assert why(said(**signs)) == NO_STEP + says


@pytest.mark.parametrize(
    "snapshot",
    [
        pytest.param(said(), id="it doesn't say what works"),
        pytest.param(said(device_utilization=0.9, cpu_utilization=0.8), id="it is slow, and works"),
        pytest.param(said(cpu_utilization=0.05), id="the CPU is busy a little"),
        pytest.param(said(ago=TIMEOUT - 1, cpu_utilization=0.0), id="it rests for not so long"),
        pytest.param(said(ago=-5, cpu_utilization=0.0), id="its clock was set back"),
        pytest.param(said(last=True, cpu_utilization=0.0), id="training has finished, and it uploads"),
        pytest.param(said(last_step_time=None, cpu_utilization=0.0), id="it doesn't say when it made a step"),
        pytest.param(
            worlds.snapshot(None, time=worlds.at(3600)), id="it hasn't made a step: data and model may take long"
        ),
        pytest.param(None, id="it hasn't answered"),
        pytest.param(said(cpu_utilization=0.0).model_copy(update={"attempt": 2}), id="another attempt's answer"),
        pytest.param(said(cpu_utilization=0.0).model_copy(update={"run_uid": "other"}), id="another run's answer"),
    ],
)
def test_one_sign_is_none(snapshot: Snapshot | None) -> None:
    assert why(snapshot) is None


def test_a_pod_that_has_ended_does_not_hang() -> None:
    assert why(said(cpu_utilization=0.0), pod=worlds.ended(1)) is None


def test_a_trainer_that_stops_answering_never_becomes_a_hang() -> None:
    """Its clock alone counts: an old answer of one that made a step lately stays that."""
    assert why(said(ago=10, cpu_utilization=0.0), seconds=10**6) is None


def test_the_words_stay_the_same_while_it_hangs() -> None:
    later = said(ago=TIMEOUT + 600, cpu_utilization=0.01)
    assert later.progress is not None
    same = later.model_copy(
        update={"progress": later.progress.model_copy(update={"last_step_time": worlds.at(3600 - TIMEOUT)})}
    )
    assert why(said(cpu_utilization=0.0)) == why(same.model_copy(update={"time": worlds.at(9000)}))


def test_a_hundred_slow_and_living_runs_are_left_alone() -> None:
    """Steps of a minute to a day and a half, each busy with something."""
    signs: list[dict[str, Any]] = [
        {kind: share}
        for share in (0.05, 0.06, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.0)
        for kind in ("device_utilization", "cpu_utilization")
    ]
    slow = [said(ago=step * MINUTE, **sign) for step in (1, 29, 31, 240, 2160) for sign in signs]
    assert len(slow) == 100
    assert [why(snapshot) for snapshot in slow] == [None] * 100
