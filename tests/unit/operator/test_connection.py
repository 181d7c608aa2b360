"""The connection: what each answer of an API server means, and what is never done."""

import asyncio
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from finetune_operator import connection
from finetune_operator.connection import Connection
from finetune_operator.errors import (
    ConflictError,
    ExistsError,
    GoneError,
    OperatorError,
    RefusedError,
    TransientError,
    UserError,
)
from finetune_operator.fence import Fence, sockets
from tests import apiserver
from tests.apiserver import ApiServer


async def test_a_request_says_who_asks_and_gets_plain_json(
    api: Connection, server: ApiServer, observed: list[tuple[str, str]]
) -> None:
    server.on("GET", "/x", {"a": [1, None]})
    assert await api.get("/x", labelSelector="a=b,c=d e") == {"a": [1, None]}
    asked = server.last()
    assert asked.query == {"labelSelector": "a=b,c=d e"}
    assert asked.headers["User-Agent"] == "finetune-operator/1.2.3"
    assert asked.headers["Authorization"] == "Bearer secret"
    assert observed == [("GET", "200")]


@pytest.mark.parametrize("verb", ["POST", "PATCH"])
async def test_a_write_says_whose_it_is(api: Connection, server: ApiServer, verb: str) -> None:
    server.on(verb, "/x", {"done": True})
    assert await (api.post if verb == "POST" else api.patch)("/x", {"a": None, "b": [1]}) == {"done": True}
    asked = server.last()
    assert asked.query == {"fieldManager": "finetune-operator", "timeout": "10.000s"}
    assert asked.body == {"a": None, "b": [1]}, "a null removes a field: it has to arrive"
    expected = {"POST": "application/json", "PATCH": "application/merge-patch+json"}
    assert asked.headers["Content-Type"] == expected[verb]


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        (404, "NotFound", GoneError),
        (410, "Expired", GoneError),
        (409, "AlreadyExists", ExistsError),
        (409, "Conflict", ConflictError),
        (403, "Forbidden", RefusedError),
        (422, "Invalid", RefusedError),
        (401, "Unauthorized", TransientError),
        (429, "TooManyRequests", TransientError),
        (500, "InternalError", TransientError),
        (503, "ServiceUnavailable", TransientError),
        (400, "BadRequest", OperatorError),
    ],
)
async def test_what_follows_from_a_status_code(
    api: Connection, server: ApiServer, observed: list[tuple[str, str]], status: int, reason: str, expected: type
) -> None:
    server.refuses("POST", "/x", status, reason=reason, message="the server's own words")
    with pytest.raises(OperatorError, match="the server's own words") as caught:
        await api.post("/x", {})
    assert type(caught.value) is expected
    assert observed == [("POST", str(status))]


async def test_a_server_that_asks_to_wait_is_heard(api: Connection, server: ApiServer) -> None:
    server.refuses("GET", "/x", 429, Retry_After="7")
    with pytest.raises(TransientError) as caught:
        await api.get("/x")
    assert caught.value.retry_after == 7


async def test_an_answer_that_is_no_status_is_cut(api: Connection, server: ApiServer) -> None:
    async def page(_: web.Request) -> web.StreamResponse:
        return web.Response(status=502, text="<html>" + "x" * 5000)

    server.calls("GET", "/x", page)
    with pytest.raises(TransientError) as caught:
        await api.get("/x")
    assert len(str(caught.value)) < 400


async def test_nobody_there_is_trouble_outside(
    api: Connection, server: ApiServer, observed: list[tuple[str, str]]
) -> None:
    async def hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport
        request.transport.abort()
        return web.Response()

    server.calls("GET", "/x", hang_up)
    with pytest.raises(TransientError, match=r"GET /x"):
        await api.get("/x")
    assert observed == [("GET", "error")]


async def test_a_redirect_is_not_followed(api: Connection, server: ApiServer) -> None:
    """A pod behind the proxy answers what it wants, and the credential must not follow."""
    server.on("GET", "/proxy", status=302, headers={"Location": "/elsewhere"})
    with pytest.raises(TransientError, match=r"a redirect \(302\) is not followed"):
        await api.read("/proxy", limit=100, seconds=5)
    assert [asked.path for asked in server.asked] == ["/proxy"]


async def test_no_more_is_read_than_asked_for(api: Connection, server: ApiServer) -> None:
    sent = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 50_000_000:
            await response.write(b"x" * 10_000)
            sent += 10_000
        return response

    server.calls("GET", "/flood", flood)
    server.on("GET", "/small", {"a": 1})
    with pytest.raises(TransientError, match="longer than 1000 bytes"):
        await api.read("/flood", limit=1000, seconds=5)
    assert await api.read("/small", limit=8, seconds=5) == b'{"a": 1}'
    assert sent < 50_000_000


async def test_what_is_packed_is_not_unpacked(api: Connection, server: ApiServer) -> None:
    async def packed(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"not unpacked", headers={"Content-Encoding": "gzip"})

    server.calls("GET", "/packed", packed)
    assert await api.read("/packed", limit=100, seconds=5) == b"not unpacked"
    assert server.last().headers["Accept-Encoding"] == "identity"


async def test_no_wait_is_without_end(api: Connection, server: ApiServer) -> None:
    async def sleep(_: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        return web.Response()

    server.calls("GET", "/slow", sleep)
    with pytest.raises(TransientError, match="TimeoutError"):
        await api.read("/slow", limit=100, seconds=0.1)


async def test_a_list_comes_in_chunks_of_one_version(api: Connection, server: ApiServer) -> None:
    server.on("GET", "/runs", {"items": [{"n": 1}], "metadata": {"resourceVersion": "5", "continue": "more"}})
    server.on("GET", "/runs", {"items": [{"n": 2}], "metadata": {"resourceVersion": "5"}})
    chunks = [chunk async for chunk in api.list("/runs", selector="a=b")]
    assert chunks == [([{"n": 1}], "5"), ([{"n": 2}], "5")]
    assert [asked.query for asked in server.asked] == [
        {"limit": "500", "labelSelector": "a=b"},
        {"limit": "500", "labelSelector": "a=b", "continue": "more"},
    ]


async def test_a_token_that_was_replaced_is_read_again(api: Connection, server: ApiServer, tmp_path: Path) -> None:
    server.refuses("GET", "/x", 401)
    server.on("GET", "/x", {})
    apiserver.kubeconfig(tmp_path / "kubeconfig", server=server.url, token="newer")
    with pytest.raises(TransientError):
        await api.get("/x")
    await api.get("/x")
    assert [asked.headers["Authorization"] for asked in server.asked] == ["Bearer secret", "Bearer newer"]
    assert (await api.credentials()).authorization == "Bearer newer"


async def test_without_a_cluster_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(UserError, match="KUBECONFIG: no API server to talk to"):
        async with connection.connect(version="0", observer=lambda *_: None):
            raise AssertionError("it connected")


def fenced(left: Callable[[], float], *, delivery: float = 1.0) -> Any:
    """A connection whose writes have to be over within so long."""
    fence = Fence(left=left, delivery=delivery)
    return connection.connect(version="1", observer=lambda *_: None, identity="pod-a_1", fence=fence)


WRITES: list[tuple[str, Callable[[Connection], Any]]] = [
    ("POST", lambda api: api.post("/x", {"a": 1})),
    ("PATCH", lambda api: api.patch("/x", {"a": 1})),
    ("DELETE", lambda api: api.delete("/x", uid="u")),
]


@pytest.mark.parametrize(("verb", "write"), WRITES, ids=[verb for verb, _ in WRITES])
async def test_a_write_ends_on_both_sides_before_the_fence_closes(
    api: Connection, server: ApiServer, verb: str, write: Callable[[Connection], Any]
) -> None:
    server.on(verb, "/x", {})
    async with fenced(lambda: 5.0) as found:
        await write(found)
    assert server.last().query["timeout"] == "3.500s", "half a second to connect, and a second on the way"
    assert server.last().headers["User-Agent"] == "finetune-operator/1 (pod-a_1)"


@pytest.mark.parametrize(("verb", "write"), WRITES, ids=[verb for verb, _ in WRITES])
async def test_behind_a_closed_fence_nothing_is_written_and_all_can_be_read(
    api: Connection, server: ApiServer, verb: str, write: Callable[[Connection], Any]
) -> None:
    server.on(verb, "/x", {})
    server.on("GET", "/x", {"a": 1})
    async with fenced(lambda: 0.0) as found:
        with pytest.raises(TransientError, match="doesn't hold the lease"):
            await write(found)
        assert await found.get("/x") == {"a": 1}
    assert [asked.verb for asked in server.asked] == ["GET"]


@pytest.mark.parametrize(("verb", "write"), WRITES, ids=[verb for verb, _ in WRITES])
@pytest.mark.parametrize("warm", [False, True], ids=["a new connection", "a connection that is there"])
@pytest.mark.parametrize("closes", [1, 2], ids=["before the headers", "before the body"])
async def test_a_fence_that_closes_while_the_request_is_made_holds_it_back(
    api: Connection, server: ApiServer, verb: str, write: Callable[[Connection], Any], warm: bool, closes: int
) -> None:
    """As after SIGSTOP and SIGCONT between the decision to write and the bytes."""
    server.on(verb, "/x", {})
    server.on("GET", "/x", {})
    asked = 0

    def left() -> float:
        nonlocal asked
        asked += 1
        return 5.0 if asked <= closes else 0.0

    async with fenced(left) as found:
        if warm:
            await found.get("/x")
        before = len(server.asked)
        with pytest.raises(TransientError, match="not sent: the lease may have run out"):
            await write(found)
        await found.get("/x")
    assert asked == closes + 1
    assert [request.verb for request in server.asked[before:]] == ["GET"]


async def test_a_connection_that_took_too_long_to_make_holds_the_write_back(api: Connection, server: ApiServer) -> None:
    server.on("POST", "/x", {})
    rest = iter([5.0, 4.4])
    async with fenced(lambda: next(rest)) as found:
        with pytest.raises(TransientError, match="not sent"):
            await found.post("/x", {})
    assert server.asked == []


async def test_whether_every_write_is_over_is_known(api: Connection, server: ApiServer) -> None:
    began, answer = asyncio.Event(), asyncio.Event()

    async def slow(_: web.Request) -> web.StreamResponse:
        began.set()
        await answer.wait()
        return web.json_response({})

    server.calls("POST", "/slow", slow)
    async with fenced(lambda: 5.0) as found:
        assert await found.settled(seconds=0.01)
        task = asyncio.create_task(found.post("/slow", {}))
        await began.wait()
        assert not await found.settled(seconds=0.01), "one is under way"
        asyncio.get_running_loop().call_later(0.05, answer.set)
        assert await found.settled(seconds=5)
        await task


async def test_a_write_without_an_answer_is_not_over(api: Connection, server: ApiServer) -> None:
    began = asyncio.Event()

    async def silent(_: web.Request) -> web.StreamResponse:
        began.set()
        await asyncio.sleep(60)
        return web.Response()

    server.calls("POST", "/silent", silent)
    async with fenced(lambda: 1.0, delivery=0.2) as found:
        task = asyncio.create_task(found.post("/silent", {}))
        await began.wait()
        task.cancel()
        await asyncio.wait([task])
        assert not await found.settled(seconds=0.01), "it was sent, and may still be carried out"
        await asyncio.sleep(1.0)
        assert await found.settled(seconds=0.01), "by now the API server has given it up"


def test_the_kernel_forgets_what_it_has_not_delivered() -> None:
    make: Any = sockets(Fence(delivery=1.5))
    with make((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))) as made:
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1500
        linger = made.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        assert struct.unpack("ii", linger) == (1, 0)


async def test_what_was_not_read_by_the_other_side_is_gone_when_the_write_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes stay in this machine's buffers while the other side's are full; without the option they'd arrive."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        server = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig(tmp_path / "kubeconfig", server=server)))
        async with fenced(lambda: 3.0, delivery=5) as found:  # given up after half a second
            with pytest.raises(TransientError):
                await found.post("/x", {"a": "x" * 500_000})
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(5)
            received, reset = 0, False
            try:
                while part := accepted.recv(65536):
                    received += len(part)
            except ConnectionResetError:
                reset = True
    assert reset
    assert received < 400_000
