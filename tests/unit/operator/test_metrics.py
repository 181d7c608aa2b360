"""The operator's Prometheus families."""

import re

import pytest
from prometheus_client import generate_latest

from finetune_api.status import (
    Checkpoint,
    Condition,
    ConditionStatus,
    ConditionType,
    Failure,
    FineTuneRunStatus,
    Phase,
    Progress,
)
from finetune_operator.errors import ConflictError, TransientError
from finetune_operator.metrics import Metrics
from finetune_operator.runmetrics import Runs
from finetune_operator.settings import Limits
from tests import worlds
from tests.worlds import KEY, NOW, Clock


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3")


def text(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_what_is_computed_when_it_is_asked_for(metrics: Metrics) -> None:
    runs = [(worlds.run(), None)]
    shown = Runs(lambda: runs, limits=Limits(), clock=Clock(), grace_seconds=60)
    metrics.watch(runs=shown, depth=lambda: 7)
    found = text(metrics)
    assert 'finetune_operator_runs{phase="Pending"} 1.0' in found
    assert "finetune_operator_queue_depth 7.0" in found
    runs.clear()
    assert 'finetune_operator_runs{phase="Pending"} 0.0' in text(metrics)


def test_only_the_process_that_acts_is_the_leader(metrics: Metrics) -> None:
    assert "finetune_operator_leader 0.0" in text(metrics)
    metrics.leads()
    assert "finetune_operator_leader 1.0" in text(metrics)


def told(metrics: Metrics, before: FineTuneRunStatus, **after: object) -> str:
    metrics.changed(before, worlds.run(status=before.model_copy(update=after)))
    return text(metrics)


def test_a_restart_is_counted_by_its_reason_with_the_steps_that_it_lost(metrics: Metrics) -> None:
    before = FineTuneRunStatus(
        attempt=1,
        failure=Failure(reason="PodLost", attempt=1),
        progress=Progress(batch=57, attempt=1),
        checkpoints=(Checkpoint(name="ep1-ba50", step=50, time=NOW, size_bytes=1, path="a", sha256="a"),),
    )
    found = told(metrics, before, attempt=2)
    assert 'finetune_operator_restarts_total{reason="PodLost"} 1.0' in found
    assert "finetune_operator_attempts_started_total 1.0" in found
    assert "finetune_operator_lost_steps_total 7.0" in found


def test_a_first_attempt_is_no_restart(metrics: Metrics) -> None:
    found = told(metrics, FineTuneRunStatus(), attempt=1)
    assert "finetune_operator_attempts_started_total 1.0" in found
    assert "finetune_operator_restarts_total{" not in found


def test_a_word_that_an_image_invented_makes_no_series(metrics: Metrics) -> None:
    before = FineTuneRunStatus(attempt=1, failure=Failure(reason="Gremlins7", attempt=1))
    found = told(metrics, before, attempt=2)
    assert 'finetune_operator_restarts_total{reason="Other"} 1.0' in found
    assert "Gremlins7" not in found


def test_a_run_waits_from_its_creation_to_its_first_pod(metrics: Metrics) -> None:
    before = FineTuneRunStatus(attempt=1)
    found = told(metrics, before, start_time=worlds.at(90))
    assert "finetune_operator_queue_wait_seconds_sum 90.0" in found
    again = told(metrics, before.model_copy(update={"start_time": worlds.at(90)}), start_time=worlds.at(90))
    assert "finetune_operator_queue_wait_seconds_count 1.0" in again


def test_an_end_is_counted_once(metrics: Metrics) -> None:
    finished = Condition(
        type=ConditionType.FINISHED, status=ConditionStatus.TRUE, reason="Completed", last_transition_time=NOW
    )
    before = FineTuneRunStatus(attempt=1, phase=Phase.RUNNING)
    ended = {"phase": Phase.COMPLETED, "conditions": (finished,)}
    told(metrics, before, **ended)
    found = told(metrics, before.model_copy(update=ended), **ended)
    assert 'finetune_operator_runs_ended_total{phase="Completed",reason=""} 1.0' in found


@pytest.mark.parametrize(
    ("error", "result"),
    [(None, "ok"), (ConflictError("x"), "conflict"), (TransientError("x"), "retry"), (ValueError("x"), "error")],
)
async def test_each_look_is_measured_by_its_result(metrics: Metrics, error: Exception | None, result: str) -> None:
    async def work(_: object) -> float | None:
        if error:
            raise error
        return 3.0

    timed = metrics.timed(work)
    if error:
        with pytest.raises(type(error)):
            await timed(KEY)
    else:
        assert await timed(KEY) == 3.0
    found = text(metrics)
    assert f'finetune_operator_reconcile_duration_seconds_count{{result="{result}"}} 1.0' in found
    assert f"finetune_operator_reconcile_errors_total {float(result == 'error')}" in found


def test_what_is_counted(metrics: Metrics) -> None:
    metrics.request("GET", "200")
    metrics.request("GET", "200")
    metrics.poll_failed()
    metrics.resynced()
    found = text(metrics)
    assert 'finetune_operator_api_requests_total{code="200",verb="GET"} 2.0' in found
    assert "finetune_operator_poll_failures_total 1.0" in found
    assert re.search(r"^finetune_operator_last_resync_timestamp_seconds 1\.\d+e\+09$", found, re.MULTILINE)
    assert 'finetune_operator_build_info{version="1.2.3"} 1.0' in found
    assert "_created" not in found


@pytest.mark.parametrize(
    ("accept", "kind"),
    [("", "text/plain"), ("application/openmetrics-text;version=1.0.0,*/*;q=0.1", "application/openmetrics-text")],
)
def test_they_are_told_in_the_format_that_is_asked_for(metrics: Metrics, accept: str, kind: str) -> None:
    found, content_type = metrics.text(accept)
    assert b"finetune_operator_build_info" in found
    assert content_type.partition(";")[0] == kind


def test_every_family_is_documented(metrics: Metrics) -> None:
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    metrics.watch(runs=Runs(list, limits=Limits(), clock=Clock(), grace_seconds=60), depth=int)
    families = re.findall(r"^# TYPE (finetune_\S+)", text(metrics), re.MULTILINE)
    assert len(families) > 40
    assert [name for name in families if f"`{name}" not in page] == []
