"""The process: what it says before it does anything, and when it wants to be restarted."""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from finetune_operator import __main__ as main
from finetune_operator import logs
from finetune_operator.kinds import KINDS
from finetune_operator.settings import PREFIX, LogFormat, Settings
from tests import apiserver
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


class Part:
    """A resync or a queue, as far as the probe looks at it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def age(self) -> float:
        return self._seconds

    def longest(self) -> float:
        return self._seconds


@pytest.mark.parametrize(
    ("age", "busy", "resync_seconds", "said"),
    [
        (59, 0, 1, None),
        (61, 0, 1, "the last good resync was 61 s ago"),
        (61, 0, 30, None),
        (91, 0, 30, "the last good resync was 91 s ago"),
        (0, 179, 30, None),
        (0, 181, 30, "a worker has been at one run for 181 s"),
    ],
)
def test_when_it_wants_to_be_restarted(age: float, busy: float, resync_seconds: float, said: str | None) -> None:
    resync: Any = Part(age)
    queue: Any = Part(busy)
    assert main.trouble(resync, queue, settings=Settings(resync_seconds=resync_seconds)) == said


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


async def forever() -> None:
    await asyncio.Event().wait()


async def test_it_does_not_go_on_when_one_of_its_tasks_has_ended() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    good, bad = asyncio.create_task(forever()), asyncio.create_task(broken())
    with pytest.raises(ZeroDivisionError):
        await main._until_one_ends([good, bad], forever(), asked=asyncio.Event())
    assert good.cancelled()


async def test_it_lets_kopf_end_in_its_own_time() -> None:
    task, ended = asyncio.create_task(forever()), False

    async def shell() -> None:
        nonlocal ended
        await main._stop([task])  # as the clean-up handler does
        await asyncio.sleep(0.05)
        ended = True

    await main._until_one_ends([task], shell(), asked=asyncio.Event())
    assert ended


async def test_asked_to_end_it_ends_well_whatever_kopf_is_at() -> None:
    asked = asyncio.Event()

    async def shell() -> None:
        asked.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(asyncio.sleep(60))
    async with asyncio.timeout(30):
        await main._until_one_ends([task], shell(), asked=asked)
    assert task.cancelled()


async def test_it_leaves_soon_while_the_api_server_is_away(server: ApiServer, tmp_path: Path) -> None:
    """Kopf itself would go on for five seconds."""
    for kind in KINDS:
        server.on("GET", kind.path(), {"items": [], "metadata": {"resourceVersion": "1"}})
    away = asyncio.Event()

    async def refuse(_: web.Request) -> web.StreamResponse:
        away.set()
        return web.Response(status=500)

    server.calls("GET", "/apis", refuse)
    server.calls("GET", "/api", refuse)
    config = apiserver.kubeconfig(tmp_path / "kubeconfig", server=server.url)
    chosen = {"BIND_ADDRESS": "127.0.0.1", "METRICS_PORT": "0", "HEALTH_PORT": "0"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "finetune_operator"),
        env=os.environ | {"KUBECONFIG": str(config)} | {PREFIX + name: value for name, value in chosen.items()},
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(60):
        await away.wait()
        process.terminate()
        async with asyncio.timeout(4.5):
            assert await process.wait() == 0
