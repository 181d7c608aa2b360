"""Health: what is answered while the process is well, stuck or starting."""

import asyncio
import errno
import time
from typing import Any

import aiohttp
import pytest

from finetune_operator import health
from finetune_operator.health import Health, Watches
from tests import ports


class Part:
    """A resync or a queue, as far as the check looks at it."""

    def __init__(self, seconds: float, *, pause: float = 30) -> None:
        self._seconds = seconds
        self.pause = pause

    def age(self) -> float:
        return self._seconds

    def longest(self) -> float:
        return self._seconds


@pytest.mark.parametrize(
    ("age", "busy", "pause", "said"),
    [
        (60, 0, 30, None),
        (61, 0, 30, "the last good resync was 61 s ago"),
        (36, 0, 5, "the last good resync was 36 s ago"),
        (600, 0, 600, None),
        (0, 44, 30, None),
        (0, 46, 30, "a worker has been at one run for 46 s"),
    ],
)
def test_when_a_leader_is_stuck(age: float, busy: float, pause: float, said: str | None) -> None:
    resync: Any = Part(age, pause=pause)
    queue: Any = Part(busy)
    check = health.stuck(resync, queue, Watches(by_namespace=False))
    assert check() == said


class TestADeafWatch:
    now = 100.0

    def watches(self, *, by_namespace: bool = False) -> Watches:
        return Watches(by_namespace=by_namespace, clock=lambda: self.now)

    def test_is_noticed_when_no_event_follows_what_a_list_found(self) -> None:
        watches = self.watches()
        watches.found("Job", "ml")
        self.now += 25
        assert watches.deaf() is None
        self.now += 1
        watches.found("Job", "ml")
        assert watches.deaf() == "the watch of Job hasn't told of a change that was listed 26 s ago"

    def test_is_none_when_any_event_of_the_kind_follows(self) -> None:
        watches = self.watches()
        watches.found("Job", "ml")
        watches.told("Pod", "ml")
        watches.told("Job", "other")
        self.now += 100
        assert watches.deaf() is None

    def test_is_one_of_a_namespace_where_each_has_its_own(self, caplog: pytest.LogCaptureFixture) -> None:
        watches = self.watches(by_namespace=True)
        watches.found("Job", "ml")
        watches.told("Job", "other")
        self.now += 30
        assert watches.deaf() == "the watch of Job hasn't told of a change that was listed 30 s ago"
        assert caplog.messages == ["the watch of Job in ml tells of nothing"], "its name is for the log alone"

    def test_turns_the_answer_red(self) -> None:
        watches = self.watches()
        watches.found("Pod", "ml")
        self.now += 30
        fresh: Any = Part(0)
        said = health.stuck(fresh, fresh, watches)()
        assert said is not None
        assert said.startswith("the watch of Pod")


async def ask(port: int, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
        session.get(f"http://127.0.0.1:{port}{path}") as response,
    ):
        return response.status, await response.text()


async def test_the_two_endpoints_say_what_is_wrong() -> None:
    told, port = Health(), ports.free()
    async with health.serving(told, address="127.0.0.1", port=port):
        assert await ask(port, "/healthz") == (200, "ok\n")
        assert await ask(port, "/readyz") == (503, "starting\n")
        told.unready = lambda: None
        assert await ask(port, "/readyz") == (200, "ok\n")
        told.trouble = lambda: "it is stuck"
        assert await ask(port, "/healthz") == (503, "it is stuck\n")
        assert await ask(port, "/readyz") == (503, "it is stuck\n"), "what is to be restarted is of no use"
    with pytest.raises(aiohttp.ClientConnectorError):
        await ask(port, "/healthz")


async def test_a_loop_that_is_blocked_does_not_answer() -> None:
    """A thread of its own would go on to say that all is well."""
    told, port = Health(), ports.free()
    async with health.serving(told, address="127.0.0.1", port=port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        await writer.drain()
        time.sleep(0.3)  # noqa: ASYNC251 - what is tested
        assert not reader._buffer  # type: ignore[attr-defined] # nothing was answered meanwhile
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_port_0_means_none() -> None:
    async with health.serving(Health(), address="", port=0):
        pass


async def test_a_port_that_is_taken_is_named() -> None:
    port = ports.free()
    async with health.serving(Health(), address="127.0.0.1", port=port):
        with pytest.raises(
            OSError, match=f"can't listen on 127.0.0.1 port {port} for health: Address already in use"
        ) as e:
            async with health.serving(Health(), address="127.0.0.1", port=port):
                raise AssertionError("it listens")
    assert e.value.errno == errno.EADDRINUSE
