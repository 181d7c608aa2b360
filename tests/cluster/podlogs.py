"""The kubelet's log endpoint, so that `kubectl logs` works: GET /containerLogs/NAMESPACE/POD/CONTAINER over TLS.

It knows follow, tailLines and limitBytes. Lines carry no times, so what needs them is refused, as is `previous`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from aiohttp import web

from tests.cluster.podworker import PodWorker

REFUSED = ("timestamps", "sinceSeconds", "sinceTime", "previous")
FindPod = Callable[[str, str], PodWorker | None]


@contextlib.asynccontextmanager
async def served(find: FindPod, *, certificate: Path, key: Path) -> AsyncIterator[int]:
    """The endpoint on a free port of 127.0.0.1."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return await _answer(request, find)

    application = web.Application()
    application.router.add_get("/containerLogs/{namespace}/{pod}/{container}", answer)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def _answer(request: web.Request, find: FindPod) -> web.StreamResponse:
    refused = [name for name in REFUSED if request.query.get(name, "false") != "false"]
    if refused:
        return web.Response(status=400, text=f"the test node's logs don't know {', '.join(refused)}\n")
    container = request.match_info["container"]
    pod = find(request.match_info["namespace"], request.match_info["pod"])
    if pod is None or not pod.log_file(container).exists():
        return web.Response(status=404, text=f"container {container} has no log\n")
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    left = int(request.query.get("limitBytes", 2**63))
    follow = request.query.get("follow") == "true"
    async for chunk in _chunks(pod, container, tail=request.query.get("tailLines"), follow=follow):
        await response.write(chunk[:left])
        left -= len(chunk)
        if left <= 0:
            break
    return response


async def _chunks(pod: PodWorker, container: str, *, tail: str | None, follow: bool) -> AsyncIterator[bytes]:
    """What the log holds, and with `follow` what is added to it until the container has ended."""
    with pod.log_file(container).open("rb") as file:
        content = file.read()
        if tail is not None:
            lines = content.splitlines(keepends=True)
            content = b"".join(lines[len(lines) - min(int(tail), len(lines)) :])
        while True:
            if content:
                yield content
            ended = not pod.running(container)
            content = file.read()
            if not content:
                if ended or not follow:
                    return
                await asyncio.sleep(0.1)
