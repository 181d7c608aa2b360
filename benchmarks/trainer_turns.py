"""Processes that take turns: each goes on by one step when it is told to, while the others wait.

A process says STEP on its standard output when a step has ended, and its result as a JSON object at its end; it goes on
when it has been sent a line, and leaves when nothing can come any more. What else it prints goes to standard error.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TextIO

STEP = "step"


class Turns:
    """Within a process: its steps, in seconds of wall time and of CPU time. The first has no beginning, and is 0."""

    def __init__(self, words: TextIO, signs: TextIO) -> None:
        self._words, self._signs = words, signs
        self._began: tuple[float, float] | None = None
        self.wall: list[float] = []
        self.cpu: list[float] = []

    @classmethod
    def of_this_process(cls) -> Self:
        """What is printed from now on goes to standard error."""
        words = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return cls(words, sys.stdin)

    def step_ended(self) -> None:
        """Wait for the next turn."""
        now = (time.perf_counter(), time.process_time())
        wall, cpu = self._began or now
        self.wall.append(now[0] - wall)
        self.cpu.append(now[1] - cpu)
        print(STEP, file=self._words, flush=True)
        if not self._signs.readline():
            sys.exit("the benchmark is gone")
        self._began = (time.perf_counter(), time.process_time())

    def end(self, result: Mapping[str, Any]) -> None:
        """Say what was found, and wait: leaving takes seconds of work, too."""
        print(json.dumps(result), file=self._words, flush=True)
        self._signs.read()


class Side:
    """Such a process, from without. It is started, and has come to the end of its first step."""

    result: dict[str, Any]
    """What it said at its end."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment)
        )

    def __enter__(self) -> Self:
        if not self._goes_on():
            sys.exit(f"there was no step to measure: {self.result}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.communicate()  # closes what it reads from

    def takes_a_turn(self) -> bool:
        """Let it go on until its next step has ended; returns False when it has come to its end instead."""
        print(file=self._process.stdin, flush=True)
        return self._goes_on()

    def _goes_on(self) -> bool:
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if not said:
            sys.exit(f"{' '.join(self._process.args)} ended with code {self._process.wait()}")  # type: ignore[arg-type]
        if said != STEP:
            self.result = json.loads(said)
        return said == STEP
