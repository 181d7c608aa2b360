"""The resync: the barrier before everything, and what a watch lost."""

import asyncio
from types import SimpleNamespace

import pytest
from aiohttp import web

from finetune_operator import kinds
from finetune_operator import resync as resync_module
from finetune_operator.cache import Cache
from finetune_operator.connection import Connection
from finetune_operator.errors import RefusedError, UserError
from finetune_operator.kinds import KINDS, Kind
from finetune_operator.names import Key
from finetune_operator.resync import Resync
from finetune_operator.settings import Settings
from tests import bodies, builders, worlds
from tests.apiserver import ApiServer
from tests.worlds import KEY, UID


class Told:
    """What the resync told others."""

    def __init__(self) -> None:
        self.woken: list[Key] = []
        self.rounds = 0
        self.again = asyncio.Event()

    def done(self) -> None:
        self.rounds += 1
        self.again.set()


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def cache() -> Cache:
    return worlds.cache()


def resync(api: Connection, cache: Cache, told: Told, **settings: object) -> Resync:
    chosen = Settings.model_validate({"resync_seconds": 0.02, **settings})
    return Resync(api, cache=cache, wake=told.woken.append, done=told.done, settings=chosen)


def lists(server: ApiServer, kind: Kind, *items: object, version: int = 50, namespace: str | None = None) -> None:
    server.answers.pop(("GET", kind.path(namespace)), None)
    server.on("GET", kind.path(namespace), {"items": items, "metadata": {"resourceVersion": str(version)}})


@pytest.fixture(autouse=True)
def empty(server: ApiServer) -> None:
    for kind in KINDS:
        lists(server, kind)


async def test_everything_is_listed_and_what_is_unfinished_is_looked_at(
    api: Connection, server: ApiServer, cache: Cache, told: Told
) -> None:
    ended = {"type": "Finished", "status": "True", "reason": "x", "lastTransitionTime": builders.CREATED}
    over = worlds.body(uid="over", name="over", status={"conditions": [ended]})
    lists(server, kinds.RUN, worlds.body(), over)
    lists(server, kinds.JOB, bodies.job())
    found = resync(api, cache, told)
    await found.once()
    assert sorted(told.woken) == [KEY._replace(name="over"), KEY]
    told.woken.clear()
    await found.once()
    assert told.woken == [KEY], "nothing is new, and only one goes on"
    assert told.rounds == 2
    assert found.age() < 5
    selectors = {asked.path: asked.query.get("labelSelector") for asked in server.asked}
    assert selectors == {kind.path(): kind.selector or None for kind in KINDS}


async def test_what_a_watch_never_told_is_found_and_forgotten(
    api: Connection, server: ApiServer, cache: Cache, told: Told
) -> None:
    cache.put(kinds.RUN, worlds.body())
    cache.put(kinds.JOB, bodies.job())
    lists(server, kinds.RUN, worlds.body())
    await resync(api, cache, told).once()
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert world.jobs == ()
    assert told.woken == [KEY]


async def test_the_namespaces_that_are_served_are_listed_one_by_one(
    api: Connection, server: ApiServer, cache: Cache, told: Told
) -> None:
    own = [kind for kind in KINDS if kind.is_namespaced]
    for namespace in ("ml", "other"):
        for kind in own:
            lists(server, kind, namespace=namespace)
    lists(server, kinds.RUN, worlds.body(), namespace="ml")
    await resync(api, cache, told, namespaces=("ml", "other")).once()
    assert cache.world(KEY, now=worlds.NOW), "the second namespace's list says nothing of the first"
    by_namespace = {kind.path(ns) for kind in own for ns in ("ml", "other")}
    assert {asked.path for asked in server.asked} == by_namespace | {kinds.PROFILE.path()}


async def test_the_barrier_waits_for_an_api_server_that_is_not_there_yet(
    api: Connection, server: ApiServer, cache: Cache, told: Told
) -> None:
    server.answers.clear()
    server.refuses("GET", kinds.RUN.path(), 503, Retry_After="0.01")
    for kind in KINDS:
        server.on("GET", kind.path(), {"items": [], "metadata": {"resourceVersion": "1"}})
    await resync(api, cache, told).first()
    assert told.rounds == 1


async def test_without_the_crd_it_says_what_to_apply(
    api: Connection, server: ApiServer, cache: Cache, told: Told
) -> None:
    server.answers.clear()
    with pytest.raises(UserError, match="FineTuneProfile: is not known to this API server; kubectl apply -f crds/"):
        await resync(api, cache, told).first()


async def test_without_rights_it_says_whose(api: Connection, server: ApiServer, cache: Cache, told: Told) -> None:
    server.answers.clear()
    server.refuses("GET", KINDS[0].path(), 403, message='User "x" cannot list resource "finetuneruns"')
    with pytest.raises(RefusedError, match="cannot list"):
        await resync(api, cache, told).first()


async def test_one_that_fails_is_followed_by_the_next_and_the_age_tells(
    api: Connection, server: ApiServer, cache: Cache, told: Told
) -> None:
    found = resync(api, cache, told)
    await found.once()
    cache.put(kinds.JOB, bodies.job())
    lists(server, kinds.RUN, worlds.body())
    server.answers[("GET", kinds.JOB.path())].clear()
    refused = asyncio.Semaphore(0)

    async def refuse(_: web.Request) -> web.StreamResponse:
        refused.release()
        return web.Response(status=500)

    server.calls("GET", kinds.JOB.path(), refuse)
    told.again.clear()
    task = asyncio.create_task(found.run())
    async with asyncio.timeout(5):
        for _ in range(3):
            await refused.acquire()
    assert told.rounds == 1
    async with asyncio.timeout(5):
        while found.age() < 0.02:  # noqa: ASYNC110 - it is young again while one is under way
            await asyncio.sleep(0.001)
    lists(server, kinds.JOB, bodies.job(metadata={"ownerReferences": [{"controller": True, "uid": UID}]}))
    async with asyncio.timeout(5):
        await told.again.wait()
    assert not task.done()
    task.cancel()


@pytest.mark.parametrize(
    ("took", "configured", "pause"), [(1, 30, 30), (7.5, 30, 30), (10, 30, 40), (100, 30, 60), (100, 90, 90)]
)
async def test_after_one_that_took_long_the_pause_is_longer(
    api: Connection,
    server: ApiServer,
    cache: Cache,
    told: Told,
    monkeypatch: pytest.MonkeyPatch,
    took: float,
    configured: float,
    pause: float,
) -> None:
    found = resync(api, cache, told, resync_seconds=configured)
    assert found.pause == configured
    clock = iter([0.0])
    monkeypatch.setattr(resync_module, "time", SimpleNamespace(monotonic=lambda: next(clock, float(took))))
    await found.once()
    assert found.pause == pause


async def test_one_that_is_slow_but_moves_is_not_old(
    api: Connection, server: ApiServer, cache: Cache, told: Told
) -> None:
    found = resync(api, cache, told)
    await found.once()
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(_: web.Request) -> web.StreamResponse:
        asked.set()
        await answer.wait()
        return web.json_response({"items": [], "metadata": {"resourceVersion": "50"}})

    server.answers.pop(("GET", kinds.CLAIM.path()))
    server.calls("GET", kinds.CLAIM.path(), slow)
    await asyncio.sleep(0.2)
    task = asyncio.create_task(found.once())
    await asked.wait()
    assert found.age() < 0.2, "three of four kinds are there"
    answer.set()
    await task


async def test_what_no_watch_told_is_passed_on_but_for_the_first_list(
    api: Connection, server: ApiServer, cache: Cache, told: Told
) -> None:
    missed: list[tuple[str, str]] = []
    chosen = Settings.model_validate({"resync_seconds": 0.02})
    found = Resync(
        api,
        cache=cache,
        wake=told.woken.append,
        done=told.done,
        settings=chosen,
        found=lambda *where: missed.append(where),
    )
    lists(server, kinds.RUN, worlds.body())
    await found.first()
    assert missed == [], "nothing is watched yet"
    lists(server, kinds.JOB, bodies.job())
    await found.once()
    await found.once()
    assert missed == [("Job", KEY.namespace)], "the second time it was known"
