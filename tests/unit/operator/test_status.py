"""The status that follows from what was observed: phases, conditions and their times; the same if nothing is new."""

import dataclasses
from datetime import datetime
from typing import Any

import pytest

from finetune_api.snapshot import EventType
from finetune_api.status import ConditionType, FineTuneRunStatus, Phase
from finetune_operator import policy, status
from finetune_operator.waiting import Waiting
from finetune_operator.world import World
from tests import worlds
from tests.unit.operator.test_policy import STORIES as DECIDED

LOOK = worlds.at(70)
ROOM = Waiting(reason="Unschedulable", message="No node has room.", for_room=True)
IMAGE = Waiting(reason="ImageUnavailable", message="The image can't be pulled.", for_room=False)


def compute(world: World, *, wait: Waiting | None = None, now: datetime = LOOK) -> FineTuneRunStatus:
    return status.compute(world, policy.decide(world), waiting=wait, settings=worlds.SETTINGS, now=now)


def written(world: World, new: FineTuneRunStatus) -> World:
    """The world after that status went through the API server."""
    return dataclasses.replace(world, run=dataclasses.replace(world.run, status=FineTuneRunStatus.parse(new.to_wire())))


def world(attempt: int = 1, *, started: bool = True, changes: dict[str, Any] | None = None, **parts: Any) -> World:
    found = parts.pop("status", None) or worlds.status(attempt, started=started)
    return worlds.world(worlds.run(changes, status=found, generation=parts.pop("generation", 1)), **parts)


STARTING = world(started=False, jobs=(worlds.job(),), pods=(worlds.pod(),))
RUNNING = world(
    jobs=(worlds.job(),), pods=(worlds.running(),), snapshot=worlds.snapshot(5, checkpoints=(worlds.saved(),))
)
DONE = world(
    jobs=(worlds.job(complete=True),),
    pods=(worlds.ended(0, last_word=worlds.last_word(checkpoints=(worlds.saved(20),))),),
)
CRASHED = world(jobs=(worlds.job(failed=True),), pods=(worlds.ended(1),))
BAD_DATA = world(jobs=(worlds.job(failed=True),), pods=(worlds.ended(65),))
REFUSED = worlds.world(worlds.run({"method.type": "QLoRA"}))


@pytest.mark.parametrize("wait", [pytest.param(wait, id=wait.reason if wait else "-") for wait in (None, ROOM, IMAGE)])
@pytest.mark.parametrize("story", [pytest.param(*story.values[:1], id=story.id) for story in DECIDED])
def test_computed_again_after_it_was_written_the_status_is_the_same(story: World, wait: Waiting | None) -> None:
    for seconds in (70, 80):  # a new attempt is recorded first, and created on the next look
        story = written(story, compute(story, wait=wait, now=worlds.at(seconds)))
    assert compute(story, wait=wait, now=worlds.at(90)) == story.run.status


@pytest.mark.parametrize(
    ("found", "wait", "phase"),
    [
        pytest.param(worlds.world(), None, Phase.STARTING, id="a new run"),
        pytest.param(STARTING, None, Phase.STARTING, id="its pod is being made"),
        pytest.param(STARTING, ROOM, Phase.QUEUED, id="no node has room"),
        pytest.param(STARTING, IMAGE, Phase.STARTING, id="the image can't be pulled"),
        pytest.param(RUNNING, None, Phase.RUNNING, id="it trains"),
        pytest.param(CRASHED, None, Phase.STARTING, id="between two attempts"),
        pytest.param(DONE, None, Phase.COMPLETED, id="it has a model"),
        pytest.param(BAD_DATA, None, Phase.FAILED, id="it has failed"),
        pytest.param(REFUSED, None, Phase.FAILED, id="it was refused"),
    ],
)
def test_phase(found: World, wait: Waiting | None, phase: Phase) -> None:
    assert compute(found, wait=wait).phase is phase


T, F, U = "True", "False", "Unknown"


@pytest.mark.parametrize(
    ("found", "wait", "conditions"),
    [
        pytest.param(
            worlds.world(),
            None,
            {
                "Accepted": (T, "Valid"),
                "Admitted": (U, "Waiting"),
                "Reconciling": (T, "Starting"),
                "Succeeded": (U, "Active"),
            },
            id="a new run",
        ),
        pytest.param(
            STARTING,
            ROOM,
            {"Admitted": (F, "Unschedulable"), "Reconciling": (T, "Unschedulable"), "Stalled": (F, "Active")},
            id="no node has room",
        ),
        pytest.param(
            RUNNING,
            None,
            {"Admitted": (T, "Scheduled"), "Reconciling": (T, "Training"), "Finished": (F, "Active")},
            id="it trains",
        ),
        pytest.param(
            DONE,
            None,
            {
                "Accepted": (T, "Valid"),
                "Admitted": (T, "Scheduled"),
                "Suspended": (F, "NotSuspended"),
                "Reconciling": (F, "Finished"),
                "Stalled": (F, "Completed"),
                "Succeeded": (T, "Completed"),
                "Finished": (T, "Completed"),
            },
            id="it has a model",
        ),
        pytest.param(
            BAD_DATA,
            None,
            {
                "Admitted": (T, "Scheduled"),
                "Reconciling": (F, "Finished"),
                "Stalled": (T, "DataInvalid"),
                "Succeeded": (F, "DataInvalid"),
                "Finished": (T, "DataInvalid"),
            },
            id="it has failed",
        ),
        pytest.param(
            REFUSED,
            None,
            {"Accepted": (F, "NotSupported"), "Stalled": (T, "NotSupported"), "Finished": (T, "NotSupported")},
            id="it was refused",
        ),
        pytest.param(
            world(changes={"suspend": True}, jobs=(worlds.job(),), pods=(worlds.running(),)),
            None,
            {"Accepted": (F, "NotSupported"), "Reconciling": (T, "Training"), "Finished": (F, "Active")},
            id="a verb that isn't built, in a run that goes on",
        ),
    ],
)
def test_conditions(found: World, wait: Waiting | None, conditions: dict[str, tuple[str, str]]) -> None:
    new = compute(found, wait=wait)
    told = {str(one.type): (str(one.status), one.reason) for one in new.conditions}
    assert set(told) == {str(kind) for kind in ConditionType}
    assert {kind: told[kind] for kind in conditions} == conditions


def test_a_condition_s_time_is_when_its_status_changed_and_not_its_words() -> None:
    first = compute(STARTING, wait=ROOM, now=worlds.at(70))
    other = Waiting(reason="ClaimPending", message="No volume.", for_room=True)
    second = compute(written(STARTING, first), wait=other, now=worlds.at(80))
    third = compute(written(RUNNING, second), now=worlds.at(90))
    times = [one.condition(ConditionType.ADMITTED) for one in (first, second, third)]
    assert [one.last_transition_time for one in times if one] == [worlds.at(70), worlds.at(70), worlds.at(90)]
    assert [one.reason for one in times if one] == ["Unschedulable", "ClaimPending", "Scheduled"]


def test_the_generation_that_was_seen_is_told() -> None:
    new = compute(world(jobs=(worlds.job(),), generation=4))
    assert new.observed_generation == 4
    assert {one.observed_generation for one in new.conditions} == {4}


def test_after_the_end_nothing_changes_but_the_generation_that_was_seen() -> None:
    end = compute(DONE)
    later = worlds.world(worlds.run(status=end, generation=2))
    new = compute(later)
    assert new.observed_generation == 2
    assert {one.observed_generation for one in new.conditions} == {2}
    back = {"observed_generation": 1, "conditions": end.conditions}
    assert new.model_copy(update=back) == end


def test_a_run_of_another_manager_keeps_its_status() -> None:
    run = worlds.run({"managedBy": "kueue.x-k8s.io/multikueue"}, status=worlds.status(1))
    assert compute(worlds.world(run)) is run.status


def kinds(new: FineTuneRunStatus) -> list[str]:
    return [event.type.value for event in new.events]


def test_the_whole_story_of_a_run() -> None:
    """From the first look to the end, each status written before the next look."""
    now = compute(worlds.world(), now=worlds.at(1))
    assert (now.attempt, kinds(now)) == (1, ["CREATED"])
    now = compute(written(STARTING, now), wait=ROOM, now=worlds.at(3))
    assert kinds(now)[-1] == "QUEUED"
    assert now.queue is not None
    now = compute(written(RUNNING, now), now=worlds.at(16))
    assert kinds(now)[2:] == ["STARTED", "DATA_VALIDATED", "MODEL_INITIALIZED", "TRAIN_UPDATED", "CHECKPOINT_SAVED"]
    assert (now.start_time, now.queue) == (worlds.at(5), None)
    now = compute(written(DONE, now), now=worlds.at(70))
    assert kinds(now)[-1] == "COMPLETED"
    assert now.completion_time == worlds.at(60)
    assert now.active_seconds == 55
    assert now.output is not None
    assert now.output.uri == "pvc://support-bot-6c3f2a1e/output"
    assert now.output.checkpoint == "ep1-ba20"
    assert now.progress is not None
    assert (now.progress.percent, now.progress.done, now.progress.eta) == (100, "100%", "")
    assert now.failure is None


def test_an_operator_that_was_down_all_the_time_tells_the_whole_story_at_once() -> None:
    new = compute(world(started=False, jobs=DONE.jobs, pods=DONE.pods))
    assert kinds(new) == [
        "CREATED",
        "STARTED",
        "DATA_VALIDATED",
        "MODEL_INITIALIZED",
        "TRAIN_UPDATED",
        "CHECKPOINT_SAVED",
        "COMPLETED",
    ]
    assert new.active_seconds == 55
    assert new.start_time == worlds.at(5)


def test_a_failed_attempt_is_followed_by_another_that_says_why() -> None:
    new = compute(CRASHED)
    assert (new.attempt, new.restarts_without_progress, new.active_seconds) == (2, 1, 55)
    assert new.failure is not None
    assert new.failure.attempt == 1
    event = new.event(EventType.RESTARTED)
    assert event is not None
    assert event.message.startswith("Attempt 2 follows: Pod support-bot-1-abcde ended with exit code 1")
    assert (event.attempt, event.time) == (2, worlds.at(60))


def test_a_new_checkpoint_sets_the_count_of_restarts_back() -> None:
    saved = worlds.last_word(1, checkpoints=(worlds.saved(5, time=worlds.at(30)),))
    crashed = world(
        status=worlds.status(1, started=True, restartsWithoutProgress=2),
        jobs=(worlds.job(failed=True),),
        pods=(worlds.ended(1, last_word=saved),),
    )
    assert compute(crashed).restarts_without_progress == 1


def test_a_failure_is_told_with_code_pod_and_attempt() -> None:
    new = compute(BAD_DATA)
    assert kinds(new)[-1] == "FAILED"
    assert new.failure is not None
    assert (new.failure.reason, new.failure.exit_code) == ("DataInvalid", 65)
    assert (new.failure.pod, new.failure.attempt) == ("support-bot-1-abcde", 1)
    assert new.output is None


def test_a_failure_that_was_overcome_is_not_kept() -> None:
    overcome = world(
        2,
        status=worlds.status(2, started=True, failure={"reason": "TrainerFailed", "message": "once"}),
        jobs=(worlds.job(2, complete=True),),
        pods=(worlds.ended(0, 2),),
    )
    assert compute(overcome).failure is None


@pytest.mark.parametrize(
    ("now", "stale"),
    [pytest.param(worlds.at(70), False, id="lately"), pytest.param(worlds.at(76), True, id="long ago")],
)
def test_progress_is_stale_when_the_trainer_has_been_silent(now: datetime, stale: bool) -> None:
    new = compute(RUNNING, now=now)
    assert new.progress is not None
    assert new.progress.stale is stale


def test_an_older_answer_takes_nothing_back() -> None:
    now = compute(RUNNING)
    before = worlds.snapshot(3)
    again = compute(World(run=written(RUNNING, now).run, jobs=RUNNING.jobs, pods=RUNNING.pods, snapshot=before))
    assert again == now


def test_only_progress_is_not_material() -> None:
    now = compute(RUNNING)
    further = World(run=written(RUNNING, now).run, jobs=RUNNING.jobs, pods=RUNNING.pods, snapshot=worlds.snapshot(9))
    later = compute(further)
    assert later != now
    assert status.material(later) == status.material(now)
    assert status.material(compute(written(DONE, now))) != status.material(now)
    stale = compute(written(RUNNING, now), now=worlds.at(900))
    assert status.material(stale) == status.material(now)


def test_no_message_is_longer_than_the_api_allows() -> None:
    long = Waiting(reason="Refused", message="x" * 1024, for_room=True)
    word = worlds.last_word(1, message="y" * 1000)
    for new in (
        compute(STARTING, wait=long),
        compute(world(jobs=CRASHED.jobs, pods=(worlds.ended(1, last_word=word),))),
    ):
        FineTuneRunStatus.parse(new.to_wire())


def test_the_longest_names_still_give_an_output() -> None:
    changes = {"storage": {"claimName": "c" * 253, "subPath": "s" * 256}}
    new = compute(world(changes=changes, jobs=DONE.jobs, pods=DONE.pods))
    assert new.output is not None
    assert len(new.output.uri) <= 512
