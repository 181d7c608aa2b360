"""A proxy between one operator and the API server: plain HTTP in front, TLS behind, and every fault of `rules`.

    proxy = Proxy(server, tls=context, rules=RuleBook(rules, clock=time.monotonic), crash=operator.crash)
    async with proxy: KUBECONFIG -> http://127.0.0.1:{proxy.port}

It numbers every request and every write and keeps them in `log`. What it lets through it never changes: answers and
watches come as the API server gave them, late, cut or not at all.
About stale answers: the operator and kopf list without a resourceVersion, and such a list is a quorum read; an API
server with a lagging cache can't answer it with an old state. What can happen, and what is done here, is a list that is
read now and arrives late (LATE_REPLY), a watch that lags (LAG) and goes on from an older version, and states that a
watch never shows (HIDE), as after a relist.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import ssl
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp import web
from yarl import URL

from tests.faults import wire
from tests.faults.rules import CRASHES, Do, Rule, RuleBook
from tests.faults.wire import Exchange, Request

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host", "content-length", "accept-encoding"}
LINE_LIMIT = 2**24


class Proxy:
    """One proxy with one set of rules."""

    def __init__(
        self, server: str, *, tls: ssl.SSLContext | None, rules: RuleBook, crash: Callable[[], None] = lambda: None
    ) -> None:
        self.port = 0
        self.log: list[Exchange] = []
        self.lines: collections.Counter[str] = collections.Counter()
        """How often each line of a watch has come from the API server."""
        self._server, self._tls = server, tls
        self._rules, self._crash = rules, crash
        self._counts: collections.Counter[str] = collections.Counter()
        self._writes = 0
        self._transports: set[asyncio.BaseTransport] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._handlers: set[asyncio.Task[Any]] = set()
        self._held: list[asyncio.Event] = []
        self._listener: asyncio.Server | None = None
        self._http = web.Server(self._serve, access_log=None)

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._tls or True, limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listener:
            self._listener.close()
        self._abort_all()
        left = [*self._tasks, *self._handlers]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._http.shutdown(0.1)
        await self._session.close()

    async def _listen(self) -> None:
        self._listener = await asyncio.get_running_loop().create_server(
            self._http, "127.0.0.1", self.port, reuse_address=True
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    async def away(self, seconds: float) -> None:
        """Refuse connections for so long."""
        assert self._listener, "it listens"
        self._listener.close()
        self._abort_all()
        await asyncio.sleep(seconds)
        await self._listen()

    def release(self) -> None:
        """What was held on its way arrives now."""
        held, self._held = self._held, []
        for event in held:
            event.set()

    async def delivered(self) -> None:
        """Once what was on its way has arrived."""
        await asyncio.gather(*(task for task in self._tasks if task.get_name() == "late"))

    @property
    def writes(self) -> list[Exchange]:
        """The writes, in order."""
        return [exchange for exchange in self.log if exchange.write is not None]

    def _abort_all(self) -> None:
        for transport in list(self._transports):
            transport.abort()  # type: ignore[attr-defined]  # every transport of a socket has it

    def _spawn(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, incoming: web.BaseRequest) -> web.StreamResponse:
        handler = asyncio.current_task()
        assert handler, "a request has a task"
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)
        if incoming.transport is not None:
            self._transports.add(incoming.transport)
        content = await incoming.read()
        exchange = self._number(incoming, content)
        rule = self._rules.strike(exchange.request.label)
        try:
            if rule is not None:
                exchange.fault = str(rule)
                return await self._faulty(rule, incoming, content, exchange)
            return await self._pass_on(incoming, content, exchange)
        except aiohttp.ClientError:
            return _hang_up(incoming)
        finally:
            if incoming.transport is None or incoming.transport.is_closing():
                self._transports = {one for one in self._transports if not one.is_closing()}

    def _number(self, incoming: web.BaseRequest, content: bytes) -> Exchange:
        request = Request(
            verb=incoming.method,
            path=incoming.path,
            query=dict(incoming.query),
            agent=incoming.headers.get("User-Agent", ""),
            body=json.loads(content) if content else None,
        )
        self._counts[request.label] += 1
        self._writes += request.is_write
        exchange = Exchange(
            number=len(self.log) + 1,
            request=request,
            label=wire.counted(request.label, self._counts[request.label]),
            at=time.monotonic(),
            write=self._writes if request.is_write else None,
        )
        self.log.append(exchange)
        return exchange

    async def _faulty(
        self, rule: Rule, incoming: web.BaseRequest, content: bytes, exchange: Exchange
    ) -> web.StreamResponse:
        if rule.do in CRASHES:
            return await self._crash_at(rule, incoming, content, exchange)
        match rule.do:
            case Do.ANSWER:
                exchange.code = rule.code
                wait = {"Retry-After": str(rule.retry_after)} if rule.retry_after is not None else {}
                said = wire.refusal(rule.code, verb=exchange.request.verb)
                return web.Response(status=rule.code, body=said, content_type="application/json", headers=wait)
            case Do.DROP:
                return _hang_up(incoming)
            case Do.DROP_REPLY:
                await self._carry_out(incoming, content, exchange)
                return _hang_up(incoming)
            case Do.DELAY:
                await asyncio.sleep(rule.seconds)
                return await self._pass_on(incoming, content, exchange)
            case Do.LATE_REPLY:
                status, headers, body = await self._carry_out(incoming, content, exchange)
                await asyncio.sleep(rule.seconds)
                return web.Response(status=status, headers=headers, body=body)
            case Do.AWAY:
                self._spawn(self.away(rule.seconds), "away")
                return _hang_up(incoming)
            case _:
                raise AssertionError(f"{rule.do} is for lines of a watch")

    async def _crash_at(
        self, rule: Rule, incoming: web.BaseRequest, content: bytes, exchange: Exchange
    ) -> web.StreamResponse:
        if rule.do == Do.CRASH_AFTER:
            await self._carry_out(incoming, content, exchange)
        self._crash()
        if rule.do == Do.CRASH_LATE:
            arrive = asyncio.Event()
            self._held.append(arrive)
            # a copy of what is needed: the operator's side of the connection is gone by then
            self._spawn(self._arrive_late(arrive, incoming, content, exchange), "late")
        return _hang_up(incoming)

    async def _arrive_late(
        self, arrive: asyncio.Event, incoming: web.BaseRequest, content: bytes, exchange: Exchange
    ) -> None:
        await arrive.wait()
        await self._carry_out(incoming, content, exchange)

    def _send(self, incoming: web.BaseRequest, content: bytes) -> Any:
        headers = {name: value for name, value in incoming.headers.items() if name.lower() not in HOP_BY_HOP}
        headers["Accept-Encoding"] = "identity"
        url = URL(self._server + incoming.raw_path, encoded=True)
        return self._session.request(incoming.method, url, data=content or None, headers=headers, allow_redirects=False)

    async def _carry_out(
        self, incoming: web.BaseRequest, content: bytes, exchange: Exchange
    ) -> tuple[int, dict[str, str], bytes]:
        async with self._send(incoming, content) as answer:
            body = await answer.read()
            exchange.code = answer.status
            return answer.status, _headers(answer), body

    async def _pass_on(self, incoming: web.BaseRequest, content: bytes, exchange: Exchange) -> web.StreamResponse:
        if not exchange.request.is_watch:
            status, headers, body = await self._carry_out(incoming, content, exchange)
            return web.Response(status=status, headers=headers, body=body)
        async with self._send(incoming, content) as answer:
            exchange.code = answer.status
            response = web.StreamResponse(status=answer.status, headers=_headers(answer))
            await response.prepare(incoming)
            with contextlib.suppress(ConnectionError):
                await _Stream(self, incoming, response, resource=exchange.request.resource).run(answer)
            return response

    def strike_line(self, label: str) -> Rule | None:
        """The rule for a line of a watch."""
        self.lines[label] += 1
        return self._rules.strike(label, watch=True)


class _Stream:
    """One watch, line by line."""

    def __init__(self, proxy: Proxy, incoming: web.BaseRequest, response: web.StreamResponse, *, resource: str) -> None:
        self._proxy, self._incoming, self._response = proxy, incoming, response
        self._resource = resource
        self._hidden = ""
        self._silent = False

    async def run(self, answer: aiohttp.ClientResponse) -> None:
        pending = b""
        async for chunk in answer.content.iter_any():
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                if not await self._line(line + b"\n"):
                    return
        if self._silent:
            await asyncio.sleep(3600)

    async def _line(self, line: bytes) -> bool:
        """Pass it on, or not; whether the stream goes on."""
        if self._silent:
            return True
        event = json.loads(line)
        if event["type"] == "BOOKMARK":
            # while something is hidden, a bookmark would promise that it was shown
            if not self._hidden:
                await self._response.write(line)
            return True
        uid = event["object"].get("metadata", {}).get("uid", "")
        self._hidden = "" if uid == self._hidden else self._hidden
        rule = self._proxy.strike_line(wire.event_label(self._resource, event["type"]))
        if rule is None:
            await self._response.write(line)
            return True
        return await self._faulty(rule, line, uid=uid)

    async def _faulty(self, rule: Rule, line: bytes, *, uid: str) -> bool:
        match rule.do:
            case Do.CUT:
                await self._response.write(line[: len(line) // 2])
                if self._incoming.transport is not None:
                    self._incoming.transport.close()  # after what was written, unlike abort()
                return False
            case Do.ERROR:
                await self._response.write(wire.error_line(rule.code))
                return False
            case Do.SILENCE:
                self._silent = True
            case Do.HIDE:
                self._hidden = uid
            case Do.LAG:
                await asyncio.sleep(rule.seconds)
                await self._response.write(line)
            case _:
                raise AssertionError(f"{rule.do} is for requests")
        return True


def _headers(answer: aiohttp.ClientResponse) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}


def _hang_up(incoming: web.BaseRequest) -> web.StreamResponse:
    """End the connection without a word."""
    if incoming.transport is not None:
        incoming.transport.abort()
    return web.Response()
