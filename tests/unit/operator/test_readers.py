"""Who may read /metrics: what is asked of the API server, what is answered, and what is remembered."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from finetune_operator import readers
from finetune_operator.connection import Connection
from finetune_operator.readers import ACCESS, TOKENS, Readers
from tests.apiserver import ApiServer

USER = {
    "username": "system:serviceaccount:monitoring:prometheus",
    "uid": "7",
    "groups": ["a", "b"],
    "extra": {"k": ["v"]},
}


class Clock:
    """Told the time."""

    now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def judging(api: Connection, clock: Clock) -> Readers:
    return Readers(api, clock=clock)


def knows(server: ApiServer, *, allowed: bool) -> None:
    """The API server knows every token, of an account that may read or may not."""
    server.on("POST", TOKENS, {"status": {"authenticated": True, "user": USER}}, status=201)
    server.on("POST", ACCESS, {"status": {"allowed": allowed}}, status=201)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "token"])
async def test_without_a_token_nobody_is_asked(header: str, judging: Readers, server: ApiServer) -> None:
    assert await judging.judge(header) == readers.NO_TOKEN
    assert readers.NO_TOKEN.status == 401
    assert server.asked == []


async def test_who_it_is_and_what_they_may_is_the_api_servers_to_say(judging: Readers, server: ApiServer) -> None:
    knows(server, allowed=True)
    assert await judging.judge("bearer  abc ") == readers.ALLOWED
    token, access = server.asked
    assert token.body["spec"] == {"token": "abc"}, "without audiences: the API server's own"
    wanted = {"path": "/metrics", "verb": "get"}
    name = {key: value for key, value in USER.items() if key != "username"}
    assert access.body["spec"] == {"user": USER["username"], **name, "nonResourceAttributes": wanted}


@pytest.mark.parametrize("token", ["ä", "\udcff", "a\u202eb"])
async def test_what_can_be_no_token_is_not_asked_about(token: str, judging: Readers, server: ApiServer) -> None:
    assert await judging.judge(f"Bearer {token}") == readers.UNKNOWN
    assert server.asked == []


@pytest.mark.parametrize("status", [{"error": "expired"}, {"authenticated": False}, {}])
async def test_a_token_that_is_not_known_is_refused(status: Any, judging: Readers, server: ApiServer) -> None:
    server.on("POST", TOKENS, {"status": status}, status=201)
    assert await judging.judge("Bearer abc") == readers.UNKNOWN
    assert [asked.path for asked in server.asked] == [TOKENS]


async def test_who_has_no_right_is_told_as_whom_they_are_known(judging: Readers, server: ApiServer) -> None:
    knows(server, allowed=False)
    status, text = await judging.judge("Bearer abc")
    assert (status, text) == (403, f"{USER['username']} has no right to get the non-resource URL /metrics")


@pytest.mark.parametrize(("allowed", "holds", "over"), [(True, 59, 60), (False, 9, 10)])
async def test_a_verdict_holds_for_a_while(
    allowed: bool, holds: float, over: float, judging: Readers, server: ApiServer, clock: Clock
) -> None:
    knows(server, allowed=allowed)
    first = await judging.judge("Bearer abc")
    clock.passes(holds)
    assert await judging.judge("Bearer abc") == first
    assert len(server.asked) == 2
    clock.passes(over - holds)
    assert await judging.judge("Bearer abc") == first
    assert len(server.asked) == 4


async def test_a_right_that_was_taken_away_ends_with_the_next_question(
    judging: Readers, server: ApiServer, clock: Clock
) -> None:
    server.on("POST", TOKENS, {"status": {"authenticated": True, "user": USER}}, status=201)
    server.on("POST", ACCESS, {"status": {"allowed": True}}, status=201)
    server.on("POST", ACCESS, {"status": {"allowed": False}}, status=201)
    assert (await judging.judge("Bearer abc")).status == 200
    clock.passes(60)
    assert (await judging.judge("Bearer abc")).status == 403
    clock.passes(1)
    assert (await judging.judge("Bearer abc")).status == 403


async def test_while_the_api_server_is_away_nobody_gets_in_whose_verdict_is_over(
    judging: Readers, server: ApiServer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    knows(server, allowed=True)
    assert (await judging.judge("Bearer abc")).status == 200
    server.answers.clear()
    server.refuses("POST", TOKENS, 503, message="etcd is away")
    clock.passes(59)
    assert (await judging.judge("Bearer abc")).status == 200
    clock.passes(1)
    assert await judging.judge("Bearer abc") == readers.AWAY
    assert await judging.judge("Bearer new") == readers.AWAY
    assert "etcd is away" in caplog.text
    server.answers.clear()
    knows(server, allowed=True)
    assert (await judging.judge("Bearer abc")).status == 200, "that it was away isn't remembered"


async def test_an_api_server_that_does_not_answer_is_not_waited_for(
    judging: Readers, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_: object) -> Any:
        await asyncio.sleep(60)

    server.calls("POST", TOKENS, never)
    monkeypatch.setattr(readers, "_SECONDS", 0.1)
    assert await judging.judge("Bearer abc") == readers.AWAY


async def test_an_operator_without_the_right_to_ask_says_so(
    judging: Readers, server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.refuses("POST", TOKENS, 403, reason="Forbidden", message="cannot create tokenreviews")
    assert await judging.judge("Bearer abc") == readers.NO_RIGHT
    assert "cannot create tokenreviews; examples/metrics-login.yaml has the rights" in caplog.text
    assert "abc" not in caplog.text, "a token is in no log"


async def test_invented_tokens_cost_the_api_server_little_and_keep_nobody_out_who_was_let_in(
    judging: Readers, server: ApiServer, clock: Clock
) -> None:
    knows(server, allowed=True)
    assert (await judging.judge("Bearer prometheus")).status == 200
    server.answers.clear()
    server.on("POST", TOKENS, {"status": {}}, status=201)
    server.asked.clear()
    clock.passes(60)
    said = [(await judging.judge(f"Bearer {number}")).status for number in range(500)]
    assert len(server.asked) == said.count(401) == 10, "a burst, of 500 at once"
    assert said.count(503) == 490
    server.answers.clear()
    knows(server, allowed=True)
    assert (await judging.judge("Bearer prometheus")).status == 200, "while others have to wait"
    assert (await judging.judge("Bearer another")) == readers.BUSY
    clock.passes(1)
    assert (await judging.judge("Bearer another")).status == 200


async def test_memory_is_bounded_and_holds_no_token(judging: Readers, server: ApiServer, clock: Clock) -> None:
    server.on("POST", TOKENS, {"status": {}}, status=201)
    for number in range(1100):
        clock.passes(0.2)
        await judging.judge(f"Bearer secret-{number}")
    assert len(server.asked) == 1100
    assert len(judging._denied._verdicts) == 1024
    assert "secret" not in repr(judging._denied._verdicts)
