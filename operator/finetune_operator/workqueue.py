"""Which runs are to be looked at, and who looks: each run once however often it was named, one worker a run, many runs
at once. Namespaces take turns: thousands of runs of one keep no other's waiting.

A failed look is repeated after a growing, jittered pause. Whatever becomes of one run, the workers go on.
"""

import asyncio
import logging
import random
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable

from finetune_operator.errors import ConflictError, TransientError
from finetune_operator.names import Key

log = logging.getLogger(__name__)

Work = Callable[[Key], Awaitable[float | None]]
"""Looks at a run. Returns the seconds after which to look again, None for no need."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 60.0


class Turns:
    """Keys in the order they came within a namespace; the namespaces one after the other."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[Key]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, key: Key) -> None:
        """To the end of its namespace's line."""
        self._lines.setdefault(key.namespace, deque()).append(key)

    def take(self) -> Key:
        """The first of the namespace whose turn it is."""
        namespace, line = next(iter(self._lines.items()))
        key = line.popleft()
        if line:
            self._lines.move_to_end(namespace)
        else:
            del self._lines[namespace]
        return key


class WorkQueue:
    """Deduplicated, delayed, backed off, fair to namespaces. Used from one event loop alone."""

    def __init__(self, work: Work, *, workers: int, jitter: Callable[[], float] = random.random) -> None:
        self._work = work
        self._workers = workers
        self._jitter = jitter
        self._ready = Turns()
        self._waiting: set[Key] = set()
        self._busy: dict[Key, float] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._arrived = asyncio.Event()

    def add(self, key: Key) -> None:
        """Look at a run soon. While it is being looked at: once more after that."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._waiting:
            return
        self._waiting.add(key)
        if key not in self._busy:
            self._ready.add(key)
            self._arrived.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Look at a run in `seconds`, unless there is an earlier reason to."""
        loop = asyncio.get_running_loop()
        known = self._timers.get(key)
        if key in self._waiting or (known is not None and known.when() <= loop.time() + seconds):
            return
        if known is not None:
            known.cancel()
        self._timers[key] = loop.call_later(seconds, self.add, key)

    @property
    def depth(self) -> int:
        """Runs that wait for a worker."""
        return len(self._waiting)

    def longest(self) -> float:
        """Seconds for which the slowest worker has been at its run."""
        now = asyncio.get_running_loop().time()
        return max((now - since for since in self._busy.values()), default=0.0)

    async def run(self) -> None:
        """Work for ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            while not self._ready:
                self._arrived.clear()
                await self._arrived.wait()
            key = self._ready.take()
            self._waiting.discard(key)
            self._busy[key] = asyncio.get_running_loop().time()
            try:
                await self._look(key)
            finally:
                del self._busy[key]
            if key in self._waiting:
                self._ready.add(key)
                self._arrived.set()

    async def _look(self, key: Key) -> None:
        try:
            again = await self._work(key)
        except Exception as error:  # noqa: BLE001 - whatever becomes of one run, the worker goes on
            _tell(key, error)
            self.add_after(key, self._pause(key, error))
        else:
            self._failures.pop(key, None)
            if again is not None:
                self.add_after(key, again)

    def _pause(self, key: Key, error: Exception) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return max(pause(failures, jitter=self._jitter()), getattr(error, "retry_after", None) or 0.0)


def pause(failures: int, *, jitter: float) -> float:
    """Seconds after so many failures in a row: doubles up to a minute, half of it random (`jitter`, 0 to 1)."""
    return float(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(failures, 16)) * (0.5 + jitter / 2))


def _tell(key: Key, error: Exception) -> None:
    if isinstance(error, ConflictError):
        log.debug("%s has changed meanwhile: %s", key, error)
    elif isinstance(error, TransientError):
        log.warning("%s is tried again: %s", key, error)
    else:
        log.error("%s can't be reconciled", key, exc_info=error)
