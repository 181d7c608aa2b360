"""The status that follows from what was observed: phases, conditions and their times; the same if nothing is new."""

import dataclasses
from datetime import datetime
from typing import Any

import pytest

from finetune_api.snapshot import EventType, Trouble
from finetune_api.status import Condition, ConditionType, FineTuneRunStatus, Phase, ResolvedModel
from finetune_operator import policy, status, waiting
from finetune_operator.errors import UserError
from finetune_operator.waiting import Waiting
from finetune_operator.world import Turn, World
from tests import worlds
from tests.unit.operator.test_policy import HANGS, PAUSED, WAITS, early
from tests.unit.operator.test_policy import STORIES as DECIDED

LOOK = worlds.at(70)
ROOM = Waiting(reason="Unschedulable", message="No node has room.", for_room=True)
TURN = Waiting(reason="NamespaceLimit", message="10 of 10 are active.", for_room=True)
IMAGE = Waiting(reason="ImageUnavailable", message="The image can't be pulled.", for_room=False)


def compute(world: World, *, wait: Waiting | None = None, now: datetime = LOOK) -> FineTuneRunStatus:
    world = dataclasses.replace(world, now=now)
    return status.compute(world, policy.decide(world), waiting=wait, settings=worlds.SETTINGS)


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
REFUSED = worlds.world(worlds.run({"method.type": "LORA"}))
NEVER = worlds.world(turn=Turn(admitted=False, never="asks for 9 nvidia.com/gpu: ask for fewer"))
SAVED = worlds.snapshot(5, checkpoints=(worlds.saved(),))
STOPPING = world(changes={"suspend": True}, jobs=RUNNING.jobs, pods=RUNNING.pods, snapshot=SAVED)
STOPPED = dataclasses.replace(STOPPING, jobs=(), pods=())
SUSPENDED = world(
    changes={"suspend": True}, status=worlds.status(1, started=True, phase="Suspended", conditions=[PAUSED])
)
RESUMES = world(status=SUSPENDED.run.status)
CANCELED = dataclasses.replace(STOPPED, run=worlds.run({"cancel": True}, status=STOPPED.run.status))
HUNG = dataclasses.replace(RUNNING, snapshot=HANGS)


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
        pytest.param(NEVER, None, Phase.FAILED, id="it never fits"),
        pytest.param(worlds.world(turn=WAITS), TURN, Phase.QUEUED, id="it waits for its turn"),
        pytest.param(STOPPING, None, Phase.RUNNING, id="it is being paused"),
        pytest.param(STOPPED, None, Phase.SUSPENDED, id="it is paused"),
        pytest.param(SUSPENDED, None, Phase.SUSPENDED, id="it stays paused"),
        pytest.param(
            dataclasses.replace(SUSPENDED, pods=RUNNING.pods), None, Phase.SUSPENDED, id="it is paused, with a pod left"
        ),
        pytest.param(dataclasses.replace(RESUMES, turn=WAITS), TURN, Phase.QUEUED, id="it goes on when its turn comes"),
        pytest.param(RESUMES, None, Phase.STARTING, id="it goes on"),
        pytest.param(CANCELED, None, Phase.CANCELED, id="it is canceled"),
        pytest.param(HUNG, None, Phase.RUNNING, id="it hangs"),
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
            {"Accepted": (F, "Invalid"), "Stalled": (T, "Invalid"), "Finished": (T, "Invalid")},
            id="it was refused",
        ),
        pytest.param(
            NEVER,
            waiting.why(NEVER, settings=worlds.SETTINGS),
            {
                "Accepted": (F, "LimitExceeded"),
                "Admitted": (U, "Waiting"),
                "Stalled": (T, "LimitExceeded"),
                "Finished": (T, "LimitExceeded"),
            },
            id="it never fits",
        ),
        pytest.param(
            worlds.world(turn=WAITS),
            TURN,
            {
                "Accepted": (T, "Valid"),
                "Admitted": (F, "NamespaceLimit"),
                "Suspended": (F, "NotSuspended"),
                "Reconciling": (T, "NamespaceLimit"),
            },
            id="it waits for its turn",
        ),
        pytest.param(
            STOPPING,
            None,
            {"Suspended": (F, "NotSuspended"), "Reconciling": (T, "Stopping"), "Admitted": (T, "Scheduled")},
            id="it is being paused",
        ),
        pytest.param(
            STOPPED,
            None,
            {
                "Suspended": (T, "Suspended"),
                "Admitted": (F, "Suspended"),
                "Reconciling": (T, "Suspended"),
                "Succeeded": (U, "Active"),
                "Degraded": (F, "NotRunning"),
            },
            id="it is paused",
        ),
        pytest.param(
            dataclasses.replace(SUSPENDED, pods=RUNNING.pods),
            None,
            {"Suspended": (T, "Stopping"), "Reconciling": (T, "Stopping")},
            id="it is paused, with a pod left",
        ),
        pytest.param(
            dataclasses.replace(RESUMES, turn=WAITS),
            TURN,
            {"Suspended": (T, "WaitingForTurn"), "Admitted": (F, "NamespaceLimit")},
            id="it goes on when its turn comes",
        ),
        pytest.param(
            RESUMES, None, {"Suspended": (F, "NotSuspended"), "Reconciling": (T, "Starting")}, id="it goes on"
        ),
        pytest.param(
            CANCELED,
            None,
            {
                "Reconciling": (F, "Finished"),
                "Stalled": (T, "Canceled"),
                "Succeeded": (F, "Canceled"),
                "Finished": (T, "Canceled"),
            },
            id="it is canceled",
        ),
        pytest.param(HUNG, None, {"Degraded": (T, "Hung"), "Reconciling": (T, "Training")}, id="it hangs"),
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
    again = compute(dataclasses.replace(written(RUNNING, now), snapshot=before))
    assert again == now


@pytest.mark.parametrize(
    ("place", "told"), [(1, 1), (9, 9), (10, 10), (11, 20), (99, 100), (100, 100), (487, 500), (15_000, 20_000)]
)
def test_a_place_in_the_queue_is_told_to_one_digit(place: int, told: int) -> None:
    assert status.rounded(place) == told


def test_only_progress_is_not_material() -> None:
    now = compute(RUNNING)
    later = compute(dataclasses.replace(written(RUNNING, now), snapshot=worlds.snapshot(9)))
    assert later != now
    assert status.material(later) == status.material(now)
    assert status.material(compute(written(DONE, now))) != status.material(now)
    waits = compute(worlds.world(turn=WAITS), wait=TURN)
    assert waits.queue is not None
    nearer = waits.model_copy(update={"queue": waits.queue.model_copy(update={"position": 2})})
    assert status.material(nearer) == status.material(waits)


def degraded(*, now: datetime = LOOK, **parts: Any) -> Condition:
    found = compute(dataclasses.replace(RUNNING, **parts), now=now).condition(ConditionType.DEGRADED)
    assert found is not None
    return found


def trouble(reason: str, message: str) -> Trouble:
    return Trouble(reason=reason, message=message, since=worlds.at(20))


TOLD = {"type": "Degraded", "status": T, "reason": "TrainerSilent", "lastTransitionTime": worlds.at(50)}
SILENT = worlds.run(status=worlds.status(1, started=True, conditions=[TOLD]))


@pytest.mark.parametrize(
    ("found", "state", "reason", "message"),
    [
        pytest.param(degraded(), F, "AsExpected", "", id="all is well"),
        pytest.param(degraded(snapshot=None), F, "AsExpected", "", id="the trainer hasn't answered yet"),
        pytest.param(
            degraded(now=worlds.at(76)),
            T,
            "TrainerSilent",
            "The trainer doesn't answer when it is asked for its progress.",
            id="the trainer has been silent",
        ),
        pytest.param(
            degraded(run=SILENT, snapshot=None), T, "TrainerSilent", "", id="a new operator hasn't asked it yet"
        ),
        pytest.param(degraded(run=SILENT), F, "AsExpected", "", id="it answers again"),
        pytest.param(
            degraded(
                snapshot=worlds.snapshot(
                    5, troubles=(trouble("CheckpointFailed", "The volume is full."), trouble("Slow", "It is slow."))
                )
            ),
            T,
            "CheckpointFailed",
            "The volume is full.; It is slow.",
            id="the trainer says what is wrong",
        ),
        pytest.param(
            degraded(snapshot=HANGS, now=worlds.at(2000)),
            T,
            "Hung",
            "No step since batch 5 at 2026-03-01 12:01:40 UTC, and the trainer uses no CPU",
            id="it hangs",
        ),
        pytest.param(degraded(pods=(worlds.pod(),)), F, "NotRunning", "", id="its pod doesn't run yet"),
    ],
)
def test_degraded_is_what_is_wrong_while_it_runs(found: Condition, state: str, reason: str, message: str) -> None:
    assert (found.status, found.reason, found.message) == (state, reason, message)


def test_a_hang_is_entered_once_an_attempt_and_degrades_until_a_step_is_made() -> None:
    first = compute(HUNG, now=worlds.at(2000))
    assert kinds(first)[-1] == "HUNG"
    later = HANGS.model_copy(update={"sequence": 99, "time": worlds.at(2100)})
    again = dataclasses.replace(written(HUNG, first), snapshot=later)
    assert kinds(compute(again, now=worlds.at(2100))).count("HUNG") == 1
    step = worlds.snapshot(6, time=worlds.at(2110), progress=worlds.progress(6, last_step_time=worlds.at(2109)))
    well = compute(dataclasses.replace(written(HUNG, first), snapshot=step), now=worlds.at(2110))
    told = well.condition(ConditionType.DEGRADED)
    assert told is not None
    assert (told.status, well.failure) == (F, None)


def test_an_attempt_that_is_ended_because_it_hangs_is_recorded_first_and_counted_once() -> None:
    asked = {"recovery.onHang": "Restart"}
    hangs = world(changes=asked, jobs=RUNNING.jobs, pods=RUNNING.pods, snapshot=HANGS)
    recorded = compute(hangs, now=worlds.at(2000))
    assert (recorded.attempt, recorded.hang_restarts, recorded.restarts_without_progress) == (1, 0, 0)
    assert recorded.failure is not None
    assert recorded.failure.reason == "Hung"
    gone = dataclasses.replace(written(hangs, recorded), jobs=(), pods=())
    after = compute(gone, now=worlds.at(2010))
    assert (after.attempt, after.hang_restarts, after.restarts_without_progress) == (2, 1, 1)
    assert kinds(after)[-1] == "RESTARTED"


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        pytest.param(
            world(status=worlds.status(1, started=True, failure=early("Hung"), hangRestarts=1)), (2, 1), id="it hung"
        ),
        pytest.param(
            world(status=worlds.status(1, started=True, hangRestarts=2), jobs=CRASHED.jobs, pods=CRASHED.pods),
            (2, 1),
            id="it crashed",
        ),
        pytest.param(
            world(status=worlds.status(1, started=True, hangRestarts=2), jobs=CRASHED.jobs, pods=(worlds.ended(75),)),
            (2, 0),
            id="it was stopped",
        ),
        pytest.param(
            dataclasses.replace(
                STOPPED,
                run=worlds.run(
                    {"suspend": True}, status=worlds.status(1, started=True, hangRestarts=2, restartsWithoutProgress=3)
                ),
            ),
            (0, 0),
            id="it saved a checkpoint and was paused",
        ),
        pytest.param(
            dataclasses.replace(
                STOPPED,
                snapshot=None,
                run=worlds.run(
                    {"suspend": True}, status=worlds.status(1, started=True, hangRestarts=2, restartsWithoutProgress=3)
                ),
            ),
            (2, 3),
            id="it was paused before it saved one",
        ),
    ],
)
def test_attempts_in_a_row_without_a_newer_checkpoint(found: World, counts: tuple[int, int]) -> None:
    new = compute(found)
    assert (new.hang_restarts, new.restarts_without_progress) == counts
    again = compute(written(found, new))
    assert (again.hang_restarts, again.restarts_without_progress) == counts


def test_a_run_that_is_paused_and_goes_on_tells_so() -> None:
    """Each status written before the next look."""
    now = compute(STOPPING, now=worlds.at(70))
    assert kinds(now)[-1] == "CHECKPOINT_SAVED"
    now = compute(written(STOPPED, now), now=worlds.at(80))
    event = now.event(EventType.SUSPENDED)
    assert event is not None
    assert event.message == (
        "Run suspended, its devices are free. Saved in pvc://support-bot-6c3f2a1e/checkpoints: ep1-ba5."
    )
    waits = dataclasses.replace(written(RESUMES, now), turn=WAITS)
    now = compute(waits, wait=TURN, now=worlds.at(90))
    assert (kinds(now)[-1], now.attempt) == ("QUEUED", 1)
    assert (now.events[-1].message, now.events[-1].attempt) == ("10 of 10 are active.", 2)
    now = compute(written(RESUMES, now), now=worlds.at(100))
    assert (kinds(now)[-1], now.attempt, now.queue) == ("RESUMED", 2, None)
    assert (now.events[-1].message, now.events[-1].attempt) == ("Run resumed: attempt 2 follows.", 2)


def test_a_run_that_was_paused_before_it_began_begins_and_does_not_resume() -> None:
    first = compute(worlds.world(worlds.run({"suspend": True})))
    assert (kinds(first), first.phase) == (["CREATED", "SUSPENDED"], Phase.SUSPENDED)
    begun = compute(worlds.world(worlds.run(status=first)))
    assert (kinds(begun), begun.attempt) == (["CREATED", "SUSPENDED"], 1)


@pytest.mark.parametrize(
    ("snapshot", "says"),
    [
        pytest.param(
            worlds.snapshot(12, checkpoints=(worlds.saved(5), worlds.saved(10))),
            "Run canceled. Saved in pvc://support-bot-6c3f2a1e/checkpoints: ep1-ba5, ep1-ba10.",
            id="two checkpoints",
        ),
        pytest.param(None, "Run canceled. What its pod saved last wasn't seen.", id="its pod was gone too soon"),
    ],
)
def test_a_canceled_run_lists_what_was_saved(snapshot: Any, says: str) -> None:
    new = compute(dataclasses.replace(CANCELED, snapshot=snapshot))
    event = new.event(EventType.CANCELED)
    assert event is not None
    assert event.message == says
    assert (new.output, new.failure, new.completion_time) == (None, None, LOOK)


def test_a_run_that_is_canceled_before_its_pod_ran_saved_nothing() -> None:
    canceled = worlds.run({"cancel": True}, status=FineTuneRunStatus(attempt=1))
    event = compute(dataclasses.replace(CANCELED, run=canceled, snapshot=None)).event(EventType.CANCELED)
    assert event is not None
    assert event.message == "Run canceled. No checkpoint was saved."


@pytest.mark.parametrize("ends", [NEVER, REFUSED, worlds.world(worlds.run({"cancel": True}))])
def test_a_run_that_has_ended_waits_for_nothing(ends: World) -> None:
    new = compute(ends, wait=TURN)
    assert (new.queue, new.is_finished) == (None, True)
    assert "QUEUED" not in kinds(new)


def test_a_run_that_never_fits_is_told_the_field_and_the_limit() -> None:
    new = compute(NEVER, wait=waiting.why(NEVER, settings=worlds.SETTINGS))
    assert new.failure is not None
    assert new.failure.message == "spec.resources asks for 9 nvidia.com/gpu: ask for fewer"


def seconds(*looks: World, now: float = 70) -> tuple[int, int]:
    """Active seconds in all, and those of earlier attempts, each status written before the next look."""
    new = looks[0].run.status
    for look in looks:
        spec = look.run.spec
        run = dataclasses.replace(look.run, spec=spec, status=FineTuneRunStatus.parse(new.to_wire()))
        new = compute(dataclasses.replace(look, run=run), now=worlds.at(now))
    return new.active_seconds, new.earlier_active_seconds


@pytest.mark.parametrize(
    ("looks", "total", "earlier"),
    [
        pytest.param((STARTING, STARTING), 0, 0, id="its pod doesn't run yet"),
        pytest.param((RUNNING, RUNNING), 65, 0, id="it runs"),
        pytest.param((RUNNING, CRASHED), 65, 65, id="it was told to run for longer than it did"),
        pytest.param((CRASHED,), 55, 55, id="it crashed after 55 s"),
        pytest.param((CRASHED, CRASHED, CRASHED), 55, 55, id="old pods don't count again"),
        pytest.param((STOPPING, STOPPED, SUSPENDED, SUSPENDED), 65, 65, id="it is paused"),
        pytest.param((STOPPED, RESUMES, RESUMES), 10, 10, id="it goes on, last heard of after 10 s"),
        pytest.param(
            (STOPPED, dataclasses.replace(SUSPENDED, pods=RUNNING.pods), SUSPENDED),
            10,
            10,
            id="a pod left over is free",
        ),
        pytest.param((DONE,), 55, 55, id="it has a model"),
    ],
)
def test_active_seconds_count_once_an_attempt(looks: tuple[World, ...], total: int, earlier: int) -> None:
    assert seconds(*looks) == (total, earlier)


def test_what_the_model_stands_for_is_recorded_with_the_first_attempt() -> None:
    model = ResolvedModel(uri="hf://org/tiny", adapter_uri="pvc://other/output")
    waits = worlds.world(worlds.run({"model.uri": "run://other"}), model=model, turn=WAITS)
    assert compute(waits, wait=TURN).model is None
    begun = compute(dataclasses.replace(waits, turn=Turn()))
    assert (begun.attempt, begun.model) == (1, model)
    later = dataclasses.replace(written(waits, begun), model=UserError("spec.model.uri", "is gone"), turn=Turn())
    assert compute(later).model == model


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
