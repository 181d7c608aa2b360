"""What a real Prometheus makes of the operator and of a trainer.

PROMETHEUS names its binary; else PATH and the cache are searched.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests import tiny_model
from tests.cluster import podnetwork
from tests.cluster.conftest import VENV_FIRST
from tests.cluster.operatorprocess import OperatorProcess, free_port
from tests.cluster.podspec import Image
from tests.cluster.stage import Stage, until

pytestmark = pytest.mark.cluster

CACHED = Path("finetune-operator", "prometheus", "usr", "bin", "prometheus")


@pytest.fixture(scope="module")
def prometheus() -> Path:
    """The binary; promtool lies beside it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / CACHED
    found = os.environ.get("PROMETHEUS") or shutil.which("prometheus") or (str(cache) if cache.exists() else None)
    if found:
        return Path(found)
    reason = "no Prometheus: install it, or name its binary in PROMETHEUS"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@contextlib.contextmanager
def scraping(binary: Path, targets: Mapping[str, str], *, folder: Path) -> Iterator[str]:
    """A Prometheus that scrapes these jobs each second; its address."""
    jobs = [{"job_name": job, "static_configs": [{"targets": [target]}]} for job, target in targets.items()]
    config = folder / "prometheus.json"
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
    address = f"127.0.0.1:{free_port()}"
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


def test_prometheus_gets_every_family_of_operator_and_trainer(
    stage: Stage, operator: OperatorProcess, prometheus: Path, tmp_path: Path
) -> None:
    stage.submit("measured", script={"steps": 1000, "step_seconds": 0.1})
    stage.until("measured", lambda status: status.get("progress", {}).get("batch", 0) > 0)
    (pod,) = stage.list("pods")
    trainer = f"{podnetwork.local(pod['status']['podIP'])}:9400"
    targets = {"operator": f"127.0.0.1:{operator.metrics_port}", "trainer": trainer}
    with scraping(prometheus, targets, folder=tmp_path) as server:
        until(lambda: query(server, "up == 1"), lambda series: len(series) == 2, what="targets")
        families = {metric["__name__"] for metric, _ in query(server, '{job="operator"}')}
        ((_, running),) = query(server, 'finetune_operator_runs{phase="Running"}')
        ((_, age),) = query(server, "time() - finetune_operator_last_resync_timestamp_seconds")
        ((build, _),) = query(server, "finetune_operator_build_info")
        requests = {metric["verb"] for metric, _ in query(server, "finetune_operator_api_requests_total > 0")}
        ((_, step),) = query(server, 'finetune_run_step{job="trainer"}')
    assert families >= {
        "finetune_operator_runs",
        "finetune_operator_reconcile_duration_seconds_bucket",
        "finetune_operator_reconcile_errors_total",
        "finetune_operator_queue_depth",
        "finetune_operator_api_requests_total",
        "finetune_operator_poll_failures_total",
        "finetune_operator_last_resync_timestamp_seconds",
        "finetune_operator_build_info",
    }
    assert running == 1
    assert 0 <= age < 60
    assert build["version"]
    assert requests == {"GET", "POST", "PATCH"}
    assert step > 0


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
    folder = tmp_path / "hub" / "models--example--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("one")
    (folder / "snapshots").mkdir()
    (folder / "snapshots" / "one").symlink_to(tiny_model.build())
    offline = {"HF_HUB_CACHE": str(folder.parent), "HF_HUB_OFFLINE": "1"}
    images["real-trainer"] = Image((sys.executable, "-m", "finetune_trainer"), {**VENV_FIRST, **offline})


@pytest.mark.slow
def test_the_real_trainer_is_scraped_while_it_trains_under_the_operator(
    stage: Stage, operator: OperatorProcess, prometheus: Path, hub: None, tmp_path: Path
) -> None:
    data = tiny_model.write_questions(tmp_path / "train.jsonl", 60).read_text()
    stage.keep("questions", {"train.jsonl": data})
    stage.submit(
        "real",
        model={"uri": "hf://example/tiny"},
        dataset={"train": {"uri": "configmap://questions/train.jsonl"}},
        training={"maxDuration": "200ba", "maxSequenceLength": 128, "batchSize": {"perDevice": 2}},
        checkpoint={"interval": "100ba"},
        resources={"cpu": "1", "memory": "2Gi"},
        trainer={"image": "real-trainer"},
    )
    stage.until("real", lambda status: status.get("progress", {}).get("batch", 0) > 0, seconds=120)
    address = f"{podnetwork.local(stage.list('pods', of='real')[0]['status']['podIP'])}:9400"
    with scraping(prometheus, {"trainer": address}, folder=tmp_path) as server:
        until(lambda: query(server, "finetune_trainer_step > 0"), bool, what="the trainer's metrics")
        families = {metric["__name__"] for metric, _ in query(server, '{job="trainer"}')}
        said = check(prometheus, get(f"http://{address}/metrics"))
    status = stage.finished("real", seconds=120)
    assert families >= {
        "finetune_trainer_loss",
        "finetune_trainer_tokens_total",
        "finetune_trainer_tokens_per_second",
        "finetune_trainer_step_duration_seconds_bucket",
        "finetune_trainer_device_memory_used_bytes",
    }
    assert said == (0, "")
    assert status["phase"] == "Completed", status.get("failure")
    assert status["progress"]["batch"] == 200
    assert [checkpoint["name"][-6:] for checkpoint in status["checkpoints"]] == ["-ba100", "-ba200"]
