"""Has the priority boosts written that `boost` wants: few, and never at the cost of the run.

A Workload is read before each write, since it may be new, and again after a while, since the classes may be. What
can't be written is told once in the log and tried again later. It must never raise for that, nor touch an annotation
that somebody else has set.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from finetune_operator import boost
from finetune_operator.boost import Boosted
from finetune_operator.errors import OperatorError
from finetune_operator.names import Key
from finetune_operator.recent import Recent
from finetune_operator.settings import Settings
from finetune_operator.world import World

log = logging.getLogger(__name__)

_PAUSE = timedelta(minutes=1)
"""Between two writes for one run, but to take a boost away."""
_GOOD = timedelta(minutes=10)
"""So long a boost is taken to be as it was left."""
_CLASSES_GOOD = timedelta(minutes=2)
_AGAIN = timedelta(seconds=15)
"""After a boost couldn't be taken away."""


class Workloads(Protocol):
    """Where Kueue's objects are read and written."""

    async def boosted(self, key: Key, *, job_uid: str) -> Sequence[Boosted]:
        """The Workload of a Job, if it has one."""

    async def priorities(self) -> Sequence[int]:
        """The values of all priority classes."""

    async def write_boost(self, key: Key, found: Boosted, value: int) -> None:
        """Give exactly this Workload a boost; 0 takes it away."""


@dataclass(frozen=True, kw_only=True)
class _Done:
    """What was last tried for a run."""

    job_uid: str
    wanted: int
    well: bool
    time: datetime


class Boosts:
    """Those of all runs."""

    def __init__(self, workloads: Workloads, *, settings: Settings) -> None:
        self._workloads = workloads
        self._first = timedelta(seconds=settings.kueue_priority_boost_seconds)
        self._pause = min(_PAUSE, self._first)
        self._done: dict[Key, _Done] = {}
        self._classes = Recent[Sequence[int]](keep=_CLASSES_GOOD)
        self._turn = asyncio.Lock()
        self._told: set[str] = set()

    async def keep(self, world: World, *, may_write: Callable[[], bool]) -> float | None:
        """Bring the Workload's boost to where it should be. Returns the seconds after which that is to be looked at.

        `may_write` is asked before a boost is given, never before one is taken away.
        """
        key, job = world.run.key, world.job
        if job is None or not boost.concerns(world):
            self._done.pop(key, None)
            return None
        stake = boost.at_stake(world)
        wanted = boost.wanted(stake, first=self._first)
        if self._is_due(self._done.get(key), job_uid=job.uid, wanted=wanted, now=world.now) and (
            wanted == 0 or may_write()
        ):
            well = await self._bring(world.run.key, job.uid, wanted, now=world.now)
            self._done[key] = _Done(job_uid=job.uid, wanted=wanted, well=well, time=world.now)
        return self._next_look(key, stake)

    def forget(self, key: Key) -> None:
        """The run is gone."""
        self._done.pop(key, None)

    def _next_look(self, key: Key, stake: timedelta | None) -> float | None:
        done, left = self._done.get(key), boost.next_step(stake, first=self._first)
        if done is not None and not done.well:
            return self._rest(done.wanted).total_seconds()
        return None if left is None else max(left, self._pause).total_seconds()

    def _rest(self, wanted: int) -> timedelta:
        """After what didn't go well."""
        return self._pause if wanted else min(self._pause, _AGAIN)

    def _is_due(self, done: _Done | None, *, job_uid: str, wanted: int, now: datetime) -> bool:
        """Whether anything has to be read or written."""
        if done is None or done.job_uid != job_uid:
            return True
        if done.wanted != wanted:
            return wanted == 0 or now - done.time >= self._pause
        if not done.well:
            return now - done.time >= self._rest(wanted)
        return wanted > 0 and now - done.time >= _GOOD

    async def _bring(self, key: Key, job_uid: str, wanted: int, *, now: datetime) -> bool:
        """Whether all is as wanted, or as somebody else wants it."""
        try:
            for found in await self._workloads.boosted(key, job_uid=job_uid):
                await self._change(key, found, wanted, now=now)
        except OperatorError as error:
            self._tell(type(error).__name__, f"the priority boost of {key} can't be set, it goes on without: {error}")
            return False
        return True

    async def _change(self, key: Key, found: Boosted, wanted: int, *, now: datetime) -> None:
        if found.by_another:
            self._tell("another", f"Workload {found.name} of {key} has a priority boost of somebody else, which stays")
            return
        room = boost.room(found.priority, await self._priorities(now=now)) if wanted else 0
        if wanted and room == 0:
            self._tell("room", f"Workload {found.name} of {key} gets no priority boost: the next class is just above")
        value = min(wanted, room)
        if found.boost != (str(value) if value else ""):
            await self._workloads.write_boost(key, found, value)
            log.info("%s: priority boost of Workload %s is %d", key, found.name, value)

    async def _priorities(self, *, now: datetime) -> Sequence[int]:
        """The values of all priority classes, as they were a moment ago."""
        async with self._turn:
            known = self._classes.get("", now=now)
            return self._classes.put("", await self._workloads.priorities(), now=now) if known is None else known

    def _tell(self, about: str, message: str) -> None:
        """Once for each kind of trouble."""
        log.log(logging.DEBUG if about in self._told else logging.WARNING, message)
        self._told.add(about)
