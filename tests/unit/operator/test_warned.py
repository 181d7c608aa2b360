"""Warnings about what runs wait for: newest first, and never more than the API server can bear."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web

from finetune_operator import waiting, warned
from finetune_operator.connection import Connection
from finetune_operator.warned import Warnings
from tests import worlds
from tests.apiserver import ApiServer

EVENTS = "/api/v1/namespaces/ml/events"


@pytest.fixture
def warnings(api: Connection) -> Warnings:
    return Warnings(api)


def warning(kind: str, reason: str, **time: str) -> Any:
    created = {"metadata": {"creationTimestamp": "2026-03-01T12:00:00Z"}}
    return {"involvedObject": {"kind": kind, "name": "x"}, "reason": reason, "message": "why", **created, **time}


async def ask(warnings: Warnings, *uids: str, later: float = 0.0) -> list[str]:
    children = [worlds.pod(uid=uid) for uid in uids]
    now = worlds.NOW + timedelta(seconds=later)
    return [found.reason for found in await warnings.about(children, namespace="ml", now=now)]


def uids_asked(server: ApiServer) -> list[str]:
    selectors = [asked.query["fieldSelector"].split(",") for asked in server.asked]
    assert all(kind == "type=Warning" for _, kind in selectors)
    return [uid.removeprefix("involvedObject.uid=") for uid, _ in selectors]


async def test_the_newest_comes_first(warnings: Warnings, server: ApiServer) -> None:
    claim = warning("PersistentVolumeClaim", "Second", lastTimestamp="2026-03-01T12:00:02Z")
    pod = [warning("Pod", "First"), warning("Pod", "Third", eventTime="2026-03-01T12:00:03Z")]
    server.on("GET", EVENTS, {"items": [claim]})
    server.on("GET", EVENTS, {"items": pod})
    assert await ask(warnings, "claim-1", "pod-1") == ["Third", "Second", "First"]
    assert uids_asked(server) == ["claim-1", "pod-1"]


async def test_an_answer_is_good_for_a_while(warnings: Warnings, server: ApiServer) -> None:
    server.on("GET", EVENTS, {"items": [warning("Pod", "Before")]})
    server.on("GET", EVENTS, {"items": [warning("Pod", "After")]})
    assert [await ask(warnings, "pod-1", later=seconds) for seconds in (0, 9, 11)] == [
        ["Before"],
        ["Before"],
        ["After"],
    ]
    assert len(server.asked) == 2


async def test_one_list_at_a_time_and_the_others_make_do_with_what_they_had(
    warnings: Warnings, server: ApiServer
) -> None:
    server.on("GET", EVENTS, {"items": [warning("Pod", "Before")]})
    assert await ask(warnings, "pod-2") == ["Before"]
    arrived, held = asyncio.Event(), asyncio.Event()

    async def slow(_: web.Request) -> web.StreamResponse:
        arrived.set()
        await held.wait()
        return web.json_response({"items": [warning("Pod", "Slow")]})

    server.answers.clear()
    server.calls("GET", EVENTS, slow)
    first = asyncio.create_task(ask(warnings, "pod-1"))
    await arrived.wait()
    assert await ask(warnings, "pod-2", later=60) == ["Before"]
    assert await ask(warnings, "pod-3") == []
    held.set()
    assert await first == ["Slow"]
    assert uids_asked(server) == ["pod-2", "pod-1"]


@pytest.mark.parametrize(("rest", "asked"), [(0, ["pod-1", "pod-2"]), (1e9, ["pod-1"])])
async def test_a_list_is_followed_by_a_rest_of_a_multiple_of_its_time(
    warnings: Warnings, server: ApiServer, monkeypatch: pytest.MonkeyPatch, rest: float, asked: list[str]
) -> None:
    monkeypatch.setattr(warned, "_REST", rest)
    server.on("GET", EVENTS, {"items": []})
    await ask(warnings, "pod-1")
    await ask(warnings, "pod-2")
    assert uids_asked(server) == asked


async def test_a_list_that_fails_gives_its_turn_back(warnings: Warnings, server: ApiServer) -> None:
    server.refuses("GET", EVENTS, 403)
    with pytest.raises(Exception, match="403"):
        await ask(warnings, "pod-1")
    server.answers.clear()
    server.on("GET", EVENTS, {"items": [warning("Pod", "Now")]})
    assert await ask(warnings, "pod-1") == ["Now"]


@pytest.mark.parametrize(
    ("there", "uids"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param({"jobs": (worlds.job(),)}, ["job-1"], id="a Job without a pod"),
        pytest.param({"jobs": (worlds.job(),), "pods": (worlds.pod(),)}, ["pod-1"], id="a pod"),
        pytest.param({"jobs": (worlds.job(),), "claim": worlds.claim()}, ["job-1"], id="a claim that is bound"),
        pytest.param(
            {"jobs": (worlds.job(),), "claim": worlds.claim(phase="Pending")}, ["claim-1", "job-1"], id="one that isn't"
        ),
    ],
)
def test_what_a_run_waits_for(there: Any, uids: list[str]) -> None:
    world = worlds.world(worlds.run(status=worlds.status()), **there)
    assert [child.uid for child in waiting.explained_by(world)] == uids
