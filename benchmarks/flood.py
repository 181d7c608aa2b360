"""How long a team's run waits while another team submits 5,000 at once, on a real API server.

    python -m benchmarks.flood [--runs 5000] [--probes 20] [--odd]

With --odd those are odd ones, as tests/odd makes them, most of which are refused, each with a Job and a pod beside it
that carry the operator's labels and make no sense. Nothing runs: measured is the time from a run's creation to its
Job's, for runs that are created one after the other in a namespace of their own, all through the flood. The last line
is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import lab
from finetune_api.types import API_VERSION, PLURAL
from finetune_operator import names
from tests.cluster.api import Api, ApiError
from tests.cluster.controlplane import ControlPlane
from tests.cluster.stage import manifest
from tests.odd.generator import Generator, Oddity

FLOOD, CALM = "flood", "calm"
RUNS = f"/apis/{API_VERSION}/namespaces/{{}}/{PLURAL}"
Body = tuple[str, Mapping[str, Any]]
"""Where an object is created, and what."""
BAR_SECONDS = 10.0
AT_ONCE = 16


def main() -> int:
    """Run it. Returns 1 if a run had to wait longer than the bar."""
    parser = argparse.ArgumentParser(description="Measure what one team's flood costs another's run.")
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--probes", type=int, default=20, help="runs of the other team")
    parser.add_argument("--odd", action="store_true", help="the flood is of malformed objects")
    given = parser.parse_args()
    with lab.objects_alone() as (plane, operator):
        before = lab.footprint(operator)["operatorMemoryMiB"]
        created, waits = asyncio.run(play(plane, runs=given.runs, probes=given.probes, odd=given.odd))
        footprint = lab.footprint(operator)
    report = {
        "runs": given.runs,
        "odd": given.odd,
        "floodSeconds": round(created, 1),
        "secondsToJob": lab.figures(waits),
        "memoryMiBBefore": before,
    } | footprint
    sys.stdout.write(json.dumps(report) + "\n")
    return 0 if max(waits) <= BAR_SECONDS else 1


async def play(plane: ControlPlane, *, runs: int, probes: int, odd: bool) -> tuple[float, list[float]]:
    """Seconds that the flood took to submit, and of each run of the other team until its Job was there."""
    api = Api.from_kubeconfig(plane.kubeconfig)
    try:
        for namespace in (FLOOD, CALM):
            await api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
            accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"  # there are no controllers to make it
            await api.create(accounts, {"metadata": {"name": "default"}})
        began = time.monotonic()
        bodies = itertools.chain.from_iterable(map(_odd, range(runs))) if odd else map(_run, range(runs))
        flood = [asyncio.create_task(submit(api, bodies)) for _ in range(AT_ONCE)]
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


async def submit(api: Api, bodies: Iterator[Body]) -> None:
    """Create objects, until there are none left. What the API server refuses can't hurt the operator."""
    for path, body in bodies:
        try:
            await api.request("POST", path, body=body)
        except ApiError as error:
            if error.code not in (400, 413, 422):
                raise


def _run(number: int) -> Body:
    return RUNS.format(FLOOD), manifest(f"run-{number}")


def _odd(number: int) -> Iterator[Body]:
    """A run that is odd, and a Job and a pod that are nobody's, or whose run is another than they say."""
    make = Generator(number)
    name = make.name(number)
    oddity = (Oddity.BROKEN, Oddity.VALID)[number % 2]
    yield RUNS.format(FLOOD), make.run(name, namespace=FLOOD, oddity=oddity)
    labels = {
        **names.labels(name[:63].strip("-.") or "nobody"),
        names.ATTEMPT_LABEL: ("", "abc", "-1", "99999")[number % 4],
    }
    metadata = {
        "name": f"poison-{number}",
        "labels": labels,
        "annotations": {names.RUN_UID_ANNOTATION: "nobody"},
    }
    pod = {"restartPolicy": "Never", "containers": [{"name": names.TRAINER_CONTAINER, "image": "nowhere"}]}
    yield f"/apis/batch/v1/namespaces/{FLOOD}/jobs", {"metadata": metadata, "spec": {"template": {"spec": pod}}}
    yield f"/api/v1/namespaces/{FLOOD}/pods", {"metadata": metadata, "spec": pod}


async def probe(api: Api, name: str) -> float:
    """Seconds from a run's creation to its Job's; it is deleted then, and makes room for the next."""
    began = time.monotonic()
    await api.request("POST", RUNS.format(CALM), body=manifest(name))
    jobs = f"/apis/batch/v1/namespaces/{CALM}/jobs"
    while not (await api.request("GET", jobs, labelSelector=f"finetune.dev/run={name}"))["items"]:  # noqa: ASYNC110 - a poll is what a user does
        await asyncio.sleep(0.05)
    waited = time.monotonic() - began
    await api.request("DELETE", f"/apis/{API_VERSION}/namespaces/{CALM}/{PLURAL}/{name}")
    return waited


if __name__ == "__main__":
    sys.exit(main())
