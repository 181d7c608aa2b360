"""A run of the real trainer on real Kubernetes that a real MLflow server records, though it is away at first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import mlflow_server, tiny_model
from tests.cluster import realtrainer
from tests.cluster.operatorprocess import OperatorProcess
from tests.cluster.podspec import Image
from tests.cluster.stage import Object, Stage, condition, until

pytestmark = pytest.mark.cluster

PATIENCE = 300.0
"""Seconds: a server and a trainer take long to start on a busy machine."""


@pytest.fixture
def door(tmp_path: Path) -> Iterator[mlflow_server.Door]:
    """The way to a server of its own; shut."""
    server = mlflow_server.Server(tmp_path)
    with mlflow_server.door(server) as found:
        yield found
    server.stop()


@pytest.fixture
def trainer(tmp_path: Path, images: dict[str, Image]) -> str:
    """The real trainer as an image that has a hub's cache with a tiny model."""
    images["tracked-trainer"] = realtrainer.image(tmp_path)
    return "tracked-trainer"


@pytest.mark.slow
def test_a_run_tells_of_a_server_that_is_away_and_is_recorded_once_it_is_there(
    stage: Stage, operator: OperatorProcess, door: mlflow_server.Door, trainer: str, tmp_path: Path
) -> None:
    stage.keep("questions", {"train.jsonl": tiny_model.write_questions(tmp_path / "train.jsonl", 30).read_text()})
    stage.submit(
        "tracked",
        model={"uri": realtrainer.MODEL},
        dataset={"train": {"uri": "configmap://questions/train.jsonl"}},
        training={"maxDuration": "400ba", "maxSequenceLength": 64, "batchSize": {"perDevice": 1}},
        checkpoint={"interval": "100ba"},
        resources={"cpu": "1", "memory": "2Gi"},
        trainer={"image": trainer},
        tracking={"mlflow": {"trackingUri": door.uri, "registerAs": "support-bot"}},
    )
    until(lambda: _degraded(stage), lambda reason: reason == "TrackingFailed", what="trouble", seconds=PATIENCE)
    found = stage.until("tracked", lambda status: bool(status.get("tracking", {}).get("problem")))
    assert "can't be reached" in found["tracking"]["problem"]
    door.open()
    status = stage.finished("tracked", seconds=PATIENCE)
    assert condition(status, "Succeeded")["status"] == "True", status
    assert status["tracking"].get("problem", "") == ""
    [run] = door.server.runs(stage.run("tracked")["metadata"]["uid"])
    assert status["output"]["mlflowRunId"] == run["info"]["run_id"]
    assert status["tracking"]["url"].endswith(run["info"]["run_id"])
    assert status["output"]["registeredModel"] == "support-bot/1"
    assert run["info"]["status"] == "FINISHED"
    assert {each["key"]: each["value"] for each in run["data"]["tags"]}["finetune.namespace"] == stage.namespace
    assert [step for step, _ in door.server.history(run["info"]["run_id"], "loss")] == [*range(1, 401)]


def _degraded(stage: Stage) -> str:
    found: Object = condition(stage.status("tracked"), "Degraded")
    return str(found.get("reason", ""))
