"""What a real Prometheus makes of the operator and of a trainer."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from charts import dashboards
from tests import ports, tiny_model
from tests.cluster import podnetwork, realtrainer
from tests.cluster.operatorprocess import OperatorProcess
from tests.cluster.podspec import Image
from tests.cluster.stage import Stage, until
from tests.prometheus import programs

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def prometheus() -> Path:
    """The binary; promtool lies beside it."""
    return programs.prometheus()


@contextlib.contextmanager
def scraping(
    binary: Path,
    targets: Mapping[str, str],
    *,
    folder: Path,
    files: Mapping[str, Path] | None = None,
    login: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """A Prometheus that scrapes these jobs each second, and those whose targets are in `files`; its address."""
    own = login or {}
    jobs: list[Any] = [{"job_name": job, "static_configs": [{"targets": [to]}], **own} for job, to in targets.items()]
    jobs += [{"job_name": job, "file_sd_configs": [{"files": [str(file)]}]} for job, file in (files or {}).items()]
    config = folder / "prometheus.json"
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
    address = f"127.0.0.1:{ports.free()}"
    command = [
        str(binary),
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=20)
        sys.stdout.write((folder / "prometheus.log").read_text())


def get(url: str) -> str:
    """What is answered there."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as response:
        text: str = response.read().decode()
        return text


def query(server: str, text: str) -> list[tuple[Mapping[str, str], float]]:
    """The series of an instant query, empty as long as the server doesn't answer."""
    try:
        answer: Any = json.loads(get(f"{server}/api/v1/query?{urllib.parse.urlencode({'query': text})}"))
    except OSError:
        return []
    return [(series["metric"], float(series["value"][1])) for series in answer["data"]["result"]]


ROW = re.compile(r"^\| `(finetune_(?:operator|run)_\w+)` \| (\w+) \| ([\w, ]*) \|", re.MULTILINE)
SOMETIMES = {
    "finetune_operator_restarts_total": "nothing was restarted",
    "finetune_operator_runs_ended_total": "nothing has ended",
    "finetune_operator_active_devices": "nothing asks for devices",
    "finetune_operator_oldest_waiting_run_timestamp_seconds": "nothing waits",
    "finetune_operator_active_devices_limit": "no limit is set",
    "finetune_run_failure": "nothing failed",
    "finetune_run_eval_loss": "nothing is evaluated",
    "finetune_run_device_utilization_ratio": "there is no device",
    "finetune_run_data_wait_ratio": "the stub doesn't tell it",
    "finetune_run_mfu_ratio": "the stub doesn't tell it",
    "finetune_run_tracking_failing": "it isn't tracked",
    "finetune_run_completion_timestamp_seconds": "it has not ended",
}
"""Families that this run has no series of, and why."""


def documented() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of each family of the operator, from the page that people read."""
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    return {name: (kind, {label for label in labels.split(", ") if label}) for name, kind, labels in ROW.findall(page)}


def test_prometheus_gets_every_documented_family_with_its_labels(
    stage: Stage, operator: OperatorProcess, prometheus: Path, tmp_path: Path
) -> None:
    stage.submit("measured", script={"steps": 1000, "step_seconds": 0.1, "checkpoint_every": 5})
    stage.until("measured", lambda status: bool(status.get("checkpoints")))
    families = documented()
    with scraping(prometheus, {"operator": f"127.0.0.1:{operator.metrics_port}"}, folder=tmp_path) as server:
        until(lambda: query(server, "finetune_run_goodput_ratio > 0"), bool, what="a run that is scraped")
        found: dict[str, set[str]] = {}
        for metric, _ in query(server, '{job="operator",__name__=~"finetune_.+"}'):
            name = metric["__name__"].removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
            labels = {label.removeprefix("exported_") for label in metric} - {"__name__", "instance", "job", "le"}
            found.setdefault(name, set()).update(labels)
        values = dict(_of(server, "measured"))
        stage.delete("measured")
        until(lambda: query(server, 'finetune_run_info{run="measured"}'), lambda series: not series, what="their end")
        assert query(server, "{__name__=~'finetune_run_.+',run='measured'}") == []
    assert set(found) - set(families) == set(), "exported and not documented"
    missing = set(families) - set(found)
    assert missing == set(SOMETIMES), "documented and not exported, or exported and said not to be"
    families["finetune_run_info"][1].discard("queue")  # it has none, and Prometheus keeps no label without a value
    assert {name: labels for name, (_, labels) in families.items() if name in found} == found
    assert values["finetune_run_attempt"] == 1
    assert values["finetune_run_steps_planned"] == 1000
    assert 0 < values["finetune_run_step"] <= 1000
    assert 0 < values["finetune_run_goodput_ratio"] <= 1
    assert 0 <= values["finetune_run_queue_wait_seconds"] < 120
    assert values["finetune_run_start_timestamp_seconds"] <= values["finetune_run_last_step_timestamp_seconds"]


def _of(server: str, run: str) -> Iterator[tuple[str, float]]:
    """Name and value of each series of a run."""
    return ((metric["__name__"], value) for metric, value in query(server, f"{{run='{run}'}}"))


def test_an_operator_that_stands_alone_leads_and_has_listed_everything(
    operator: OperatorProcess, prometheus: Path, tmp_path: Path
) -> None:
    with scraping(prometheus, {"operator": f"127.0.0.1:{operator.metrics_port}"}, folder=tmp_path) as server:
        until(lambda: query(server, "finetune_operator_leader == 1"), bool, what="a leader")
        ((_, age),) = query(server, "time() - finetune_operator_last_resync_timestamp_seconds")
        ((build, _),) = query(server, "finetune_operator_build_info")
    assert 0 <= age < 60
    assert build["version"]


def check(prometheus: Path, text: str) -> tuple[int, str]:
    """What promtool says of a scrape."""
    command = [str(prometheus.with_name("promtool")), "check", "metrics"]
    found = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return found.returncode, found.stdout + found.stderr


def test_promtool_has_nothing_to_say_of_the_operator(operator: OperatorProcess, prometheus: Path) -> None:
    until(operator.healthy, bool, what="health")
    assert check(prometheus, operator.metrics()) == (0, "")


@pytest.fixture
def hub(tmp_path: Path, images: dict[str, Image]) -> None:
    """A hub cache with a tiny model in it, and the real trainer as an image that has that cache."""
    images[realtrainer.IMAGE] = realtrainer.image(tmp_path)


NEVER_RESTARTED = {"finetune_operator_restarts_total"}
NOT_ON_A_CPU = {
    "finetune_trainer_device_utilization_ratio",
    "finetune_trainer_device_power_watts",
    "finetune_trainer_device_temperature_celsius",
    "finetune_trainer_mfu_ratio",
    "finetune_run_mfu_ratio",
    "finetune_run_device_utilization_ratio",
}


def panels() -> Iterator[str]:
    """Every query of every dashboard."""
    for name in dashboards.DASHBOARDS:
        board = json.loads(dashboards.text(name))
        for panel in board["panels"]:
            yield from (target["expr"] for target in panel.get("targets", ()))
        yield from (marks["expr"].partition(" > ")[0] for marks in board["annotations"].get("list", ()))


@pytest.mark.slow
def test_all_that_is_documented_and_drawn_has_data_of_a_run_of_the_real_trainer(
    stage: Stage, operator: OperatorProcess, prometheus: Path, hub: None, tmp_path: Path
) -> None:
    data = tiny_model.write_questions(tmp_path / "train.jsonl", 60).read_text()
    stage.keep("questions", {"train.jsonl": data})
    stage.submit(
        "real",
        model={"uri": "hf://example/tiny"},
        dataset={
            "train": {"uri": "configmap://questions/train.jsonl"},
            "eval": {"uri": "configmap://questions/train.jsonl"},
        },
        training={
            "maxDuration": "2000ba",
            "maxSequenceLength": 128,
            "batchSize": {"perDevice": 2},
            "evaluationInterval": "20ba",
        },
        checkpoint={"interval": "20ba"},
        resources={"cpu": "1", "memory": "2Gi"},
        trainer={"image": "real-trainer"},
    )
    stage.until("real", lambda status: bool(status.get("checkpoints")), seconds=180)
    address = f"{podnetwork.local(stage.list('pods', of='real')[0]['status']['podIP'])}:9400"
    targets = {"trainer": address, "operator": f"127.0.0.1:{operator.metrics_port}"}
    queries = {text: _filled_in(text, namespace=stage.namespace) for text in panels()}
    silent = {text for text in queries if any(name in text for name in NOT_ON_A_CPU | NEVER_RESTARTED)}
    with scraping(prometheus, targets, folder=tmp_path) as server:

        def unanswered() -> set[str]:
            return {text for text, asked in queries.items() if not query(server, asked)}

        until(unanswered, lambda found: found <= silent, what="an answer to each query of the dashboards", seconds=90)
        found = {metric["__name__"] for metric, _ in query(server, '{job="trainer",__name__=~"finetune_.+"}')}
        said = check(prometheus, get(f"http://{address}/metrics"))
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in found}
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert families == set(re.findall(r"^\| `(finetune_trainer_\w+)`", page, re.MULTILINE)) - NOT_ON_A_CPU
    assert said == (0, "")


def _filled_in(text: str, *, namespace: str) -> str:
    """A dashboard's query for this run, as Grafana would ask it."""
    return text.replace("$namespace", namespace).replace("$run", "real").replace("$__rate_interval", "10s")
