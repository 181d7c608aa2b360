"""What runs cost that do nothing: 1,000 of them for 10 minutes, finished, suspended and queued, on a real API server.

    python -m benchmarks.idle [--runs 1000] [--seconds 600]

Counts the operator's writes and the Kubernetes Events in the API server's audit log. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from benchmarks import lab
from finetune_api.types import API_VERSION, PLURAL
from tests.cluster.audit import AuditLog
from tests.cluster.controlplane import ControlPlane
from tests.cluster.operatorprocess import USER
from tests.cluster.stage import Stage, until

NAMESPACE = "default"
PHASES = ("Suspended", "Canceled", "Queued")
WRITES_A_SECOND = 0.2


def main() -> int:
    """Run it. Returns 1 if there were more writes than that, or more Events than before."""
    parser = argparse.ArgumentParser(description="Measure what idle runs cost on a real API server.")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=600)
    given = parser.parse_args()
    with lab.objects_alone(max_active_runs_per_namespace=1) as (plane, operator):
        populate(plane, runs=given.runs)
        audit, cpu = AuditLog(plane.audit_log), lab.footprint(operator)["operatorCpuSeconds"]
        mark = audit.mark()
        time.sleep(given.seconds)
        written = audit.writes(mark, user=USER)
        cpu = lab.footprint(operator)["operatorCpuSeconds"] - cpu
    report = {
        "runs": given.runs,
        "seconds": given.seconds,
        "writes": len(written),
        "writesPerSecond": round(len(written) / given.seconds, 4),
        "events": sum(record["objectRef"]["resource"] == "events" for record in written),
        "operatorCpuShare": round(cpu / given.seconds, 4),
    }
    sys.stdout.write(json.dumps(report) + "\n")
    return 0 if report["writesPerSecond"] <= WRITES_A_SECOND and not report["events"] else 1


def populate(plane: ControlPlane, *, runs: int) -> None:
    """A third of each kind, behind one run whose Job nobody starts."""
    stage = Stage(plane.api(), NAMESPACE)
    stage.submit("first")
    stage.reaches("first", "Starting")
    specs: tuple[dict[str, Any], ...] = ({"suspend": True}, {"cancel": True}, {})
    for number in range(runs - 1):
        stage.submit(f"run-{number}", **specs[number % 3])
    until(lambda: settled(stage), lambda count: count >= runs - 1, what="the runs' phases", seconds=300)


def settled(stage: Stage) -> int:
    """Runs that wait for nothing but their user or their turn."""
    found = stage.api.request("GET", f"/apis/{API_VERSION}/namespaces/{NAMESPACE}/{PLURAL}")
    return sum(run.get("status", {}).get("phase") in PHASES for run in found["items"])


if __name__ == "__main__":
    sys.exit(main())
