"""What the operator costs and how fast it is: 100 runs with the stub trainer on a real control plane.

    python -m benchmarks.operator [--runs 100] [--at-once 10]

Prints API writes a run, counted from the API server's audit log, and the time from what happens in a trainer to the
status that tells of it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import lab
from finetune_api.types import PLURAL
from finetune_operator.names import RUN_LABEL, job
from finetune_operator.settings import Settings
from tests.cluster.audit import WRITES, AuditLog
from tests.cluster.operatorprocess import USER
from tests.cluster.stage import Object, Stage, Writes

NAMESPACE = "default"
SCRIPT = {"load_seconds": 1.0, "steps": 6, "step_seconds": 0.5, "save_seconds": 0.5}
"""A training of about five seconds, whose parts are apart enough to be seen one by one."""


def main() -> int:
    """Run it. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure the operator on a real control plane with a stub trainer.")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--at-once", type=int, default=10, help="runs that train at the same time")
    given = parser.parse_args()
    with lab.trainings() as (plane, operator):
        played, audit = Stage(plane.api(), NAMESPACE), AuditLog(plane.audit_log)
        began = time.monotonic()
        names = play(played, runs=given.runs, at_once=given.at_once)
        wall = time.monotonic() - began
        report = measured(audit, names, pods=played.list("pods"))
        report |= {"wallSeconds": round(wall, 1)} | lab.footprint(operator)
    show(report)
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


def play(played: Stage, *, runs: int, at_once: int) -> Sequence[str]:
    """Submit the runs, so many at a time, until all have ended well; their names."""
    names = [f"run-{number}" for number in range(1, runs + 1)]
    waiting, playing = list(names), set[str]()
    while waiting or playing:
        while waiting and len(playing) < at_once:
            playing.add(name := waiting.pop(0))
            played.submit(name, script=SCRIPT)
        for name in list(playing):
            phase = played.status(name).get("phase")
            assert phase != "Failed", f"{name} failed: {played.status(name)}"
            if phase == "Completed":
                playing.remove(name)
                sys.stderr.write(f"\r{len(names) - len(waiting) - len(playing)} of {len(names)} runs")
        time.sleep(0.5)
    sys.stderr.write("\n")
    return names


def measured(audit: AuditLog, names: Sequence[str], *, pods: Sequence[Object]) -> dict[str, Any]:
    """What the audit log and the trainers' last words tell."""
    records = audit.since()
    written = [record for record in records if record["user"]["username"] == USER and record["verb"] in WRITES]
    writes = [Writes.of(written, name) for name in names]
    return {
        "runs": len(names),
        "writesPerRun": {
            "childrenAndStates": lab.figures([len(one.created) + one.states for one in writes]),
            "milestones": lab.figures([one.milestones for one in writes]),
            "progress": lab.figures([one.progress for one in writes]),
            "kubernetesEvents": lab.figures([one.events for one in writes]),
        },
        "secondsFromEventToStatus": latencies(written, names, pods),
        "secondsFromCreateToJob": lab.figures(create_to_job(records, names)),
    }


def latencies(written: Sequence[Object], names: Sequence[str], pods: Sequence[Object]) -> dict[str, Any]:
    """From the trainer's own time of each milestone to the answer to the write that brings it into the status."""
    seen: dict[tuple[str, str], datetime.datetime] = {}
    for record in written:
        reference = record["objectRef"]
        if reference.get("subresource") == "status" and record["responseStatus"]["code"] == 200:
            for event in record["requestObject"]["status"].get("events", ()):
                seen.setdefault((reference["name"], event["type"]), lab.moment(record["stageTimestamp"]))
    found: dict[str, list[float]] = {}
    for pod in pods:
        word = json.loads(pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"])
        for milestone in word["milestones"]:
            key = (pod["metadata"]["labels"][RUN_LABEL], milestone["type"])
            found.setdefault(milestone["type"], []).append((seen[key] - lab.moment(milestone["time"])).total_seconds())
    assert all(len(values) == len(names) for values in found.values()), "a milestone is missing"
    return {"all": lab.figures([value for values in found.values() for value in values])} | {
        kind: lab.figures(values) for kind, values in found.items()
    }


def create_to_job(records: Sequence[Object], names: Sequence[str]) -> list[float]:
    """From the user's create to the operator's create of the Job."""
    created = {
        (record["objectRef"]["resource"], record["objectRef"]["name"]): lab.moment(record["stageTimestamp"])
        for record in records
        if record["verb"] == "create" and record["responseStatus"]["code"] == 201 and "name" in record["objectRef"]
    }
    return [(created["jobs", job(name, 1)] - created[PLURAL, name]).total_seconds() for name in names]


def show(report: Mapping[str, Any]) -> None:
    """For people."""
    settings = Settings()
    asked = f"asked every {settings.poll_seconds:g} s, {settings.training_poll_seconds:g} s while training"
    cost = f"{report['operatorCpuSeconds']} s CPU, {report['operatorMemoryMiB']} MiB"
    sys.stdout.write(f"{report['runs']} runs in {report['wallSeconds']} s; trainers {asked}; operator {cost}\n")
    row = "{:42}{:>8}{:>8}{:>8}{:>8}\n"
    sys.stdout.write(row.format("", "mean", "p50", "p99", "max"))
    for title, group in (("writes a run: ", "writesPerRun"), ("s from event to status: ", "secondsFromEventToStatus")):
        for name, values in report[group].items():
            sys.stdout.write(row.format(title + name, *values.values()))
    sys.stdout.write(row.format("s from create to Job", *report["secondsFromCreateToJob"].values()))


if __name__ == "__main__":
    sys.exit(main())
