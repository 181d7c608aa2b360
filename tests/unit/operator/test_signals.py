"""Leaving on a signal: in order if that works, and anyhow if not."""

import os
import signal
import subprocess
import sys
import time

import pytest

from finetune_operator import signals

STORY = """
import asyncio, os, sys, time
from finetune_operator.signals import Leaving

leaving = Leaving()
leaving.take_signals()
{before}

async def serve():
    asked = leaving.asked()
    print("up", flush=True)
    {inside}
    print("left", flush=True)

asyncio.run(serve())
"""


def leave(number: int, *, before: str = "", inside: str = "await asked.wait()") -> tuple[int, str, float]:
    """Exit code, what was printed, and the seconds from the signal to the end."""
    command = [sys.executable, "-c", STORY.format(before=before, inside=inside)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        began = time.monotonic()
        process.send_signal(number)
        printed = process.stdout.read()
        return process.wait(timeout=10), printed, time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_it_leaves_in_order(number: int) -> None:
    code, printed, _ = leave(number)
    assert (code, printed) == (0, "left\n")


@pytest.mark.parametrize(
    "inside",
    [
        pytest.param("time.sleep(60)", id="a blocked event loop"),
        pytest.param("exec('while True: pass')", id="a busy event loop"),
        pytest.param("await asyncio.Event().wait()", id="nobody listens"),
        pytest.param("await asyncio.to_thread(time.sleep, 60)", id="a thread that goes on"),
    ],
)
def test_stuck_it_is_gone_soon_all_the_same(inside: str) -> None:
    code, printed, seconds = leave(signal.SIGTERM, inside=inside)
    assert (code, printed) == (0, "")
    assert signals.LEAVE_SECONDS <= seconds < 2 * signals.LEAVE_SECONDS


def test_handlers_that_a_library_installs_do_not_matter() -> None:
    inside = """
    import signal
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: sys.exit(3))
    print("up", flush=True) if False else None
    await asked.wait()"""
    code, printed, _ = leave(signal.SIGTERM, inside=inside)
    assert (code, printed) == (0, "left\n")


def test_asked_before_the_loop_runs_it_leaves_at_once() -> None:
    early = "import signal; os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.3)"
    command = [sys.executable, "-c", STORY.format(before=early, inside="await asked.wait()")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    assert (found.returncode, found.stdout) == (0, "up\nleft\n")


def test_what_does_not_end_after_an_error_is_ended() -> None:
    ended: list[int] = []
    signals.Leaving(end=ended.append).end_soon(os.EX_OSERR)
    time.sleep(signals.LEAVE_SECONDS / 2)
    assert ended == []
    time.sleep(signals.LEAVE_SECONDS)
    assert ended == [os.EX_OSERR]
