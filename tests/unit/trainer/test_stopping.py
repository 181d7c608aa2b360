"""A stop is heard wherever the main thread is; what follows depends on whether there is something to save."""

import os
import signal
import subprocess
import sys
import time

import pytest

from finetune_api.snapshot import ExitCode

PREPARING = """
import hashlib, sys
from finetune_trainer.stopping import StopRequest
stop = StopRequest(last_act=lambda: print("last act", flush=True))
stop.listen()
"""
DEAF = "print(flush=True)\nhashlib.pbkdf2_hmac('sha256', b'', b'', 200_000_000)"
"""Minutes in a library that neither returns nor looks at signals, as a download or the load of a model may be."""


def test_in_the_middle_of_a_library_it_ends_at_once() -> None:
    process = _start(PREPARING + DEAF)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == ExitCode.STOPPED
    assert time.monotonic() - began < 15
    assert process.stdout is not None
    assert process.stdout.read() == "last act\n"


WAITS = """
stop.training_begins()
print(flush=True)
while not stop.is_requested(): pass
"""
ENDS = {
    "in training it is left to the loop": (WAITS + "sys.exit(7)", 7, ""),
    "what is asked for while memory is freed ends it too": (
        WAITS + "stop.preparing_again()\nsys.exit(7)",
        ExitCode.STOPPED,
        "last act\n",
    ),
    "at the end it changes nothing": (
        "stop.ignore()\nprint(flush=True)\nimport time\ntime.sleep(0.5)\nsys.exit(7)",
        7,
        "",
    ),
}


@pytest.mark.parametrize(("script", "code", "said"), ENDS.values(), ids=ENDS)
def test_what_becomes_of_it(script: str, code: int, said: str) -> None:
    process = _start(PREPARING + script)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == code
    assert process.stdout is not None
    assert process.stdout.read() == said


def _start(script: str) -> "subprocess.Popen[str]":
    """Start a program and wait until it has printed an empty line."""
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    assert process.stdout.readline() == "\n"
    return process
