"""Operators as processes, killed by a fault and started again as a kubelet would.

`Operators` speaks with one `zygote`; `Kubelet` keeps one operator of a plan alive and counts its exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from finetune_operator.settings import PREFIX

BACK_OFF = 0.3
"""Between an exit and the next start. A kubelet starts at once, and waits longer after each further exit."""


class Operators:
    """Starts operators quickly."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count()
        self._starting: dict[int, asyncio.Future[int]] = {}
        self._ends: dict[int, asyncio.Future[int]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def ready(cls) -> AsyncIterator[Operators]:
        """All that were started end with the block."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.faults.zygote", stdin=-1, stdout=-1, start_new_session=True
        )
        assert process.stdout
        assert json.loads(await process.stdout.readline()) == {"ready": True}
        found = cls(process)
        listener = asyncio.create_task(found._listen())
        try:
            yield found
            assert not listener.done(), "the listener has failed"
        finally:
            listener.cancel()
            assert process.stdin
            process.stdin.close()
            await process.wait()

    async def start(
        self, *, environment: Mapping[str, str], log: Path, planted: str
    ) -> tuple[int, asyncio.Future[int]]:
        """The pid of a new operator, and its exit code when there is one."""
        number = next(self._ids)
        self._starting[number] = asyncio.get_running_loop().create_future()
        order = {"id": number, "environment": dict(environment), "log": str(log), "planted": planted}
        assert self._process.stdin
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        pid = await self._starting[number]
        return pid, self._ends[pid]

    async def _listen(self) -> None:
        assert self._process.stdout
        while line := await self._process.stdout.readline():
            said = json.loads(line)
            if "id" in said:
                self._ends[said["pid"]] = asyncio.get_running_loop().create_future()
                waiting = self._starting.pop(said["id"])
                if waiting.cancelled():  # whoever asked for it has ended meanwhile
                    os.kill(said["pid"], signal.SIGKILL)
                else:
                    waiting.set_result(said["pid"])
            else:
                ended = self._ends.pop(said["pid"])
                if not ended.cancelled():
                    ended.set_result(said["code"])


class Kubelet:
    """Keeps one operator alive; `crash` is the only exit that is planned."""

    def __init__(self, operators: Operators, *, log: Path, planted: str = "") -> None:
        self._operators = operators
        self._log, self._planted = log, planted
        self.exits: list[int] = []
        """Codes of exits that nobody planned."""
        self.kills = 0
        """How often it ended by a crash that was planned."""
        self.down = asyncio.Event()
        """It was crashed and isn't to be started until `up`."""
        self._up = asyncio.Event()
        self._pid: int | None = None
        self._crashed: int | None = None
        """The pid that was killed last; an operator can also end by a SIGKILL of its own: kopf's, when it hangs."""

    def crash(self) -> None:
        """SIGKILL; it stays down until `up`."""
        self.down.set()
        self._up.clear()
        assert self._pid is not None, "a request came from it"
        self._crashed = self._pid
        os.kill(self._pid, signal.SIGKILL)

    def up(self) -> None:
        """It may be started again."""
        self.down.clear()
        self._up.set()

    async def run(self, environment: Mapping[str, str]) -> None:
        """For ever; the last operator is killed when this is cancelled."""
        self._up.set()
        while True:
            await self._up.wait()
            self._pid, ended = await self._operators.start(
                environment=environment, log=self._log, planted=self._planted
            )
            try:
                code = await asyncio.shield(ended)
            except asyncio.CancelledError:
                os.kill(self._pid, signal.SIGKILL)
                await ended
                raise
            planned, self._pid = self._pid == self._crashed, None
            if planned:
                self.kills += 1
            else:
                self.exits.append(code)
                await asyncio.sleep(BACK_OFF)


def environment(**settings: Any) -> dict[str, str]:
    """The environment of an operator with these settings, and nothing of the tests' own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return kept | {f"{PREFIX}{name}".upper(): str(value) for name, value in settings.items()}
