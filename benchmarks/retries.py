"""How soon a new attempt's pod follows the old one's end: 100 runs whose first attempt fails, on a real control plane.

    python -m benchmarks.retries [--runs 100] [--at-once 10]

Every version of every pod is watched. From the version in which the old pod has ended to the one in which the next
attempt's pod is there; no two pods of a run may live at once. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence

from benchmarks import lab
from finetune_operator.names import ATTEMPT_LABEL, RUN_LABEL
from tests.cluster.api import Api
from tests.cluster.controlplane import ControlPlane
from tests.cluster.stage import Stage, condition
from tests.faults.recorder import History, Recorder, Version

NAMESPACE = "default"
SCRIPT = {"steps": 4, "step_seconds": 0.2, "exits": [1, 0], "fail_at": 3}
BAR_SECONDS = 5.0


def main() -> int:
    """Run it. Returns 1 if the bar isn't met."""
    parser = argparse.ArgumentParser(description="Measure how soon a failed attempt is followed by the next.")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=10, help="runs that train at the same time")
    given = parser.parse_args()
    with lab.trainings(max_active_runs_per_namespace=given.at_once) as (plane, _):
        history = asyncio.run(play(plane, runs=given.runs))
    gaps = [gap for number in range(given.runs) for gap in gaps_of(history, f"run-{number}")]
    assert len(gaps) == given.runs, f"{len(gaps)} of {given.runs} runs had a second pod"
    report = {
        "runs": given.runs,
        "secondsFromEndToNextPod": lab.figures(gaps),
        "overlaps": sum(gap < 0 for gap in gaps),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 0 if report["overlaps"] == 0 and lab.figures(gaps)["p99"] <= BAR_SECONDS else 1


async def play(plane: ControlPlane, *, runs: int) -> History:
    """Submit all at once, the operator's own limit lets so many train at a time; to the last one's end."""
    api = Api.from_kubeconfig(plane.kubeconfig)
    stage = Stage(plane.api(), NAMESPACE)
    try:
        async with Recorder.running(api) as recorder:
            history = recorder.of(NAMESPACE)
            for number in range(runs):
                await asyncio.to_thread(stage.submit, f"run-{number}", script=SCRIPT)
            while (done := finished(history)) < runs:
                sys.stderr.write(f"\r{done} of {runs} runs")
                await asyncio.sleep(0.5)
    finally:
        await api.close()
    sys.stderr.write("\n")
    return history


def finished(history: History) -> int:
    """Runs that have ended."""
    ends = (condition(run.get("status", {}), "Finished").get("status") for run in history.there("run"))
    return sum(status == "True" for status in ends)


def gaps_of(history: History, run: str) -> list[float]:
    """Seconds between an attempt's end and the next one's beginning."""
    pods = [version for version in history.of("pod") if version.body["metadata"]["labels"].get(RUN_LABEL) == run]
    first = [version for version in pods if attempt(version) == 1]
    second = [version for version in pods if attempt(version) == 2]
    return [second[0].at - ended_at(first)] if second else []


def attempt(version: Version) -> int:
    """Which attempt's pod."""
    return int(version.body["metadata"]["labels"][ATTEMPT_LABEL])


def ended_at(versions: Sequence[Version]) -> float:
    """When a pod was first seen ended."""
    return next(v.at for v in versions if v.body["status"].get("phase") in ("Succeeded", "Failed"))


if __name__ == "__main__":
    sys.exit(main())
