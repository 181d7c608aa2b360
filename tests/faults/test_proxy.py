"""The proxy by itself, in front of a server that says what it is told: each fault does what its name says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests import apiserver
from tests.apiserver import ApiServer
from tests.faults.proxy import Proxy
from tests.faults.rules import Do, Rule, RuleBook

JOBS = "/apis/batch/v1/namespaces/n/jobs"
HUNG_UP = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError)
Stage = Callable[..., AbstractAsyncContextManager["Front"]]


class Front:
    """A client before the proxy, the server behind it, and how often the operator was killed."""

    def __init__(self, session: aiohttp.ClientSession, proxy: Proxy, server: ApiServer, kills: list[float]) -> None:
        self.session, self.proxy, self.server, self.kills = session, proxy, server, kills

    async def ask(self, verb: str, path: str = JOBS, body: object = None, **query: str) -> tuple[int, Any]:
        url = f"http://127.0.0.1:{self.proxy.port}{path}"
        async with self.session.request(verb, url, json=body, params=query) as answer:
            return answer.status, await answer.json(content_type=None)

    async def watch(self, *, seconds: float = 2.0) -> Sequence[Any]:
        """The lines that come until the stream ends or nothing comes for so long."""
        url = f"http://127.0.0.1:{self.proxy.port}{JOBS}"
        lines: list[Any] = []
        async with self.session.get(url, params={"watch": "true"}) as answer:
            try:
                while line := await asyncio.wait_for(answer.content.readline(), seconds):
                    lines.append(json.loads(line))
            except TimeoutError:
                lines.append("silence")
            except (ValueError, *HUNG_UP):
                lines.append("half a line")
        return lines


@pytest.fixture
def stage() -> Stage:
    @asynccontextmanager
    async def before(*rules: Rule) -> AsyncIterator[Front]:
        kills: list[float] = []
        async with apiserver.serving() as server, aiohttp.ClientSession() as session:
            book = RuleBook(rules, clock=time.monotonic)
            async with Proxy(server.url, tls=None, rules=book, crash=lambda: kills.append(time.monotonic())) as proxy:
                server.on("GET", JOBS, {"items": []})
                server.on("POST", JOBS, {"made": True}, status=201)
                yield Front(session, proxy, server, kills)

    return before


def stream(lines: Sequence[tuple[str, str]]) -> Callable[[web.Request], Any]:
    """Lines of a watch, by type and UID, and then nothing while the stream stays open."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for kind, uid in lines:
            event = {"type": kind, "object": {"metadata": {"uid": uid}}}
            await response.write(json.dumps(event).encode() + b"\n")
        await asyncio.sleep(30)
        return response

    return answer


def uids(lines: Sequence[Any]) -> Sequence[str]:
    return [line["object"]["metadata"]["uid"] if isinstance(line, dict) else line for line in lines]


async def test_what_has_no_rule_passes_as_it_is_and_is_numbered(stage: Stage) -> None:
    async with stage() as front:
        assert await front.ask("GET", limit="5") == (200, {"items": []})
        assert await front.ask("POST", body={"kind": "Job"}) == (201, {"made": True})
        seen = [(one.number, one.write, one.label, one.code) for one in front.proxy.log]
        asked = [(one.verb, one.query, one.body) for one in front.server.asked]
    assert seen == [(1, None, "LIST-jobs-resync", 200), (2, 1, "POST-jobs", 201)]
    assert asked == [("GET", {"limit": "5"}, None), ("POST", {}, {"kind": "Job"})]


@pytest.mark.parametrize(
    ("do", "arrives", "kills"),
    [(Do.DROP, 0, 0), (Do.DROP_REPLY, 1, 0), (Do.CRASH_BEFORE, 0, 1), (Do.CRASH_AFTER, 1, 1)],
    ids=str,
)
async def test_the_client_hears_nothing_and_the_server_may_have(stage: Stage, do: Do, arrives: int, kills: int) -> None:
    async with stage(Rule(do=do, at="POST-jobs")) as front:
        with pytest.raises(HUNG_UP):
            await front.ask("POST", body={})
        assert (len(front.server.asked), len(front.kills)) == (arrives, kills)
        assert (await front.ask("POST", body={}))[0] == 201, "once"


async def test_a_late_request_arrives_when_it_is_released(stage: Stage) -> None:
    async with stage(Rule(do=Do.CRASH_LATE, at="POST-jobs")) as front:
        with pytest.raises(HUNG_UP):
            await front.ask("POST", body={"kind": "Job"})
        assert (len(front.kills), front.server.asked) == (1, [])
        front.proxy.release()
        await front.proxy.delivered()
        assert [one.body for one in front.server.asked] == [{"kind": "Job"}]


async def test_an_answer_takes_the_place_of_the_request(stage: Stage) -> None:
    async with stage(Rule(do=Do.ANSWER, at="POST-*", code=429, retry_after=1)) as front:
        url = f"http://127.0.0.1:{front.proxy.port}{JOBS}"
        async with front.session.post(url, json={}) as answer:
            said = await answer.json()
            assert (answer.status, answer.headers["Retry-After"], said["reason"]) == (429, "1", "TooManyRequests")
        assert front.server.asked == []


@pytest.mark.parametrize("do", [Do.DELAY, Do.LATE_REPLY], ids=str)
async def test_late_is_late_on_the_way_there_or_back(stage: Stage, do: Do) -> None:
    async with stage(Rule(do=do, at="LIST-*", seconds=0.4)) as front:
        asking = asyncio.create_task(front.ask("GET"))
        await asyncio.sleep(0.2)
        assert len(front.server.asked) == (1 if do == Do.LATE_REPLY else 0)
        assert not asking.done()
        assert await asking == (200, {"items": []})


async def test_an_api_server_that_is_away_refuses_connections_and_comes_back(stage: Stage) -> None:
    async with stage(Rule(do=Do.AWAY, at="LIST-*", seconds=0.5)) as front:
        with pytest.raises(HUNG_UP):
            await front.ask("GET")
        await asyncio.sleep(0.1)
        with pytest.raises(aiohttp.ClientConnectorError):
            await front.ask("GET")
        await asyncio.sleep(0.6)
        assert (await front.ask("GET"))[0] == 200


THREE = (("ADDED", "one"), ("MODIFIED", "two"), ("MODIFIED", "one"))


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        (None, ["one", "two", "one", "silence"]),
        (Rule(do=Do.CUT, at="EVENT-jobs-MODIFIED"), ["one", "half a line"]),
        (Rule(do=Do.SILENCE, at="EVENT-jobs-MODIFIED"), ["one", "silence"]),
        (Rule(do=Do.HIDE, at="EVENT-jobs-ADDED"), ["two", "one", "silence"]),
        (Rule(do=Do.HIDE, at="EVENT-jobs-MODIFIED", nth=2), ["one", "two", "silence"]),
        (Rule(do=Do.LAG, at="EVENT-jobs-*", nth=2, seconds=0.1), ["one", "two", "one", "silence"]),
    ],
    ids=["nothing", "cut", "silence", "hide the first", "hide the last", "lag"],
)
async def test_a_watch_shows(stage: Stage, rule: Rule | None, shown: Sequence[str]) -> None:
    async with stage(*([rule] if rule else [])) as front:
        front.server.answers["GET", JOBS] = [stream(THREE)]
        found = uids(await front.watch(seconds=0.6))
    assert found == shown


async def test_a_watch_ends_in_an_error(stage: Stage) -> None:
    async with stage(Rule(do=Do.ERROR, at="EVENT-jobs-MODIFIED", code=410)) as front:
        front.server.answers["GET", JOBS] = [stream(THREE)]
        first, error = await front.watch()
    assert first["type"] == "ADDED"
    assert (error["type"], error["object"]["code"], error["object"]["reason"]) == ("ERROR", 410, "Expired")
