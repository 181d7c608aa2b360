"""What is told of runs: one set of series for each that is active or has just ended, sums of the others."""

import re
from datetime import datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from finetune_api.snapshot import EventType, Snapshot
from finetune_api.status import (
    Checkpoint,
    Condition,
    ConditionStatus,
    ConditionType,
    Failure,
    FineTuneRunStatus,
    Phase,
    Progress,
    RunEvent,
    TrackingState,
)
from finetune_operator import runmetrics
from finetune_operator.run import Run
from finetune_operator.runmetrics import FAMILIES, Runs, Seen
from finetune_operator.settings import Limits
from tests import worlds
from tests.worlds import NOW, at

DEVICES = {"nvidia.com/gpu": 16}


def text(*seen: tuple[Run, Snapshot | None], now: datetime = NOW) -> str:
    registry = CollectorRegistry()
    limits = Limits(10, DEVICES)
    registry.register(Runs(lambda: seen, limits=limits, clock=lambda: now, grace_seconds=300))
    return generate_latest(registry).decode()


def event(kind: EventType, seconds: float, sequence: int) -> RunEvent:
    return RunEvent(sequence=sequence, type=kind, time=at(seconds), attempt=1)


TRAINS = FineTuneRunStatus(
    phase=Phase.RUNNING,
    attempt=2,
    start_time=at(60),
    active_seconds=500,
    progress=Progress(
        attempt=2,
        batch=30,
        total_batches=120,
        epoch=1,
        tokens=9000,
        loss="1.25",
        eval_loss="1.5",
        learning_rate="2e-05",
        tokens_per_second_per_device="812.5",
        device_utilization="0.93",
        device_memory_bytes=7_000_000_000,
        data_wait_ratio="0.012",
        mfu_ratio="0.45",
        eta_seconds=90,
        last_step_time=at(600),
        step_seconds=400,
    ),
    checkpoints=(Checkpoint(name="ep1-ba25", step=25, time=at(590), size_bytes=123, path="a", sha256="a"),),
    tracking=TrackingState(mlflow_run_id="1a2b"),
)
ENDED = TRAINS.model_copy(
    update={
        "phase": Phase.COMPLETED,
        "completion_time": at(660),
        "conditions": (
            Condition(
                type=ConditionType.FINISHED,
                status=ConditionStatus.TRUE,
                reason="Completed",
                last_transition_time=at(660),
            ),
        ),
    }
)


def test_a_run_that_trains_has_a_value_in_every_family_but_its_end() -> None:
    found = text((worlds.run(status=TRAINS), None), now=at(660))
    missing = [
        name for name, _, _ in FAMILIES if f'finetune_run_{name}{{namespace="ml",run="support-bot"}}' not in found
    ]
    assert missing == ["completion_timestamp_seconds"]
    for line in (
        'finetune_run_loss{namespace="ml",run="support-bot"} 1.25',
        'finetune_run_learning_rate{namespace="ml",run="support-bot"} 2e-05',
        'finetune_run_progress_ratio{namespace="ml",run="support-bot"} 0.25',
        'finetune_run_queue_wait_seconds{namespace="ml",run="support-bot"} 60.0',
        'finetune_run_phase{namespace="ml",phase="Running",run="support-bot"} 1.0',
        'finetune_operator_active_runs{namespace="ml"} 1.0',
    ):
        assert line in found


def test_what_the_trainer_said_last_is_fresher_than_what_was_written() -> None:
    said = worlds.snapshot(
        attempt=2, progress=worlds.progress(19, total_batches=120).model_copy(update={"batch": 31, "loss": 1.125})
    )
    found = text((worlds.run(status=TRAINS), said))
    assert 'finetune_run_step{namespace="ml",run="support-bot"} 31.0' in found
    assert 'finetune_run_loss{namespace="ml",run="support-bot"} 1.125' in found


def test_what_another_attempt_said_is_not() -> None:
    said = worlds.snapshot(attempt=1, progress=worlds.progress(19).model_copy(update={"batch": 99}))
    assert 'finetune_run_step{namespace="ml",run="support-bot"} 30.0' in text((worlds.run(status=TRAINS), said))


@pytest.mark.parametrize(("after", "listed"), [(0, True), (300, True), (301, False)])
def test_the_last_values_stay_for_a_grace(after: float, listed: bool) -> None:
    found = text((worlds.run(status=ENDED), None), now=at(660 + after))
    assert ("finetune_run_loss{" in found) == listed
    assert ("finetune_run_info{" in found) == listed
    assert 'finetune_operator_runs{phase="Completed"} 1.0' in found, "it is counted as long as it exists"
    assert 'finetune_operator_active_runs{namespace="ml"} 0.0' in found


def test_runs_that_wait_are_counted_and_not_listed() -> None:
    waits = FineTuneRunStatus(phase=Phase.QUEUED)
    runs = [worlds.run(status=waits, name=f"run-{n}", uid=f"u{n}") for n in range(500)]
    found = text(*((run, None) for run in runs))
    assert 'finetune_operator_waiting_runs{namespace="ml"} 500.0' in found
    oldest = re.search(r'oldest_waiting_run_timestamp_seconds{namespace="ml"} (\S+)', found)
    assert oldest
    assert float(oldest[1]) == NOW.timestamp()
    assert "run-1" not in found


def test_a_thousand_active_runs_have_at_most_28_series_each() -> None:
    few, many = (
        [
            line
            for line in text(
                *((worlds.run(status=TRAINS, name=f"r{n}", uid=f"u{n}"), None) for n in range(count))
            ).splitlines()
            if line[0] != "#"
        ]
        for count in (1, 1000)
    )
    assert (len(many) - len(few)) / 999 <= 28
    assert len(many) <= 28_100


@pytest.mark.parametrize(("phase", "active"), [(Phase.QUEUED, 0), (Phase.RUNNING, 1)])
def test_a_run_whose_job_waits_for_kueue_waits_and_has_no_devices(phase: Phase, active: int) -> None:
    asked = {"resources": {"deviceResource": "nvidia.com/gpu", "devicesPerNode": 4}, "queue": {"name": "team-a"}}
    found = text((worlds.run(asked, status=TRAINS.model_copy(update={"phase": phase})), None))
    assert f'finetune_operator_active_runs{{namespace="ml"}} {active}.0' in found
    assert f'finetune_operator_waiting_runs{{namespace="ml"}} {1 - active}.0' in found
    assert f'finetune_operator_active_devices{{resource="nvidia.com/gpu"}} {4 * active}.0' in found


def test_devices_are_summed_beside_their_limit() -> None:
    asked = {"resources": {"deviceResource": "nvidia.com/gpu", "devicesPerNode": 4, "nodes": 2}}
    found = text((worlds.run(asked, status=TRAINS), None))
    assert 'finetune_operator_active_devices{resource="nvidia.com/gpu"} 8.0' in found
    assert 'finetune_operator_active_devices_limit{resource="nvidia.com/gpu"} 16.0' in found
    assert "finetune_operator_active_runs_limit 10.0" in found


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ((), 400 / 600),
        ((event(EventType.SUSPENDED, 160, 1), event(EventType.RESUMED, 260, 2)), 400 / 500),
        ((event(EventType.SUSPENDED, 560, 1),), 400 / 500),
    ],
    ids=["never paused", "paused for 100 s", "paused since 100 s"],
)
def test_goodput_is_time_in_steps_over_time_not_paused(history: tuple[RunEvent, ...], expected: float) -> None:
    run = worlds.run(status=TRAINS.model_copy(update={"events": history}))
    assert runmetrics.goodput(Seen(run=run), NOW + timedelta(seconds=660)) == pytest.approx(expected)


def test_why_a_run_failed_is_one_of_few_words() -> None:
    for reason, told in (("Diverged", "Diverged"), ("Gremlins7", "Other")):
        failed = TRAINS.model_copy(update={"failure": Failure(reason=reason)})
        found = text((worlds.run(status=failed), None))
        assert f'finetune_run_failure{{namespace="ml",reason="{told}",run="support-bot"}} 1.0' in found


def test_a_run_whose_spec_cannot_be_read_is_listed_all_the_same() -> None:
    body = worlds.body(status=TRAINS)
    body["spec"]["method"] = "LoRA"
    assert 'finetune_run_step{namespace="ml",run="support-bot"} 30.0' in text((Run.parse(body), None))
