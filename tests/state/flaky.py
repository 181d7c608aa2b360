"""A Cluster that fails on purpose: crashes before or after a write, lost requests and replies, reads of the past."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from enum import Enum, auto
from typing import Any

from finetune_api.status import FineTuneRunStatus
from finetune_operator import kueue
from finetune_operator.children import Job, Pod
from finetune_operator.errors import ConflictError, TransientError
from finetune_operator.memory import Memory
from finetune_operator.names import Key
from finetune_operator.run import Run
from finetune_operator.world import ChildWarning, World

REMEMBERED = 8


class Crash(BaseException):
    """The operator is gone in the middle of a pass."""


class Fault(Enum):
    """What befalls a write."""

    CRASH_BEFORE = auto()
    CRASH_AFTER = auto()
    LOST_REQUEST = auto()
    LOST_REPLY = auto()
    CONFLICT = auto()


class Flaky:
    """`Memory` seen through a bad network. `plan` says what befalls the next writes, by their number from 0."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.plan: dict[int, Fault] = {}
        self.stale = 0
        """Reads that needn't be fresh are so many reads old."""
        self.tried = 0
        """Writes since the plan was made."""
        self.done = 0
        """Writes that the cluster took."""
        self.on_delete: Callable[[Run, Job | Pod], None] = lambda _run, _child: None
        """Told before a child is deleted."""
        self.deleted: list[Run] = []
        """Runs that were to be deleted."""
        self._past: dict[Key, list[World | None]] = {}

    async def observe(self, key: Key, *, fresh: bool, now: datetime) -> World | None:
        found = await self.memory.observe(key, fresh=fresh, now=now)
        past = self._past[key] = [*self._past.get(key, [])[-REMEMBERED:], found]
        seen = found if fresh else past[max(0, len(past) - 1 - self.stale)]
        return seen and replace(seen, now=now)

    async def warnings(self, world: World) -> tuple[ChildWarning, ...]:
        return await self.memory.warnings(world)

    async def workload(self, world: World) -> kueue.Workload | kueue.Silence:
        return await self.memory.workload(world)

    async def create(self, run: Run, manifest: Mapping[str, Any]) -> None:
        strike = self._before()
        await self.memory.create(run, manifest)
        self.done += 1
        strike()

    async def delete(self, run: Run, child: Job | Pod) -> None:
        strike = self._before()
        self.on_delete(run, child)
        await self.memory.delete(run, child)
        self.done += 1
        strike()

    async def delete_run(self, run: Run) -> None:
        strike = self._before()
        self.deleted.append(run)
        await self.memory.delete_run(run)
        self.done += 1
        strike()

    async def write_status(self, run: Run, new: FineTuneRunStatus) -> Run:
        strike = self._before()
        written = await self.memory.write_status(run, new)
        self.done += 1
        strike()
        return written

    async def post_event(self, manifest: Mapping[str, Any]) -> None:
        """Never raises, but for a crash."""
        number, self.tried = self.tried, self.tried + 1
        fault = self.plan.get(number)
        if fault is Fault.CRASH_BEFORE:
            raise Crash
        await self.memory.post_event(manifest)
        self.done += 1
        if fault is Fault.CRASH_AFTER:
            raise Crash

    def _before(self) -> Callable[[], None]:
        """Count a write, and fail it if it is to fail before it is done; returns what fails it after."""
        number, self.tried = self.tried, self.tried + 1
        match self.plan.get(number):
            case Fault.CRASH_BEFORE:
                raise Crash
            case Fault.LOST_REQUEST:
                raise TransientError("connection refused")
            case Fault.CONFLICT:
                raise ConflictError("somebody was faster")
            case Fault.CRASH_AFTER:
                return lambda: _raise(Crash())
            case Fault.LOST_REPLY:
                return lambda: _raise(TransientError("connection reset"))
            case _:
                return lambda: None


def _raise(error: BaseException) -> None:
    raise error
