"""The operator's Prometheus families."""

import re
import urllib.request

import pytest
from prometheus_client import generate_latest

from finetune_operator.errors import ConflictError, TransientError
from finetune_operator.metrics import Metrics
from tests.worlds import KEY


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(version="1.2.3")


def text(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_runs_are_counted_by_phase_when_they_are_asked_for(metrics: Metrics) -> None:
    phases = ["Running", "Running"]
    metrics.watch(phases=lambda: phases, depth=lambda: 7)
    assert 'finetune_operator_runs{phase="Running"} 2.0' in text(metrics)
    phases[0] = "Failed"
    found = text(metrics)
    assert 'finetune_operator_runs{phase="Running"} 1.0' in found
    assert 'finetune_operator_runs{phase="Queued"} 0.0' in found, "a phase without runs is 0, not missing"
    assert "finetune_operator_queue_depth 7.0" in found


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


def test_they_are_served(metrics: Metrics) -> None:
    port = metrics.serve(address="127.0.0.1", port=0)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        assert b"finetune_operator_build_info" in response.read()


def test_every_family_is_documented(metrics: Metrics) -> None:
    from pathlib import Path

    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    metrics.watch(phases=list, depth=int)
    families = re.findall(r"^# TYPE (finetune_operator_\S+)", text(metrics), re.MULTILINE)
    assert len(families) == 8
    assert [name for name in families if f"`{name}" not in page] == []
