"""Draws one run as the chart's dashboard shows it: docs/images/observe-run.png.

    python -m benchmarks.picture [--steps 600] [--to FILE]

A tiny model is trained on CPU by the real trainer on a real Kubernetes, scraped by a real Prometheus; its pod is killed
on the way. Each panel is drawn from the dashboard's own query. What kubectl says of the run is printed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import drawing, lab
from charts import dashboards
from tests import tiny_model
from tests.cluster import podnetwork, realtrainer, stage
from tests.cluster.controlplane import ControlPlane
from tests.cluster.operatorprocess import OperatorProcess
from tests.cluster.stage import Stage
from tests.cluster.test_operator_metrics import get, query, scraping
from tests.prometheus import programs

RUN, NAMESPACE = "support-bot", "default"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "observe-run.png"
MARKS = {"Checkpoints": "#56a64b", "Restarts": "#f2495c"}


def main() -> int:
    """Run it, draw it. Returns 1 if the run doesn't complete."""
    parser = argparse.ArgumentParser(description="Train, scrape and draw one run.")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--to", type=Path, default=PICTURE, metavar="FILE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image = realtrainer.image(Path(folder))
        with lab.trainings(images={realtrainer.IMAGE: image}, poll_seconds=1) as (plane, operator):
            return _play(plane, operator, Path(folder), steps=given.steps, to=given.to)


def _play(plane: ControlPlane, operator: OperatorProcess, folder: Path, *, steps: int, to: Path) -> int:
    ground = Stage(plane.api(), NAMESPACE)
    targets = folder / "trainers.json"
    targets.write_text("[]")
    jobs = {"operator": f"127.0.0.1:{operator.metrics_port}"}
    with scraping(programs.prometheus(), jobs, folder=folder, files={"trainer": targets}) as server:
        stage.until(lambda: query(server, "up"), bool, what="Prometheus")
        started = time.time()
        _submit(ground, folder, steps=steps)
        ended = threading.Event()
        follower = threading.Thread(target=_follow, args=(Stage(plane.api(), NAMESPACE), targets, ended))
        follower.start()
        try:
            _lose_its_pod(ground, after=steps // 2)
            _kubectl(plane, "get", "ftr", RUN, "-o", "wide")
            status = ground.finished(RUN, seconds=1200)
            time.sleep(3)  # one more scrape
        finally:
            ended.set()
            follower.join()
        _kubectl(plane, "get", "ftr", RUN, "-o", "wide")
        _kubectl(plane, "describe", "ftr", RUN)
        _show_volume(plane, ground)
        to.parent.mkdir(parents=True, exist_ok=True)
        drawing.write(to, list(_panels(server, started)), marks=_marks(server, started))
    return 0 if status["phase"] == "Completed" else 1


def _submit(ground: Stage, folder: Path, *, steps: int) -> None:
    for name, count, seed in (("train", 400, 0), ("eval", 40, 1)):
        data = tiny_model.write_questions(folder / f"{name}.jsonl", count, seed=seed, longest=200)
        ground.keep(name, {f"{name}.jsonl": data.read_text()})
    interval = f"{max(steps // 10, 1)}ba"
    ground.submit(
        RUN,
        model={"uri": realtrainer.MODEL},
        dataset={
            "train": {"uri": "configmap://train/train.jsonl"},
            "eval": {"uri": "configmap://eval/eval.jsonl"},
        },
        method={"type": "Full", "lora": None},
        training={
            "maxDuration": f"{steps}ba",
            "learningRate": 0.002,
            "maxSequenceLength": 128,
            "batchSize": {"perDevice": 8},
            "evaluationInterval": interval,
        },
        checkpoint={"interval": interval},
        tracking={"tensorBoard": True},
        resources={"cpu": "1", "memory": "2Gi"},
        trainer={"image": realtrainer.IMAGE},
    )


def _follow(ground: Stage, targets: Path, ended: threading.Event) -> None:
    """Tell Prometheus of the run's pods, as Kubernetes' service discovery would."""
    while not ended.wait(0.5):
        pods = [pod["status"] for pod in ground.list("pods", of=RUN)]
        running = [pod["podIP"] for pod in pods if pod.get("phase") == "Running" and pod.get("podIP")]
        found = json.dumps([{"targets": [f"{podnetwork.local(address)}:9400"]} for address in running])
        if found != targets.read_text():
            fresh = targets.with_suffix(".new")
            fresh.write_text(found)
            fresh.replace(targets)


def _lose_its_pod(ground: Stage, *, after: int) -> None:
    """Kill the pod between two saves."""
    ground.until(RUN, lambda status: (status.get("progress") or {}).get("batch", 0) > after, seconds=900)
    (pod,) = ground.list("pods", of=RUN)
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}?gracePeriodSeconds=0"
    ground.api.request("DELETE", path)
    ground.until(RUN, lambda status: status.get("attempt") == 2 and status["phase"] == "Running", seconds=300)


def _kubectl(plane: ControlPlane, *arguments: str) -> None:
    sys.stdout.write(f"$ kubectl {' '.join(arguments)}\n")
    command: list[str | Path] = [plane.binaries.kubectl, "--kubeconfig", plane.kubeconfig, *arguments]
    sys.stdout.write(subprocess.run(command, check=True, capture_output=True, text=True).stdout + "\n")


def _show_volume(plane: ControlPlane, ground: Stage) -> None:
    """What is left in the run's volume, and the end of the first attempt's log."""
    folder = lab.volume(plane, ground, RUN)
    for name in ("logs", "training_logs", "tensorboard"):
        for path in sorted(file for file in folder.glob(f"**/{name}/**/*") if file.is_file()):
            sys.stdout.write(f"{path.relative_to(folder)} {path.stat().st_size}\n")
    for log in sorted(folder.glob("**/attempt-1.log")):
        sys.stdout.write("".join(log.read_text().splitlines(keepends=True)[-3:]))


def _panels(server: str, started: float) -> Iterator[drawing.Panel]:
    """Those of the dashboard for which this run has figures."""
    for panel in json.loads(dashboards.text("run"))["panels"]:
        if panel["type"] != "timeseries":
            continue
        lines: dict[str, list[tuple[float, float]]] = {}
        for target in panel["targets"]:
            for labels, points in _range(server, target["expr"], started):
                name = target["legendFormat"]
                for label, value in labels.items():
                    name = name.replace(f"{{{{{label}}}}}", value)
                lines[name] = sorted(lines.get(name, []) + points)  # of two attempts' pods, one after the other
        if lines:
            yield drawing.Panel(title=panel["title"], unit=panel["fieldConfig"]["defaults"]["unit"], lines=lines)


def _marks(server: str, started: float) -> list[drawing.Mark]:
    """Saves and restarts, as the dashboard marks them: where a series changes."""
    found = []
    for marks in json.loads(dashboards.text("run"))["annotations"]["list"]:
        watched = re.fullmatch(r"changes\((.+)\[1m\]\) > 0", marks.get("expr", ""))
        if watched is None:
            continue
        for _, points in _range(server, watched[1], started):
            for (_, before), (moment, value) in itertools.pairwise(points):
                if value != before:
                    found.append(drawing.Mark(time=moment, name=marks["name"], color=MARKS[marks["name"]]))
    return found


def _range(server: str, text: str, started: float) -> Sequence[tuple[Mapping[str, str], list[tuple[float, float]]]]:
    """The series of a query, second by second, by the time since the start."""
    asked = text.replace("$namespace", NAMESPACE).replace("$run", RUN).replace("$__rate_interval", "10s")
    parameters = {"query": asked, "start": started, "end": time.time(), "step": "1"}
    answer: Any = json.loads(get(f"{server}/api/v1/query_range?{urllib.parse.urlencode(parameters)}"))
    return [
        (series["metric"], [(float(at) - started, float(value)) for at, value in series["values"]])
        for series in answer["data"]["result"]
    ]


if __name__ == "__main__":
    sys.exit(main())
