"""How long a team's run waits while another team submits 5,000 at once, on a real API server.

    python -m benchmarks.flood [--runs 5000] [--probes 20]

Nothing runs: measured is the time from a run's creation to its Job's, for runs that are created one after the other in
a namespace of their own, all through the flood. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Iterator

from benchmarks import lab
from finetune_api.types import API_VERSION, PLURAL
from tests.cluster.api import Api
from tests.cluster.controlplane import ControlPlane
from tests.cluster.stage import manifest

FLOOD, CALM = "flood", "calm"
BAR_SECONDS = 10.0
AT_ONCE = 16


def main() -> int:
    """Run it. Returns 1 if a run had to wait longer than the bar."""
    parser = argparse.ArgumentParser(description="Measure what one team's flood costs another's run.")
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--probes", type=int, default=20, help="runs of the other team")
    given = parser.parse_args()
    with lab.objects_alone() as (plane, operator):
        before = lab.footprint(operator)["operatorMemoryMiB"]
        created, waits = asyncio.run(play(plane, runs=given.runs, probes=given.probes))
        footprint = lab.footprint(operator)
    report = {
        "runs": given.runs,
        "floodSeconds": round(created, 1),
        "secondsToJob": lab.figures(waits),
        "memoryMiBBefore": before,
    } | footprint
    sys.stdout.write(json.dumps(report) + "\n")
    return 0 if max(waits) <= BAR_SECONDS else 1


async def play(plane: ControlPlane, *, runs: int, probes: int) -> tuple[float, list[float]]:
    """Seconds that the flood took to submit, and of each run of the other team until its Job was there."""
    api = Api.from_kubeconfig(plane.kubeconfig)
    try:
        for namespace in (FLOOD, CALM):
            await api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        began = time.monotonic()
        numbers = iter(range(runs))
        flood = [asyncio.create_task(submit(api, FLOOD, numbers)) for _ in range(AT_ONCE)]
        waits = []
        for number in range(probes):
            await asyncio.sleep(1)
            waits.append(await probe(api, f"probe-{number}"))
            sys.stderr.write(f"\rrun {number + 1} of the other team waited {waits[-1]:.2f} s")
        await asyncio.gather(*flood)
        return time.monotonic() - began, waits
    finally:
        sys.stderr.write("\n")
        await api.close()


async def submit(api: Api, namespace: str, numbers: Iterator[int]) -> None:
    """Create runs, until there are no numbers left."""
    for number in numbers:
        await create(api, namespace, f"run-{number}")


async def create(api: Api, namespace: str, name: str) -> None:
    """Submit a run."""
    await api.request("POST", f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}", body=manifest(name))


async def probe(api: Api, name: str) -> float:
    """Seconds from a run's creation to its Job's; it is deleted then, and makes room for the next."""
    began = time.monotonic()
    await create(api, CALM, name)
    jobs = f"/apis/batch/v1/namespaces/{CALM}/jobs"
    while not (await api.request("GET", jobs, labelSelector=f"finetune.dev/run={name}"))["items"]:  # noqa: ASYNC110 - a poll is what a user does
        await asyncio.sleep(0.05)
    waited = time.monotonic() - began
    await api.request("DELETE", f"/apis/{API_VERSION}/namespaces/{CALM}/{PLURAL}/{name}")
    return waited


if __name__ == "__main__":
    sys.exit(main())
