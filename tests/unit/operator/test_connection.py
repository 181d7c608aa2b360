"""The connection: what each answer of an API server means, and what is never done."""

import asyncio
from pathlib import Path

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
    assert asked.query == {"fieldManager": "finetune-operator"}
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
