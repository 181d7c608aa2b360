"""The machine itself is tested: each planted mistake breaks the promise that is meant to catch it."""

from collections.abc import Callable, Iterator

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from finetune_api.status import FineTuneRunStatus
from finetune_operator import policy, status
from finetune_operator.admission import Line
from finetune_operator.facts import Facts
from finetune_operator.policy import Action, Check, Decision
from finetune_operator.run import paused
from finetune_operator.settings import Settings
from finetune_operator.waiting import Waiting
from finetune_operator.world import World
from tests.state.test_state_machine import RunMachine, only_errors_are_logged

Plant = Callable[[pytest.MonkeyPatch], None]

__all__ = ["only_errors_are_logged"]


def without(check: Check, *, instead: Check | None = None) -> tuple[Check, ...]:
    """The checks, one of them left out or replaced."""
    replaced = (instead if one is check else one for one in policy.CHECKS)
    return tuple(one for one in replaced if one is not None)


def pauses_before_the_pod_has_ended(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(policy, "CHECKS", without(policy.stop_what_must_end))


def creates_a_lost_job_again(patch: pytest.MonkeyPatch) -> None:
    right = policy.judge_an_attempt_that_failed

    def judge(world: World) -> Decision | None:
        lost = world.job is None and world.started is not None and not world.live_pods
        asked = world.run.spec is not None and world.run.spec.suspend
        return Decision(action=Action.CREATE) if lost and not asked and not paused(world.run) else right(world)

    patch.setattr(policy, "CHECKS", without(right, instead=judge))


def counts_active_seconds_twice(patch: pytest.MonkeyPatch) -> None:
    def seconds(facts: Facts) -> int:
        return facts.old.active_seconds + round(facts.world.active_seconds)

    patch.setattr(status, "_active_seconds", seconds)


def calls_whoever_fits(patch: pytest.MonkeyPatch) -> None:
    def call(line: Line) -> Iterator[str]:
        for uid, place in line._places.items():
            most = line._limits.devices.get(place.resource, place.devices)
            if uid not in line._active and place.devices <= most - line._devices[place.resource]:
                yield uid

    patch.setattr(Line, "_call", call)


def writes_what_has_not_changed(patch: pytest.MonkeyPatch) -> None:
    right = status.compute

    def compute(world: World, decision: Decision, *, waiting: Waiting | None, settings: Settings) -> FineTuneRunStatus:
        found = right(world, decision, waiting=waiting, settings=settings)
        other = {"hang_restarts": 1 - min(1, world.run.status.hang_restarts)}
        return found if found.is_finished else found.model_copy(update=other)

    patch.setattr(status, "compute", compute)


@pytest.mark.parametrize(
    ("plant", "broken"),
    [
        pytest.param(pauses_before_the_pod_has_ended, "something lives of a run", id="it pauses too early"),
        pytest.param(creates_a_lost_job_again, r"had 2 Jobs|count once", id="it uses an attempt's number again"),
        pytest.param(counts_active_seconds_twice, "count once", id="it counts active seconds twice"),
        pytest.param(calls_whoever_fits, "are active|passes|are used", id="it calls whoever fits"),
        pytest.param(writes_what_has_not_changed, "again and again", id="it writes what hasn't changed"),
    ],
)
def test_a_planted_mistake_is_caught(plant: Plant, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    found = settings(
        max_examples=200,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        phases=(hypothesis.Phase.generate,),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    with pytest.raises(AssertionError, match=broken):
        run_state_machine_as_test(RunMachine, settings=found)
