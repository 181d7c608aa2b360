"""Folding what a trainer says: idempotent, never back within an attempt, each event once, and never too many."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.snapshot import EventType, Snapshot
from finetune_api.status import FineTuneRunStatus, Progress, RunEvent
from finetune_operator import progress
from finetune_operator.progress import EVENT_LIMIT, PER_ATTEMPT, RETOLD, Happening
from tests import worlds

ONCE_A_RUN = frozenset(EventType) - PER_ATTEMPT


def happening(kind: EventType, *, attempt: int | None = 1, message: str = "It happened.") -> Happening:
    return Happening(type=kind, time=worlds.NOW, message=message, attempt=attempt)


def history(*happenings: Happening) -> tuple[RunEvent, ...]:
    events: tuple[RunEvent, ...] = ()
    for one in happenings:
        events = progress.record(events, one)
    return events


@pytest.mark.parametrize("kind", list(EventType))
def test_what_happens_twice_in_an_attempt_is_entered_once(kind: EventType) -> None:
    once = history(happening(kind))
    assert progress.record(once, happening(kind)) is once


@pytest.mark.parametrize("kind", sorted(ONCE_A_RUN))
def test_once_in_a_run_means_once_over_all_attempts(kind: EventType) -> None:
    assert len(history(happening(kind, attempt=1), happening(kind, attempt=2))) == 1


@pytest.mark.parametrize("kind", sorted(PER_ATTEMPT))
def test_once_in_an_attempt_means_again_in_the_next(kind: EventType) -> None:
    events = history(happening(kind, attempt=1), happening(kind, attempt=2))
    assert [(event.sequence, event.attempt) for event in events] == [(1, 1), (2, 2)]


@pytest.mark.parametrize("kind", sorted(RETOLD))
def test_what_is_replaced_in_place_keeps_its_sequence(kind: EventType) -> None:
    events = history(happening(kind), happening(EventType.TRAIN_FINISHED), happening(kind, message="Further."))
    assert [(event.sequence, event.message) for event in events] == [(1, "Further."), (2, "It happened.")]


@pytest.mark.parametrize("kind", sorted(frozenset(EventType) - RETOLD))
def test_what_is_not_replaced_keeps_its_first_words(kind: EventType) -> None:
    assert history(happening(kind), happening(kind, message="Else."))[0].message == "It happened."


def test_a_long_message_is_cut_and_still_the_same() -> None:
    once = history(happening(EventType.TRAIN_UPDATED, message="x" * 3000))
    assert len(once[0].message) <= 1024
    assert progress.record(once, happening(EventType.TRAIN_UPDATED, message="x" * 3000)) is once


HAPPENINGS = st.builds(
    happening, st.sampled_from(EventType), attempt=st.integers(1, 60), message=st.sampled_from(["one", "other"])
)


@given(st.lists(HAPPENINGS, max_size=400))
def test_a_history_is_bounded_ordered_and_has_each_event_once(happenings: list[Happening]) -> None:
    events: tuple[RunEvent, ...] = ()
    entered: dict[tuple[EventType, int | None], int] = {}
    for one in sorted(happenings, key=lambda one: one.attempt or 0):
        events = progress.record(events, one)
        assert len(events) <= EVENT_LIMIT
        sequences = [event.sequence for event in events]
        assert sequences == sorted(set(sequences))
        for event in events:
            kind = (event.type, event.attempt if event.type in PER_ATTEMPT else None)
            assert entered.setdefault(kind, event.sequence) == event.sequence, f"{event.type} is entered twice"


def test_of_a_history_that_is_too_long_the_beginning_the_newest_and_what_happens_once_are_kept() -> None:
    happenings = [happening(EventType.CREATED)]
    for attempt in range(1, 41):
        happenings += [happening(kind, attempt=attempt) for kind in (EventType.QUEUED, EventType.STARTED)]
        if attempt == 10:
            happenings.append(happening(EventType.DATA_VALIDATED, attempt=attempt))
    events = history(*happenings)
    assert len(events) == EVENT_LIMIT
    assert [event.sequence for event in events[:8]] == list(range(1, 9))
    assert (events[-1].type, events[-1].attempt) == (EventType.STARTED, 40)
    assert EventType.DATA_VALIDATED in {event.type for event in events}


SNAPSHOTS = st.builds(
    worlds.snapshot,
    st.one_of(st.none(), st.integers(0, 20)),
    attempt=st.integers(1, 3),
    checkpoints=st.sampled_from([(), (worlds.saved(5),), (worlds.saved(5), worlds.saved(10))]),
)


@given(st.lists(SNAPSHOTS, max_size=20))
def test_progress_never_goes_back_in_an_attempt_and_an_answer_read_twice_changes_nothing(said: list[Snapshot]) -> None:
    status = FineTuneRunStatus()
    for snapshot in sorted(said, key=lambda one: one.attempt):
        before = status
        status = folded(before, snapshot)
        if before.progress and status.progress and before.progress.attempt == status.progress.attempt:
            assert status.progress.batch >= before.progress.batch
        assert folded(status, snapshot) == status


def folded(status: FineTuneRunStatus, snapshot: Snapshot) -> FineTuneRunStatus:
    events = status.events
    if not progress.is_older(snapshot, status.progress):
        for one in progress.happenings(snapshot):
            events = progress.record(events, one)
    return status.model_copy(
        update={
            "progress": progress.fold(status.progress, snapshot),
            "checkpoints": progress.checkpoints(status, snapshot),
            "events": events,
        }
    )


def test_a_snapshot_is_folded_whole() -> None:
    told = worlds.progress(
        eval_loss=2.125,
        learning_rate=0.0001875,
        tokens_per_second_per_device=1234.56,
        device_utilization=0.987,
        data_wait_ratio=0.01234,
        mfu_ratio=0.4567,
        device_memory_bytes=4096,
    )
    assert progress.fold(None, worlds.snapshot(progress=told, attempt=2)) == Progress(
        epoch=1,
        total_epochs=1,
        batch=5,
        total_batches=20,
        tokens=5000,
        percent=25,
        done="25%",
        eta_seconds=45,
        eta="45s",
        loss="2.2500",
        eval_loss="2.1250",
        learning_rate="0.000188",
        tokens_per_second_per_device="1234.6",
        device_utilization="0.99",
        data_wait_ratio="0.0123",
        mfu_ratio="0.457",
        device_memory_bytes=4096,
        last_step_time=worlds.at(15),
        reported_time=worlds.at(15),
        attempt=2,
    )


@pytest.mark.parametrize(
    ("older", "than", "answer"),
    [
        pytest.param(worlds.snapshot(4), 5, True, id="fewer steps"),
        pytest.param(worlds.snapshot(None), 5, True, id="no step yet"),
        pytest.param(worlds.snapshot(5), 5, False, id="as many steps"),
        pytest.param(worlds.snapshot(6), 5, False, id="more steps"),
        pytest.param(worlds.snapshot(4, attempt=2), 5, False, id="a new attempt"),
        pytest.param(worlds.snapshot(4), None, False, id="nothing is known yet"),
    ],
)
def test_what_counts_as_older(older: Snapshot, than: int | None, answer: bool) -> None:
    known = None if than is None else Progress(batch=than, attempt=1)
    assert progress.is_older(older, known) is answer


def test_a_new_attempt_may_begin_behind_the_last_one() -> None:
    found = progress.fold(Progress(batch=12, attempt=1), worlds.snapshot(10, attempt=2))
    assert found is not None
    assert (found.batch, found.attempt) == (10, 2)


@pytest.mark.parametrize(
    ("changes", "percent"),
    [
        pytest.param({"batch": 0}, 0, id="nothing done"),
        pytest.param({"batch": 19, "total_batches": 20}, 95, id="nearly all"),
        pytest.param({"batch": 199, "total_batches": 200}, 99, id="not all is never 100"),
        pytest.param({"batch": 21, "total_batches": 20}, 100, id="more than all is 100"),
        pytest.param({"batch": 5, "total_batches": 0}, 0, id="of nothing"),
        pytest.param({"tokens": 300, "total_tokens": 1000, "in_tokens": True}, 30, id="in tokens"),
    ],
)
def test_percent(changes: dict[str, Any], percent: int) -> None:
    told = worlds.progress().model_copy(update=changes)
    found = progress.fold(None, worlds.snapshot(progress=told))
    assert found is not None
    assert (found.percent, found.done) == (percent, f"{percent}%")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        pytest.param({}, "[epoch=1/1][batch=5/20][ETA=45s] Train loss: 2.25", id="in batches"),
        pytest.param(
            {"in_tokens": True, "total_tokens": 9000},
            "[epoch=1/1][token=5000/9000][ETA=45s] Train loss: 2.25",
            id="in tokens",
        ),
        pytest.param({"eta_seconds": None, "loss": None}, "[epoch=1/1][batch=5/20]", id="nothing measured yet"),
    ],
)
def test_the_line_of_progress(changes: dict[str, Any], line: str) -> None:
    assert progress.line(worlds.progress().model_copy(update=changes)) == line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (59, "59s"), (60, "1min"), (300, "5min"), (3569, "59min"), (3590, "1h"),
        (12_000, "3h20min"), (86_399, "1d"), (187_200, "2d4h"), (2**53 - 1, "104249991374d7h"),
    ],
)  # fmt: skip
def test_a_time_left_is_said_as_people_say_it(seconds: int, text: str) -> None:
    assert progress.eta_text(seconds) == text


def test_a_snapshot_s_story_is_told_in_order() -> None:
    milestones = (
        worlds.milestone(EventType.RESUMED),
        worlds.milestone(EventType.DATA_VALIDATED),
        worlds.milestone(EventType.MODEL_INITIALIZED),
        worlds.milestone(EventType.TRAIN_FINISHED, 99),
    )
    said = worlds.snapshot(20, milestones=milestones, checkpoints=(worlds.saved(10), worlds.saved(20)))
    told = list(progress.happenings(said))
    assert [one.type.value for one in told] == [
        "RESUMED",
        "DATA_VALIDATED",
        "MODEL_INITIALIZED",
        "TRAIN_UPDATED",
        "CHECKPOINT_SAVED",
        "TRAIN_FINISHED",
    ]
    assert told[4].message == "Checkpoint ep1-ba20 saved (1.5 MB)."
    assert {one.attempt for one in told} == {1}


def test_checkpoints_are_those_that_are_there() -> None:
    status = folded(FineTuneRunStatus(), worlds.snapshot(12, checkpoints=(worlds.saved(5), worlds.saved(10))))
    assert [one.name for one in status.checkpoints] == ["ep1-ba5", "ep1-ba10"]
    later = folded(status, worlds.snapshot(15, checkpoints=(worlds.saved(10), worlds.saved(15))))
    assert [one.name for one in later.checkpoints] == ["ep1-ba10", "ep1-ba15"]
    assert folded(later, worlds.snapshot(None, attempt=2)).checkpoints == later.checkpoints
    assert folded(later, worlds.snapshot(12)).checkpoints == later.checkpoints


def test_a_checkpoint_told_twice_is_one() -> None:
    """The API server refuses a list with a key twice, and with it the whole status."""
    twice = (worlds.saved(5), worlds.saved(5, size_bytes=7))
    assert [
        one.size_bytes for one in progress.checkpoints(FineTuneRunStatus(), worlds.snapshot(checkpoints=twice))
    ] == [7]
