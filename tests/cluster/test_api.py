"""The node's watching, against an API server that forgets, cuts and stutters."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.cluster.api import Api, ApiError, Listed

Lines = Sequence[bytes]


def event(kind: str, name: str, version: int) -> bytes:
    item = {"metadata": {"name": name, "resourceVersion": str(version)}}
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


GONE = json.dumps({"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}).encode() + b"\n"


class Server:
    """Lists `things` at rising versions and plays one script of chunks for each watch."""

    def __init__(self, *watches: Lines) -> None:
        self.watches = list(watches)
        self.asked: list[str] = []
        self.lists = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            self.lists += 1
            return web.json_response({"items": [], "metadata": {"resourceVersion": str(100 * self.lists)}})
        self.asked.append(request.query["resourceVersion"])
        if not self.watches:
            return web.json_response({"message": "no more"}, status=500)
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in self.watches.pop(0):
            await response.write(chunk)
        return response


@contextlib.asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Api]:
    application = web.Application()
    application.router.add_get("/things", server.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0][:2]
    api = Api(aiohttp.ClientSession(f"http://{host}:{port}"))
    try:
        yield api
    finally:
        await api.close()
        await runner.cleanup()


async def seen(server: Server, *, until: Callable[[list[Any]], bool]) -> list[Any]:
    """What `follow` tells: "list" for a fresh list, else name and whether it was deleted."""
    told: list[Any] = []
    async with serving(server) as api, contextlib.aclosing(api.follow("/things")) as news:
        async for one in news:
            told.append("list" if isinstance(one, Listed) else (one.item["metadata"]["name"], one.deleted))
            if until(told):
                return told
    raise AssertionError("follow has ended")


async def test_a_watch_that_ends_is_resumed_where_it_was() -> None:
    server = Server([event("ADDED", "a", 101), event("BOOKMARK", "", 150)], [event("DELETED", "a", 151)])
    assert await seen(server, until=lambda told: len(told) == 3) == ["list", ("a", False), ("a", True)]
    assert server.asked == ["100", "150"]


async def test_an_event_that_arrives_in_pieces_is_one() -> None:
    whole = event("ADDED", "a", 101)
    server = Server(
        [whole[:5], whole[5:-1], whole[-1:] + event("MODIFIED", "b", 102)[:9]], [event("MODIFIED", "b", 102)]
    )
    assert await seen(server, until=lambda told: len(told) == 3) == ["list", ("a", False), ("b", False)]


@pytest.mark.parametrize("trouble", [[GONE], [b'{"type": "ERROR", "object": {"code": 500, "message": "boom"}}\n']])
async def test_what_cant_be_resumed_is_listed_again(trouble: Lines) -> None:
    server = Server([event("ADDED", "a", 101)], trouble, [event("ADDED", "b", 201)])
    assert await seen(server, until=lambda told: len(told) == 4) == ["list", ("a", False), "list", ("b", False)]
    assert server.asked == ["100", "101", "200"]


async def test_a_refused_watch_is_listed_again() -> None:
    assert await seen(Server(), until=lambda told: len(told) == 2) == ["list", "list"]


async def test_a_refusal_says_code_and_words() -> None:
    async with serving(Server()) as api:
        with pytest.raises(ApiError, match="500: no more") as refusal:
            await api.request("GET", "/things", watch="1", resourceVersion="1")
    assert refusal.value.code == 500
