"""What a step gives back waits in the process for the next step, and goes to the system when it is told to."""

import json
import os
import platform
import subprocess
import sys
from typing import Any

import pytest

from finetune_trainer import memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc of another C library")

BLOCK = 40_000_000
PROGRAM = """
import json, os, resource, psutil, torch
from finetune_trainer import memory

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones({block}, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = {{"before": min(step() for _ in range(3)), "kept": memory.keep_heap(os.environ)}}
found["after"] = min(step() for _ in range(5))
resident = psutil.Process().memory_info().rss
memory.give_back_heap()
found["given_back"] = resident - psutil.Process().memory_info().rss
print(json.dumps(found))
"""


def test_the_next_step_finds_the_memory_of_the_last_one() -> None:
    """Page faults of the step with fewest: the first ones may find what lies between too small by an alignment."""
    found = _run()
    assert found["kept"] is True
    assert found["after"] < 10 <= found["before"]  # pages of 4 KiB, or of 2 MiB


def test_it_is_given_back_when_that_is_asked_for() -> None:
    assert _run()["given_back"] > BLOCK * 0.9


@pytest.mark.parametrize(
    "setting", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_who_has_set_up_malloc_keeps_what_was_set(setting: dict[str, str]) -> None:
    found = _run(**setting)
    assert found["kept"] is False
    assert found["after"] >= 10


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert memory.keep_heap({}) is False
    memory.give_back_heap()


def _run(**environment: str) -> dict[str, Any]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM.format(block=BLOCK)]
    ended = subprocess.run(command, env=plain | environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(ended.stdout)
    return found
