"""How much of a run's time goes into steps that count while its pod is killed about once a minute.

    python -m benchmarks.goodput [--steps 6500] [--between 60] [--interval 100] [--seed 1]

The real trainer trains a tiny model on CPU on a real Kubernetes; failures (SIGKILL of the pod) come after exponentially
distributed times with a mean of `--between` seconds, from a seed. Where the time went is read from the run's volume:
each attempt's log, and `metrics.jsonl`, which holds the steps that count. What that leaves unexplained is printed too.
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import lab
from tests import tiny_model
from tests.cluster import realtrainer
from tests.cluster.operatorprocess import OperatorProcess
from tests.cluster.stage import Stage, condition

RUN, NAMESPACE = "battered", "default"
GOAL = 0.9
Line = Mapping[str, Any]


def main() -> int:
    """Run it. Returns 1 if the run doesn't complete."""
    parser = argparse.ArgumentParser(description="Measure the goodput of a run under failures.")
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--between", type=float, default=60.0, help="mean seconds between two failures")
    parser.add_argument("--interval", type=int, default=100, help="steps between two checkpoints")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = {realtrainer.IMAGE: realtrainer.image(Path(folder))}
        with lab.trainings(images=images) as (plane, operator):
            ground = Stage(plane.api(), NAMESPACE)
            _submit(ground, Path(folder), steps=given.steps, interval=given.interval)
            kills = _batter(ground, random.Random(given.seed), between=given.between)
            status = ground.finished(RUN, seconds=60)
            told = _goodput(operator)
            report = split(*_lines(lab.volume(plane, ground, RUN)), status)
    report |= {"operatorsGoodput": told, "goal": GOAL, "kills": kills, "attempts": status["attempt"]}
    sys.stdout.write(json.dumps(report) + "\n")
    return 0 if status["phase"] == "Completed" else 1


def _submit(ground: Stage, folder: Path, *, steps: int, interval: int) -> None:
    data = tiny_model.write_questions(folder / "train.jsonl", 400, seed=0, longest=200)
    ground.keep("train", {"train.jsonl": data.read_text()})
    ground.submit(
        RUN,
        model={"uri": realtrainer.MODEL},
        dataset={"train": {"uri": "configmap://train/train.jsonl"}},
        method={"type": "Full", "lora": None},
        training={"maxDuration": f"{steps}ba", "maxSequenceLength": 128, "batchSize": {"perDevice": 8}},
        checkpoint={"interval": f"{interval}ba"},
        resources={"cpu": "1", "memory": "2Gi"},
        trainer={"image": realtrainer.IMAGE},
    )


def _batter(ground: Stage, chance: random.Random, *, between: float) -> int:
    """Kill its pod again and again, until the run has ended. Returns how often."""
    kills = 0
    following = time.monotonic() + chance.expovariate(1 / between)
    while condition(ground.status(RUN), "Finished").get("status") != "True":
        time.sleep(0.5)
        if time.monotonic() < following:
            continue
        following = time.monotonic() + chance.expovariate(1 / between)
        for pod in ground.list("pods", of=RUN):
            if pod["status"].get("phase") == "Running":
                path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}"
                kills += 1
                ground.api.request("DELETE", path, gracePeriodSeconds="0")
                sys.stderr.write(f"kill {kills} at step {(ground.status(RUN).get('progress') or {}).get('batch')}\n")
    return kills


def _lines(volume: Path) -> tuple[Sequence[Sequence[Line]], Sequence[Line]]:
    """Each attempt's log, and the steps that count."""
    logs = sorted(volume.glob("**/logs/attempt-*.log"), key=lambda path: int(path.stem.rpartition("-")[2]))
    (steps,) = volume.glob("**/output/training_logs/metrics.jsonl")
    return [[json.loads(line) for line in log.read_text().splitlines()] for log in logs], [
        json.loads(line) for line in steps.read_text().splitlines()
    ]


def split(logs: Sequence[Sequence[Line]], counted: Sequence[Line], status: Mapping[str, Any]) -> dict[str, float]:
    """Where the time from the first pod's start to the run's end went, as shares of it."""
    wall = at(status["completionTime"]) - at(status["startTime"])
    seconds = {line["step"]: line["seconds"] for line in counted}
    done = [[line for line in log if line.get("event") == "TRAIN_UPDATED"] for log in logs]
    trained = [steps for steps in done if steps]
    begins = [at(steps[0]["time"]) - seconds[steps[0]["batch"]] for steps in trained]
    ends = [at(steps[-1]["time"]) for steps in trained]
    lost = sum(
        at(before[-1]["time"]) - at(next(line for line in before if line["batch"] >= after[0]["batch"])["time"])
        for before, after in itertools.pairwise(trained)
        if before[-1]["batch"] >= after[0]["batch"]
    )
    saved = [line for log in logs for line in log if line.get("event") == "CHECKPOINT_SAVED"]
    saves = sum(line["stalledSeconds"] for line in saved if at(line["time"]) < ends[-1])
    parts = {
        "stepsThatCount": sum(seconds.values()),
        "stepsLost": lost,
        "firstStart": begins[0] - at(status["startTime"]),
        "restarts": sum(begin - end for end, begin in zip(ends, begins[1:], strict=False)),
        "savesThatStop": saves,
        "end": at(status["completionTime"]) - ends[-1],
    }
    parts["unexplained"] = wall - sum(parts.values())
    return {"wallSeconds": round(wall, 1)} | {name: round(part / wall, 4) for name, part in parts.items()}


def at(text: str) -> float:
    """Seconds since the epoch."""
    return lab.moment(text).timestamp()


def _goodput(operator: OperatorProcess) -> float:
    name = "finetune_run_goodput_ratio"
    return next(float(line.rpartition(" ")[2]) for line in operator.metrics().splitlines() if line.startswith(name))


if __name__ == "__main__":
    sys.exit(main())
