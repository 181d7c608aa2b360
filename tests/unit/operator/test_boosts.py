"""Boosts are written when their step changes, taken away at once, and never at the cost of the run."""

import dataclasses
import logging
from typing import Any

import pytest
from aiohttp import web

from finetune_operator import boost, jobs
from finetune_operator.boosts import Boosts
from finetune_operator.cluster import KubernetesCluster
from finetune_operator.connection import Connection
from finetune_operator.memory import JOB, POD, Memory, Ref, stamp
from finetune_operator.names import Key
from finetune_operator.reconcile import Reconciler
from finetune_operator.settings import Settings
from finetune_operator.world import World
from tests import worlds
from tests.apiserver import ApiServer
from tests.unit.operator.test_boost import MINE, SUSPENDED, checkpoint, running, workload
from tests.unit.operator.test_policy import queued
from tests.worlds import KEY

WORKLOADS = "/apis/kueue.x-k8s.io/v1beta2/namespaces/ml/workloads"
ONE = f"{WORKLOADS}/job-1"
MINUTE = 60.0


@pytest.fixture
def boosts(api: Connection) -> Boosts:
    return Boosts(KubernetesCluster(api, cache=worlds.cache()), settings=Settings())


class Turns:
    """A budget that says how often it was asked."""

    def __init__(self, *, left: int = 1000) -> None:
        self.asked, self.left = 0, left

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked <= self.left


def play(server: ApiServer, *, priority: int = 0, classes: tuple[int, ...] = (1000,)) -> None:
    """A Workload that keeps what is written to it."""
    found = {"metadata": {"name": "job-1", "uid": "w"}, "spec": {"priority": priority}}

    async def read(_: Any) -> Any:
        return web.json_response({"items": [found]})

    async def write(request: Any) -> Any:
        given = (await request.json())["metadata"]["annotations"][boost.ANNOTATION]
        found["metadata"] = workload({boost.ANNOTATION: given} if given else None, MINE)["metadata"]
        return web.json_response(found)

    server.calls("GET", WORKLOADS, read)
    server.calls("PATCH", ONE, write)
    for path, values in zip(boost.CLASSES, (classes, (2_000_000_000,)), strict=True):
        server.on("GET", path, {"items": [{"value": value} for value in values]})


def written(server: ApiServer) -> list[str | None]:
    """Each boost, in its order; None for one that is taken away."""
    patches = [asked.body["metadata"] for asked in server.asked if asked.verb == "PATCH"]
    assert all(metadata["uid"] == "w" for metadata in patches)
    return [metadata["annotations"][boost.ANNOTATION] for metadata in patches]


async def test_a_boost_is_written_once_for_each_step(boosts: Boosts, server: ApiServer) -> None:
    play(server)
    for minute in range(130):
        await boosts.keep(running(5 + minute * MINUTE), may_write=Turns())
    assert written(server) == ["1", "2", "3", "4"]
    read = [asked.query["labelSelector"] for asked in server.asked if asked.path == WORKLOADS]
    assert set(read) == {"kueue.x-k8s.io/job-uid=job-1"}
    assert len(read) <= 20, "once for each step, and each ten minutes"


async def test_a_run_that_saves_in_time_is_never_written(boosts: Boosts, server: ApiServer) -> None:
    play(server)
    for minute in range(60):
        await boosts.keep(running(5 + minute * MINUTE, checkpoint(minute * MINUTE - 300)), may_write=Turns())
    assert written(server) == []
    assert len(server.asked) == 1, "one look, for what an operator before this one may have left"


async def test_a_checkpoint_takes_the_boost_away(boosts: Boosts, server: ApiServer) -> None:
    play(server)
    await boosts.keep(running(5 + 45 * MINUTE), may_write=Turns())
    await boosts.keep(running(5 + 46 * MINUTE, checkpoint(45 * MINUTE)), may_write=Turns())
    assert written(server) == ["3", None]


async def test_no_run_is_written_twice_within_a_minute_but_to_take_a_boost_away(
    boosts: Boosts, server: ApiServer
) -> None:
    play(server)
    await boosts.keep(running(5 + 19 * MINUTE + 30), may_write=Turns())
    await boosts.keep(running(5 + 20 * MINUTE), may_write=Turns())
    assert written(server) == ["1"]
    await boosts.keep(queued(now=worlds.at(5 + 20 * MINUTE), jobs=(SUSPENDED,)), may_write=Turns())
    assert written(server) == ["1", None]


async def test_what_waits_again_loses_its_boost_without_being_counted(boosts: Boosts, server: ApiServer) -> None:
    play(server)
    turns = Turns(left=1)
    await boosts.keep(running(5 + 45 * MINUTE), may_write=turns)
    for second in range(5):
        world = queued(now=worlds.at(2800 + second), jobs=(SUSPENDED,))
        assert await boosts.keep(world, may_write=turns) is None
    assert written(server) == ["3", None]
    assert turns.asked == 1


async def test_an_operator_that_starts_takes_away_what_another_has_left(boosts: Boosts, server: ApiServer) -> None:
    server.on("GET", WORKLOADS, {"items": [workload({boost.ANNOTATION: "3"}, MINE)]})
    server.on("PATCH", ONE, workload())
    await boosts.keep(queued(jobs=(SUSPENDED,)), may_write=Turns())
    assert written(server) == [None]


async def test_without_a_turn_nothing_is_written_and_the_next_look_tries_again(
    boosts: Boosts, server: ApiServer
) -> None:
    play(server)
    turns = Turns(left=0)
    await boosts.keep(running(1205), may_write=turns)
    await boosts.keep(running(1206), may_write=turns)
    assert (turns.asked, server.asked) == (2, [])
    await boosts.keep(running(1207), may_write=Turns())
    assert written(server) == ["2"]


@pytest.mark.parametrize(
    ("world", "seconds"),
    [
        pytest.param(running(5), 600, id="the first step"),
        pytest.param(running(5 + 599), 60, id="not within a minute"),
        pytest.param(running(5 + 700), 500, id="the second"),
        pytest.param(running(5 + 40_000), None, id="none after the last"),
        pytest.param(queued(started=False, jobs=(SUSPENDED,)), None, id="none for what hasn't run"),
    ],
)
async def test_the_next_look_is_due(boosts: Boosts, server: ApiServer, world: World, seconds: float | None) -> None:
    play(server)
    assert await boosts.keep(world, may_write=Turns()) == seconds


@pytest.mark.parametrize(
    ("classes", "given"), [((7,), ["3"]), ((3, 1000), ["2"]), ((1,), [])], ids=["far", "near", "just above"]
)
async def test_the_next_class_is_never_reached(
    boosts: Boosts, server: ApiServer, caplog: pytest.LogCaptureFixture, classes: tuple[int, ...], given: list[str]
) -> None:
    play(server, classes=classes)
    await boosts.keep(running(5 + 45 * MINUTE), may_write=Turns())
    assert written(server) == given
    assert ("the next class is just above" in caplog.text) == (given == [])


async def test_a_class_that_comes_later_counts_within_minutes(boosts: Boosts, server: ApiServer) -> None:
    play(server, classes=(1000,))
    await boosts.keep(running(5 + 45 * MINUTE), may_write=Turns())
    server.answers[("GET", boost.CLASSES[0])] = []
    server.on("GET", boost.CLASSES[0], {"items": [{"value": 2}]})
    await boosts.keep(running(5 + 55 * MINUTE), may_write=Turns())
    assert written(server) == ["3", "1"]


async def test_somebody_elses_annotation_stays(
    boosts: Boosts, server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.on("GET", WORKLOADS, {"items": [workload({boost.ANNOTATION: "-100000"}, {"manager": "booster"})]})
    await boosts.keep(running(5 + 45 * MINUTE), may_write=Turns())
    await boosts.keep(queued(now=worlds.at(3000), jobs=(SUSPENDED,)), may_write=Turns())
    assert written(server) == []
    assert "somebody else" in caplog.text


REFUSALS = {
    "no right": (403, "Forbidden"),
    "gone": (404, "NotFound"),
    "a conflict": (409, "Conflict"),
    "not valid": (422, "Invalid"),
    "too many requests": (429, "TooManyRequests"),
    "a webhook that fails": (500, "InternalError"),
}


@pytest.mark.parametrize("path", ["read", "written", "classes"])
@pytest.mark.parametrize(("code", "reason"), REFUSALS.values(), ids=REFUSALS)
async def test_what_is_refused_is_told_once_and_tried_again_after_a_minute(
    boosts: Boosts, server: ApiServer, caplog: pytest.LogCaptureFixture, code: int, reason: str, path: str
) -> None:
    play(server)
    refused = {"read": ("GET", WORKLOADS), "written": ("PATCH", ONE), "classes": ("GET", boost.CLASSES[1])}[path]
    allowed = server.answers.pop(refused)
    server.refuses(*refused, code, reason=reason, message="no")
    with caplog.at_level(logging.WARNING):
        for second in range(0, 180, 3):
            await boosts.keep(running(5 + 1300 + second), may_write=Turns())
    assert len([asked for asked in server.asked if (asked.verb, asked.path) == refused]) == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "it goes on without" in caplog.text
    server.answers[refused] = allowed
    await boosts.keep(running(5 + 1500), may_write=Turns())
    assert written(server)[-1] == "2"


async def test_a_boost_that_could_not_be_taken_away_is_tried_again_soon(boosts: Boosts, server: ApiServer) -> None:
    play(server)
    await boosts.keep(running(5 + 45 * MINUTE), may_write=Turns())
    allowed = server.answers.pop(("PATCH", ONE))
    server.refuses("PATCH", ONE, 500)
    suspended = [queued(now=worlds.at(3000 + second), jobs=(SUSPENDED,)) for second in (0, 5, 15)]
    assert await boosts.keep(suspended[0], may_write=Turns()) == 15
    server.answers["PATCH", ONE] = allowed
    assert await boosts.keep(suspended[1], may_write=Turns()) == 15
    assert await boosts.keep(suspended[2], may_write=Turns()) is None
    assert written(server) == ["3", None, None]


async def test_a_job_without_a_workload_has_nothing_to_be_boosted(
    boosts: Boosts, server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.on("GET", WORKLOADS, {"items": []})
    await boosts.keep(running(5 + 45 * MINUTE), may_write=Turns())
    assert [asked.verb for asked in server.asked] == ["GET"]
    assert caplog.records == []


async def test_another_job_begins_anew(boosts: Boosts, server: ApiServer) -> None:
    play(server)
    await boosts.keep(running(5 + 45 * MINUTE), may_write=Turns())
    again = running(5 + 45 * MINUTE + 1)
    other = dataclasses.replace(again, jobs=(dataclasses.replace(worlds.job(), uid="job-9"),))
    await boosts.keep(other, may_write=Turns())
    assert server.last().query["labelSelector"] == "kueue.x-k8s.io/job-uid=job-9"


async def test_a_run_that_is_gone_is_forgotten(boosts: Boosts, server: ApiServer) -> None:
    play(server)
    await boosts.keep(running(60), may_write=Turns())
    boosts.forget(worlds.KEY)
    boosts.forget(Key("ml", "never-seen"))
    await boosts.keep(running(61), may_write=Turns())
    assert len(server.asked) == 2


class Story:
    """A run in a queue that trains, in memory, and an operator that writes boosts to a server."""

    def __init__(self, boosts: Boosts, **changes: Any) -> None:
        self.clock = worlds.Clock()
        self.memory = Memory(clock=self.clock)
        self.memory.add(worlds.body({"queue.name": "team-a", **changes}))
        self.look = Reconciler(
            self.memory, line=self.memory.line, settings=Settings(), clock=self.clock, jitter=lambda: 0.5, boosts=boosts
        )

    def suspend(self, suspended: bool) -> None:
        """As Kueue does."""
        (job,) = self.memory.all(JOB)
        started = {} if suspended else {"startTime": stamp(self.clock())}
        self.memory.update({**job, "spec": {**job["spec"], "suspend": suspended}, "status": started})

    async def start(self) -> None:
        await self.look(KEY)
        await self.look(KEY)
        self.suspend(False)
        jobs.control(self.memory)
        jobs.start_pod(self.memory, Ref.of(self.memory.all(POD)[0]))
        await self.look(KEY)


async def test_the_loop_gives_a_boost_while_the_run_runs_and_looks_again_in_time(
    boosts: Boosts, server: ApiServer
) -> None:
    play(server)
    story = Story(boosts)
    await story.start()
    assert await story.look(KEY) == 600, "nothing else is due"
    assert written(server) == []
    story.clock.tick(600)
    await story.look(KEY)
    assert written(server) == ["1"]
    story.suspend(True)
    await story.look(KEY)
    assert written(server) == ["1", None]


async def test_a_run_that_another_manages_is_left_alone(boosts: Boosts, server: ApiServer) -> None:
    play(server)
    story = Story(boosts)
    await story.start()
    asked = len(server.asked)
    run = story.memory.get(Ref.run(KEY))
    assert run is not None
    story.memory.update({**run, "spec": {**run["spec"], "managedBy": "kueue.x-k8s.io/multikueue"}})
    story.clock.tick(7200)
    await story.look(KEY)
    assert len(server.asked) == asked


async def test_the_loop_forgets_a_run_that_is_gone(boosts: Boosts, server: ApiServer) -> None:
    play(server)
    story = Story(boosts)
    await story.start()
    await story.look(KEY)
    run, asked = story.memory.get(Ref.run(KEY)), len(server.asked)
    assert run is not None
    story.memory.delete_object(Ref.run(KEY))
    await story.look(KEY)
    story.memory.add(run)
    await story.look(KEY)
    assert len(server.asked) == asked + 1, "what is known of the Job was known of the run"
