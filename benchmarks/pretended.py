"""Who plays the Job controller and the garbage collector where the benchmark runs nothing but an API server."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

from tests.cluster.api import Api, ApiError, Listed
from tests.cluster.stage import Object

AT_ONCE = 16
MERGE = "application/merge-patch+json"
CHILDREN = ("/apis/batch/v1/namespaces/{namespace}/jobs", "/api/v1/namespaces/{namespace}/persistentvolumeclaims")


async def complete_jobs(api: Api) -> None:
    """Report every Job complete as soon as it is seen, for ever."""
    jobs: asyncio.Queue[Object] = asyncio.Queue()
    workers = [asyncio.create_task(_complete(api, jobs)) for _ in range(AT_ONCE)]
    try:
        async for news in api.follow("/apis/batch/v1/jobs"):
            for job in news.items if isinstance(news, Listed) else () if news.deleted else (news.item,):
                if not job.get("status", {}).get("conditions"):
                    jobs.put_nowait(job)
    finally:
        for worker in workers:
            worker.cancel()


async def _complete(api: Api, jobs: asyncio.Queue[Object]) -> None:
    while True:
        metadata = (await jobs.get())["metadata"]
        path = f"/apis/batch/v1/namespaces/{metadata['namespace']}/jobs/{metadata['name']}/status"
        try:
            await api.request("PATCH", path, body={"status": completed_job()}, content_type=MERGE)
        except ApiError as error:
            if error.code not in (404, 409):
                raise


def completed_job() -> dict[str, Any]:
    """What the Job controller writes in the end."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    known = {"status": "True", "lastTransitionTime": now, "lastProbeTime": now, "reason": "CompletionsReached"}
    conditions = [{"type": kind, **known} for kind in ("SuccessCriteriaMet", "Complete")]
    return {"startTime": now, "completionTime": now, "succeeded": 1, "conditions": conditions}


async def collect(api: Api, run: Object) -> None:
    """Delete what belongs to a run that is gone; a claim has a finalizer that a controller would take away."""
    metadata = run["metadata"]
    owned = {"labelSelector": f"finetune.dev/run={metadata['name']}"}
    jobs, claims = (children.format(namespace=metadata["namespace"]) for children in CHILDREN)
    for claim in (await api.request("GET", claims, **owned))["items"]:
        path = f"{claims}/{claim['metadata']['name']}"
        await api.request("PATCH", path, body={"metadata": {"finalizers": None}}, content_type=MERGE)
        await api.request("DELETE", path)
    await api.request("DELETE", jobs, **owned, propagationPolicy="Background")
