"""The process: what it says before it does anything, and when it wants to be restarted."""

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kopf._cogs.structs.references import Insights, Resource

from finetune_operator import __main__ as main
from finetune_operator import logs
from finetune_operator.errors import TransientError
from finetune_operator.kinds import KINDS, Kind
from finetune_operator.settings import PREFIX, LogFormat, Settings
from tests import apiserver, ports
from tests.apiserver import ApiServer


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "KUBE"))}
    command = [sys.executable, "-m", "finetune_operator", *arguments]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_setting() -> None:
    found = run("--help")
    assert found.returncode == 0
    assert [name for name in Settings.model_fields if f"{PREFIX}{name}".upper() not in found.stdout] == []


def test_version() -> None:
    assert run("--version").stdout.strip() == main.VERSION


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FINETUNE_OPERATOR_WORKERS", "many"), ("FINETUNE_OPERATOR_POLL_SECONDS", "0"), ("FINETUNE_OPERATOR_TYPO", "1")],
)
def test_a_setting_that_is_wrong_is_named_in_one_line(variable: str, value: str) -> None:
    found = run(**{variable: value})
    assert found.returncode == os.EX_USAGE
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith(f"finetune-operator: {variable} ")
    assert value in found.stderr


def test_without_a_cluster_it_says_so_in_one_line(tmp_path: Path) -> None:
    found = run(KUBECONFIG=str(tmp_path / "none"))
    assert found.returncode == os.EX_USAGE
    assert found.stderr.startswith("finetune-operator: KUBECONFIG no API server to talk to")
    assert found.stderr.count("\n") == 1


@pytest.fixture
def untouched_logging() -> Any:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before


def test_a_record_is_one_json_object_a_line(untouched_logging: Any) -> None:
    stream = StringIO()
    logs.configure(LogFormat.AUTO, stream=stream)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("finetune_operator.x").exception("it %s", "failed")
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == ("ERROR", "finetune_operator.x", "it failed")
    assert "ValueError: two\nlines" in found["exception"]


def test_libraries_are_heard_from_warnings_on(untouched_logging: Any) -> None:
    stream = StringIO()
    logs.configure(LogFormat.TEXT, stream=stream)
    logging.getLogger("kopf.objects").info("chatter")
    logging.getLogger("kopf.objects").warning("trouble")
    assert stream.getvalue().count("\n") == 1
    assert "WARNING trouble" in stream.getvalue()


def test_a_port_that_is_taken_is_named_in_one_line(tmp_path: Path) -> None:
    config = apiserver.kubeconfig(tmp_path / "kubeconfig", server="http://127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        chosen = {"BIND_ADDRESS": "127.0.0.1", "METRICS_PORT": port, "LOG_FORMAT": "text"}
        found = run(KUBECONFIG=str(config), **{PREFIX + name: value for name, value in chosen.items()})
    assert found.returncode == os.EX_OSERR
    said = f"can't listen on 127.0.0.1 port {port} for metrics: Address already in use"
    assert found.stderr == f"finetune-operator: {said}\n"


def test_a_health_port_that_is_taken_is_named_in_one_line(tmp_path: Path) -> None:
    config = apiserver.kubeconfig(tmp_path / "kubeconfig", server="http://127.0.0.1:1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        chosen = {"BIND_ADDRESS": "127.0.0.1", "METRICS_PORT": "0", "HEALTH_PORT": port, "LOG_FORMAT": "text"}
        found = run(KUBECONFIG=str(config), **{PREFIX + name: value for name, value in chosen.items()})
    assert found.returncode == os.EX_OSERR
    said = f"can't listen on 127.0.0.1 port {port} for health: Address already in use"
    assert found.stderr == f"finetune-operator: {said}\n"


async def forever() -> None:
    await asyncio.Event().wait()


async def test_it_does_not_go_on_when_one_of_its_tasks_has_ended() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    good, bad = asyncio.create_task(forever()), asyncio.create_task(broken())
    with pytest.raises(ZeroDivisionError):
        await main._until_one_ends([good, bad])
    await main._stop([good])
    assert good.cancelled()


@dataclass
class Operator:
    """One process, and what it may be asked."""

    process: asyncio.subprocess.Process
    log: Path
    health_port: int

    async def says(self, path: str) -> str:
        """What it answers at /healthz or /readyz."""
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(f"http://127.0.0.1:{self.health_port}{path}") as response,
        ):
            return (await response.text()).strip()

    async def leaves(self) -> float:
        """Ask it to leave; the seconds until it has, with success."""
        began = time.monotonic()
        self.process.terminate()
        async with asyncio.timeout(10):
            assert await self.process.wait() == 0, self.log.read_text()
        return time.monotonic() - began


Start = Callable[..., Awaitable[Operator]]


@pytest.fixture
async def start(server: ApiServer, tmp_path: Path) -> AsyncIterator[Start]:
    """Start an operator at that API server; it is gone at the end of the test."""
    started: list[Operator] = []

    async def start(**settings: str) -> Operator:
        config = apiserver.kubeconfig(tmp_path / "kubeconfig", server=server.url)
        chosen = {"BIND_ADDRESS": "127.0.0.1", "METRICS_PORT": "0", "HEALTH_PORT": str(ports.free())}
        chosen |= {"LOG_FORMAT": "text", "LEASE_SECONDS": "0"} | settings
        log = tmp_path / "log"
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "finetune_operator"),
                env=os.environ | {"KUBECONFIG": str(config)} | {PREFIX + name: value for name, value in chosen.items()},
                stderr=file,
            )
        started.append(Operator(process, log, int(chosen["HEALTH_PORT"])))
        return started[-1]

    yield start
    for operator in started:
        if operator.process.returncode is None:
            operator.process.kill()
            await operator.process.wait()


def lists_nothing(server: ApiServer) -> None:
    for kind in KINDS:
        server.on("GET", kind.path(), {"items": [], "metadata": {"resourceVersion": "1"}})


def hangs(server: ApiServer, verb: str, *paths: str) -> asyncio.Event:
    """Never answer; the event tells when one was asked."""
    asked = asyncio.Event()

    async def hang(_: web.Request) -> web.StreamResponse:
        asked.set()
        await asyncio.sleep(60)
        return web.Response()

    for path in paths:
        server.calls(verb, path, hang)
    return asked


SOON = 4.0
"""Twice what is promised, since other tests share the machine; kopf by itself would take five seconds."""
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"


async def test_it_leaves_soon_while_the_api_server_says_nothing_of_the_lease(server: ApiServer, start: Start) -> None:
    asked = hangs(server, "GET", f"{LEASES}/finetune-operator")
    operator = await start(LEASE_SECONDS="12")
    await asked.wait()
    assert await operator.says("/healthz") == "ok", "waiting is no reason to be restarted"
    assert await operator.says("/readyz") == "the lease hasn't been seen yet"
    assert await operator.leaves() < SOON


async def test_it_leaves_soon_in_the_middle_of_the_first_list(server: ApiServer, start: Start) -> None:
    asked = hangs(server, "GET", KINDS[0].path())
    operator = await start()
    await asked.wait()
    assert await operator.says("/healthz") == "ok"
    assert await operator.says("/readyz") == "not everything has been listed yet"
    assert await operator.leaves() < SOON


async def test_it_leaves_soon_while_kopf_waits_for_an_answer(server: ApiServer, start: Start) -> None:
    """Kopf itself would go on for five seconds."""
    lists_nothing(server)
    asked = hangs(server, "GET", "/apis", "/api")
    operator = await start()
    await asked.wait()
    assert await operator.says("/readyz") == "ok"
    assert await operator.leaves() < SOON


async def test_it_leaves_soon_while_the_api_server_is_away(server: ApiServer, start: Start) -> None:
    lists_nothing(server)
    away = asyncio.Event()

    async def refuse(_: web.Request) -> web.StreamResponse:
        away.set()
        return web.Response(status=500)

    server.calls("GET", "/apis", refuse)
    server.calls("GET", "/api", refuse)
    operator = await start()
    await away.wait()
    assert await operator.leaves() < SOON


def answers_a_lease(server: ApiServer) -> dict[str, Any]:
    """One Lease, as an API server has it; what is in it."""
    found: dict[str, Any] = {}

    async def read(_: web.Request) -> web.StreamResponse:
        return web.json_response(found) if found else web.json_response({"message": "none"}, status=404)

    async def create(request: web.Request) -> web.StreamResponse:
        found.update(await request.json())
        found["metadata"]["resourceVersion"] = "1"
        return web.json_response(found)

    async def patch(request: web.Request) -> web.StreamResponse:
        spec = {**found["spec"], **(await request.json())["spec"]}
        found["spec"] = {key: value for key, value in spec.items() if value is not None}
        return web.json_response(found)

    server.calls("GET", f"{LEASES}/finetune-operator", read)
    server.calls("POST", LEASES, create)
    server.calls("PATCH", f"{LEASES}/finetune-operator", patch)
    return found


async def test_leaving_it_releases_the_lease(server: ApiServer, start: Start) -> None:
    lease = answers_a_lease(server)
    asked = hangs(server, "GET", KINDS[0].path())
    operator = await start(LEASE_SECONDS="12")
    await asked.wait()
    assert lease["spec"]["holderIdentity"]
    assert server.last().headers["User-Agent"].endswith(f"({lease['spec']['holderIdentity']})")
    assert await operator.leaves() < SOON
    assert "holderIdentity" not in lease["spec"]
    assert "renewTime" not in lease["spec"]


async def test_ending_through_an_error_it_releases_the_lease_too(server: ApiServer, start: Start) -> None:
    lease = answers_a_lease(server)
    operator = await start(LEASE_SECONDS="12")
    assert await operator.process.wait() == os.EX_USAGE
    assert "FineTuneRun or ClusterFineTuneProfile is not known to this API server" in operator.log.read_text()
    assert "holderIdentity" not in lease["spec"]


async def test_its_lease_taken_it_ends_at_once_and_leaves_it_alone(server: ApiServer, start: Start) -> None:
    lease = answers_a_lease(server)
    asked = hangs(server, "GET", KINDS[0].path())
    operator = await start(LEASE_SECONDS="3")
    await asked.wait()
    server.answers[("PATCH", f"{LEASES}/finetune-operator")].clear()
    server.refuses("PATCH", f"{LEASES}/finetune-operator", 409, reason="Conflict")
    lease["spec"]["holderIdentity"] = "another"
    async with asyncio.timeout(5):
        assert await operator.process.wait() == os.EX_TEMPFAIL
    assert "the lease is lost" in operator.log.read_text()
    assert lease["spec"]["holderIdentity"] == "another"


async def test_a_list_that_never_ends_well_turns_it_red(server: ApiServer, start: Start) -> None:
    asked = asyncio.Event()

    async def refuse(_: web.Request) -> web.StreamResponse:
        asked.set()
        return web.Response(status=500)

    server.calls("GET", KINDS[0].path(), refuse)
    operator = await start(RESYNC_SECONDS="1")
    await asked.wait()
    began = time.monotonic()
    while (said := await operator.says("/healthz")) == "ok":
        assert time.monotonic() - began < 60
        await asyncio.sleep(0.5)
    assert "the last good resync was" in said
    assert time.monotonic() - began > 25, "a short absence is no trouble"
    assert operator.process.returncode is None


async def test_a_process_whose_event_loop_is_blocked_does_not_answer(server: ApiServer, start: Start) -> None:
    asked = hangs(server, "GET", KINDS[0].path())
    operator = await start()
    await asked.wait()
    operator.process.send_signal(signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        await operator.says("/healthz")
    operator.process.send_signal(signal.SIGCONT)
    assert await operator.says("/healthz") == "ok"


@pytest.mark.parametrize("missing", [kind.plural for kind in KINDS])
async def test_a_kind_that_discovery_left_out_is_a_reason_to_start_again(missing: str) -> None:
    found = insights(*(kind for kind in KINDS if kind.plural != missing))
    with pytest.raises(TransientError, match=f"left out {missing}, "):
        await main._see_that_all_is_watched(found)


async def test_discovery_that_is_whole_is_none() -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(main._see_that_all_is_watched(insights(*KINDS)), 0.05)


def insights(*watched: Kind) -> Insights:
    """What kopf has found out."""
    found = Insights()
    found.watched_resources.update(Resource(group=k.group, version=k.version, plural=k.plural) for k in watched)
    found.ready_resources.set()
    return found
