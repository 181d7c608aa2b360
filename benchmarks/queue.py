"""How long a long queue takes: 15,000 runs through 30 namespaces, whose execution is pretended, on a real API server.

    python -m benchmarks.queue [--runs 15000] [--namespaces 30] [--limit 10]

Whoever plays the Job controller reports each Job complete as soon as it sees it, and there are no pods: measured are
the operator's own queue and its writes. Kueue's scheduler test has the same size (15,000 workloads, simulated
execution, 351 s published for its baseline; its limit is 425 s), but its Workloads are admitted and nothing more: ours
get a Job, a history and Kubernetes Events. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from typing import Any

from benchmarks import lab, pretended
from finetune_api.types import API_VERSION, PLURAL
from tests.cluster.api import Api, Listed
from tests.cluster.audit import WRITES, AuditLog
from tests.cluster.controlplane import ControlPlane
from tests.cluster.operatorprocess import USER
from tests.cluster.stage import condition, manifest

KUEUE_SECONDS = 351
AT_ONCE = 16


def main() -> int:
    """Run it. Returns 1 if a limit was exceeded or a run is lost."""
    parser = argparse.ArgumentParser(description="Measure a long queue on a real API server, execution pretended.")
    parser.add_argument("--runs", type=int, default=15_000)
    parser.add_argument("--namespaces", type=int, default=30)
    parser.add_argument("--limit", type=int, default=10, help="active runs of a namespace")
    given = parser.parse_args()
    with lab.objects_alone(max_active_runs_per_namespace=given.limit) as (plane, operator):
        play = Play(plane, runs=given.runs, namespaces=given.namespaces)
        created, wall = asyncio.run(play.run())
        writes = [r for r in AuditLog(plane.audit_log).since() if r["user"]["username"] == USER and r["verb"] in WRITES]
        most = most_active(writes)
        footprint = lab.footprint(operator)
    report = {
        "runs": given.runs,
        "namespaces": given.namespaces,
        "completed": play.completed,
        "createSeconds": round(created, 1),
        "wallSeconds": round(wall, 1),
        "kueuePublishedSeconds": KUEUE_SECONDS,
        "writesPerRun": round(len(writes) / given.runs, 2),
        "mostActiveInANamespace": most,
        "limit": given.limit,
    } | footprint
    sys.stdout.write(json.dumps(report) + "\n")
    return 0 if play.completed == given.runs and most <= given.limit else 1


class Play:
    """The users, and the Job controller."""

    def __init__(self, plane: ControlPlane, *, runs: int, namespaces: int) -> None:
        self._plane = plane
        self._runs = runs
        self._namespaces = [f"team-{number:02}" for number in range(namespaces)]
        self.completed = 0
        self._over = asyncio.Event()

    async def run(self) -> tuple[float, float]:
        """To the end of the last run. Returns the seconds until all were created, and in all."""
        api = Api.from_kubeconfig(self._plane.kubeconfig)
        followers = [asyncio.create_task(pretended.complete_jobs(api)), asyncio.create_task(self._count(api))]
        try:
            for namespace in self._namespaces:
                await api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
            began = time.monotonic()
            waiting = iter(range(self._runs))
            await asyncio.gather(*(self._submit(api, waiting) for _ in range(AT_ONCE)))
            created = time.monotonic() - began
            await self._over.wait()
            return created, time.monotonic() - began
        finally:
            for task in followers:
                task.cancel()
            await asyncio.gather(*followers, return_exceptions=True)
            await api.close()

    async def _submit(self, api: Api, numbers: Any) -> None:
        for number in numbers:
            namespace = self._namespaces[number % len(self._namespaces)]
            body = manifest(f"run-{number}")
            await api.request("POST", f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}", body=body)

    async def _count(self, api: Api) -> None:
        over = set()
        async for news in api.follow(f"/apis/{API_VERSION}/{PLURAL}"):
            for run in news.items if isinstance(news, Listed) else (news.item,):
                if condition(run.get("status", {}), "Succeeded").get("status") == "True":
                    over.add(run["metadata"]["uid"])
            if len(over) != self.completed:
                self.completed = len(over)
                if self.completed % 100 == 0:
                    sys.stderr.write(f"\r{self.completed} of {self._runs} runs")
            if self.completed == self._runs:
                self._over.set()


def most_active(writes: list[Any]) -> int:
    """Runs of one namespace that were active at once, after any status that was written."""
    most, active, count = 0, set[tuple[str, str]](), Counter[str]()
    for record in writes:
        reference = record["objectRef"]
        if reference.get("subresource") != "status" or record["responseStatus"]["code"] != 200:
            continue
        key, status = (reference["namespace"], reference["name"]), record["requestObject"]["status"]
        now = status.get("attempt", 0) > 0 and condition(status, "Finished").get("status") != "True"
        if now != (key in active):
            (active.add if now else active.discard)(key)
            count[key[0]] += 1 if now else -1
            most = max(most, count[key[0]])
    return most


if __name__ == "__main__":
    sys.exit(main())
