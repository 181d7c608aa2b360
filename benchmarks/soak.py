"""What the operator's process costs when many runs have come and gone: does anything grow with their number?

    python -m benchmarks.soak [--runs 10000] [--alive 100]

Runs are created, end, and are deleted by the operator itself (`ttlSecondsAfterFinished: 0`), at most `--alive` at once;
their execution is pretended, as in `benchmarks.queue`. Memory, files, threads and the time of a reconcile are read each
time a tenth of the runs is gone. The last line is one JSON object; the slope is that of the last nine tenths.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from typing import Any

import psutil

from benchmarks import lab, pretended
from finetune_api.types import API_VERSION, PLURAL
from tests.cluster.api import Api, Listed
from tests.cluster.controlplane import ControlPlane
from tests.cluster.operatorprocess import OperatorProcess
from tests.cluster.stage import manifest

NAMESPACES = 10
RUNS = f"/apis/{API_VERSION}/{PLURAL}"
RECONCILES = "finetune_operator_reconcile_duration_seconds"
SPEC = {"ttlSecondsAfterFinished": 0, "storage": {"claimTemplate": {"size": "1Gi"}, "retain": "Delete"}}


def main() -> int:
    """Run it. Returns 1 if a run stayed."""
    parser = argparse.ArgumentParser(description="Measure what is left of runs that have come and gone.")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--alive", type=int, default=100, help="runs at once")
    given = parser.parse_args()
    with lab.objects_alone() as (plane, operator):
        soak = Soak(plane, operator, runs=given.runs, alive=given.alive)
        asyncio.run(soak.run())
    warm = soak.samples[1:]
    slope = statistics.linear_regression([s["gone"] for s in warm], [s["residentMiB"] for s in warm]).slope
    report = {"runs": given.runs, "mebibytesPer1000Runs": round(slope * 1000, 3), "samples": soak.samples}
    sys.stdout.write(json.dumps(report) + "\n")
    return 0 if soak.gone == given.runs else 1


class Soak:
    """The users, and whoever else the API server lacks."""

    def __init__(self, plane: ControlPlane, operator: OperatorProcess, *, runs: int, alive: int) -> None:
        self._plane, self._operator, self._runs = plane, operator, runs
        self._room = asyncio.Semaphore(alive)
        self._over = asyncio.Event()
        self.gone = 0
        self.samples: list[dict[str, Any]] = []
        self._seen = (0.0, 0.0)

    async def run(self) -> None:
        """Until the last run is gone."""
        api = Api.from_kubeconfig(self._plane.kubeconfig)
        for number in range(NAMESPACES):
            await api.create("/api/v1/namespaces", {"metadata": {"name": f"team-{number}"}})
        parts = (pretended.complete_jobs(api), self._follow(api), self._submit(api), self._over.wait())
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            await tasks[2]
            done, _ = await asyncio.wait([tasks[0], tasks[1], tasks[3]], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await api.close()

    async def _submit(self, api: Api) -> None:
        for number in range(self._runs):
            await self._room.acquire()
            body = manifest(f"run-{number}", **SPEC)
            await api.request("POST", f"/apis/{API_VERSION}/namespaces/team-{number % NAMESPACES}/{PLURAL}", body=body)

    async def _follow(self, api: Api) -> None:
        async for news in api.follow(RUNS):
            if isinstance(news, Listed) or not news.deleted:
                continue
            await pretended.collect(api, news.item)
            self._room.release()
            self.gone += 1
            if self.gone % (self._runs // 10) == 0:
                self.samples.append(self._sample())
                sys.stderr.write(f"{self.samples[-1]}\n")
            if self.gone == self._runs:
                self._over.set()

    def _sample(self) -> dict[str, Any]:
        assert self._operator.process is not None
        process = psutil.Process(self._operator.process.pid)
        lines = [line.split() for line in self._operator.metrics().splitlines() if line.startswith(RECONCILES)]
        count, total = (
            sum(float(value) for name, value in lines if name.startswith(f"{RECONCILES}_{part}"))
            for part in ("count", "sum")
        )
        mean = (total - self._seen[1]) / max(count - self._seen[0], 1)
        self._seen = (count, total)
        return {
            "gone": self.gone,
            "residentMiB": round(process.memory_info().rss / 2**20, 1),
            "files": process.num_fds(),
            "threads": process.num_threads(),
            "meanReconcileMilliseconds": round(mean * 1000, 2),
        }


if __name__ == "__main__":
    sys.exit(main())
