"""The poller: whom it asks, how often, and what it doesn't believe."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from finetune_api.snapshot import PORT, SNAPSHOT_LIMIT
from finetune_operator import kinds, poller
from finetune_operator.cache import Cache
from finetune_operator.connection import Connection
from finetune_operator.errors import TransientError
from finetune_operator.names import Key
from finetune_operator.poller import Access, Poller, Target
from finetune_operator.settings import PodAccess, Settings
from tests import apiserver, bodies, worlds
from tests.apiserver import ApiServer
from tests.worlds import KEY, UID

HOSTS = (f"127.{50 + os.getpid() % 100}.{os.getpid() // 100 % 250}.{number}" for number in itertools.count(1))
"""Addresses of this machine that no other test listens on."""


def target(ip: str = "10.0.0.7") -> Target:
    return Target(key=KEY, run_uid=UID, attempt=1, pod="support-bot-1-abcde", pod_uid="pod-1", ip=ip, trains=False)


@pytest.fixture
def cache() -> Cache:
    """A run whose first attempt runs."""
    found = worlds.cache()
    found.put(kinds.RUN, worlds.body(status=worlds.status()))
    found.put(kinds.JOB, bodies.job())
    found.put(kinds.POD, bodies.running())
    return found


class Trainers:
    """Answers for the pods, one after the other, and what came of it."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[Target] = []
        self.woken: list[Key] = []
        self.failures = 0
        self._change = asyncio.Event()

    async def __call__(self, asked: Target) -> bytes:
        self.asked.append(asked)
        self._change.set()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def failed(self) -> None:
        self.failures += 1

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.asked) < count:
                self._change.clear()
                await self._change.wait()


@asynccontextmanager
async def polling(trainers: Trainers, cache: Cache, **settings: Any) -> AsyncIterator[Poller]:
    chosen = Settings(**{"poll_seconds": 0.01, "training_poll_seconds": 0.01, **settings})
    found = Poller(trainers, cache=cache, wake=trainers.woken.append, failed=trainers.failed, settings=chosen)
    task = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.wait([task])


def said(**changes: Any) -> bytes:
    return worlds.snapshot(**changes).encode().encode()


async def test_what_a_trainer_says_is_kept_and_wakes_its_run_when_it_is_news(cache: Cache) -> None:
    trainers = Trainers(said(batch=1), said(batch=1), said(batch=2))
    async with polling(trainers, cache) as found:
        found.follow(KEY)
        found.follow(KEY)
        await trainers.until(6)
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert world.snapshot == worlds.snapshot(2)
    assert trainers.woken == [KEY, KEY]
    assert trainers.failures == 0
    assert trainers.asked[0] == target()


async def test_a_trainer_that_trains_is_asked_less_often(cache: Cache) -> None:
    trainers = Trainers(said(batch=None), said(batch=1))
    async with polling(trainers, cache, training_poll_seconds=60) as found:
        found.follow(KEY)
        await trainers.until(3)
        await asyncio.sleep(0.1)
    assert [asked.trains for asked in trainers.asked] == [False, False, True]


@pytest.mark.parametrize(
    "answer",
    [
        TransientError("refused"),
        b"",
        b"<html>",
        b'{"version": 1}',
        said(run_uid="another"),
        said(attempt=2),
        b"[" * 60_000,
        said() + b" " * SNAPSHOT_LIMIT,
    ],
    ids=[
        "no answer",
        "empty",
        "no JSON",
        "too little",
        "another run",
        "another attempt",
        "nested too deep",
        "too long",
    ],
)
async def test_what_is_no_answer_is_counted_and_asked_again(cache: Cache, answer: bytes | Exception) -> None:
    trainers = Trainers(answer)
    async with polling(trainers, cache) as found:
        found.follow(KEY)
        await trainers.until(2)
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert world.snapshot is None
    assert trainers.woken == []
    assert trainers.failures >= 1


def gone(cache: Cache) -> None:
    cache.delete(kinds.POD, bodies.running(version=11))


def ended(cache: Cache) -> None:
    cache.put(kinds.POD, bodies.pod(version=11, status={"phase": "Succeeded"}))


def finished(cache: Cache) -> None:
    condition = {"type": "Finished", "status": "True", "reason": "x", "lastTransitionTime": "2026-03-01T12:00:00Z"}
    cache.put(kinds.RUN, worlds.body(status={"attempt": 1, "conditions": [condition]}, resourceVersion="8"))


@pytest.mark.parametrize("end", [gone, ended, finished])
async def test_nobody_is_asked_after_the_end(cache: Cache, end: Callable[[Cache], None]) -> None:
    trainers = Trainers(said())
    async with polling(trainers, cache) as found:
        found.follow(KEY)
        await trainers.until(2)
        end(cache)
        await asyncio.sleep(0.05)
        count = len(trainers.asked)
        await asyncio.sleep(0.05)
        assert len(trainers.asked) == count


@pytest.mark.parametrize(
    "pod",
    [
        bodies.pod(version=11, status={"phase": "Pending", "podIP": "10.0.0.7"}),
        bodies.running(version=11, ip=""),
        bodies.running(version=11, metadata={"ownerReferences": [{"controller": True, "uid": "another-job"}]}),
        bodies.running(version=11, metadata={"ownerReferences": None}),
    ],
    ids=["not running yet", "without an address", "of another Job", "of nobody"],
)
async def test_only_running_pods_of_the_attempts_own_job_are_asked(cache: Cache, pod: Any) -> None:
    cache.put(kinds.POD, pod)
    trainers = Trainers(said())
    async with polling(trainers, cache) as found:
        found.follow(KEY)
        await asyncio.sleep(0.03)
    assert trainers.asked == []


async def test_the_next_attempts_trainer_is_asked_when_the_first_has_ended(cache: Cache) -> None:
    trainers = Trainers(said())
    async with polling(trainers, cache) as found:
        found.follow(KEY)
        await trainers.until(1)
        ended(cache)
        await asyncio.sleep(0.03)
        cache.put(kinds.RUN, worlds.body(status=worlds.status(2), resourceVersion="8"))
        cache.put(kinds.JOB, bodies.job(2))
        cache.put(kinds.POD, bodies.running(2))
        found.follow(KEY)
        count = len(trainers.asked)
        await trainers.until(count + 1)
    assert trainers.asked[-1].attempt == 2


@pytest.fixture
async def pod() -> AsyncIterator[ApiServer]:
    """A pod with an address of its own."""
    async with apiserver.serving(host=next(HOSTS), port=PORT) as found:
        yield found


def address(pod: ApiServer) -> str:
    return pod.url.removeprefix("http://").partition(":")[0]


async def ask(pod: ApiServer, *, seconds: float = 5) -> bytes:
    async with poller.session(seconds=seconds) as session:
        return await poller.by_address(session)(target(address(pod)))


async def test_by_its_address_a_pod_is_asked_without_a_credential(pod: ApiServer) -> None:
    pod.on("GET", "/progress", {"a": 1})
    assert await ask(pod) == b'{"a": 1}'
    assert "Authorization" not in pod.last().headers


async def test_a_pod_cannot_send_the_operator_elsewhere(pod: ApiServer) -> None:
    pod.on("GET", "/progress", status=302, headers={"Location": "/secrets"})
    with pytest.raises(TransientError, match="status 302"):
        await ask(pod)
    assert [asked.path for asked in pod.asked] == ["/progress"]


async def test_a_pod_cannot_fill_the_operators_memory(pod: ApiServer) -> None:
    sent = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while sent < 50_000_000:
            await response.write(b"x" * 10_000)
            sent += 10_000
        return response

    pod.calls("GET", "/progress", flood)
    assert SNAPSHOT_LIMIT < len(await ask(pod)) <= 2 * SNAPSHOT_LIMIT + 1
    assert sent < 50_000_000


async def test_a_pod_cannot_keep_the_operator_waiting(pod: ApiServer) -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1000):
            await response.write(b" ")
            await asyncio.sleep(0.05)
        return response

    pod.calls("GET", "/progress", drip)
    with pytest.raises(TransientError, match="TimeoutError"):
        await ask(pod, seconds=0.2)


async def test_nobody_at_the_address_is_trouble_outside() -> None:
    async with poller.session() as session:
        with pytest.raises(TransientError):
            await poller.by_address(session)(target(next(HOSTS)))


async def test_through_the_proxy_a_pod_is_asked_by_its_name(api: Connection, server: ApiServer) -> None:
    server.on("GET", f"/api/v1/namespaces/ml/pods/support-bot-1-abcde:{PORT}/proxy/progress", {"a": 1})
    assert await poller.by_proxy(api)(target()) == b'{"a": 1}'


@pytest.mark.parametrize(
    ("access", "in_cluster", "direct"),
    [
        (PodAccess.AUTO, True, True),
        (PodAccess.AUTO, False, False),
        (PodAccess.DIRECT, False, True),
        (PodAccess.PROXY, True, False),
    ],
)
async def test_the_way_to_the_pods(
    api: Connection, monkeypatch: pytest.MonkeyPatch, access: PodAccess, in_cluster: bool, direct: bool
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1" if in_cluster else "")
    async with poller.session() as session:
        found: Access = poller.choose(Settings(pod_access=access), connection=api, session=session)
    assert (found.__qualname__ == poller.by_address(session).__qualname__) is direct
