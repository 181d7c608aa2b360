"""A full list of everything, before kopf starts and then again and again, since no watch is trusted alone: it finds
what a watch lost, forgets what is gone, and has every unfinished run looked at. It never decides anything itself.

A list of 15,000 runs took an API server on two busy cores 30 pages of 0.4 s, so after one that took long the pause is
longer: lists take a fifth of the time, up to a pause of a minute.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from finetune_operator import kinds
from finetune_operator.cache import Cache
from finetune_operator.connection import Connection
from finetune_operator.errors import GoneError, OperatorError, TransientError, UserError
from finetune_operator.kinds import Kind
from finetune_operator.names import Key
from finetune_operator.settings import Settings

log = logging.getLogger(__name__)

_FIRST_PAUSE = 1.0
_NEXT_PAUSE = 5.0
_REST = 4
_LONGEST_PAUSE = 60.0


class Resync:
    """Fills the cache by lists, and wakes the runs that need a look."""

    def __init__(
        self,
        connection: Connection,
        *,
        cache: Cache,
        wake: Callable[[Key], None],
        done: Callable[[], None],
        settings: Settings,
        found: Callable[[str, str], None] = lambda _kind, _namespace: None,
    ) -> None:
        """`found` is told the kind and namespace of what has changed and no watch had told of, but by `first`."""
        self._connection = connection
        self._cache = cache
        self._wake = wake
        self._done = done
        self._settings = settings
        self._found = found
        self._last = self._moved = time.monotonic()
        self._pause = settings.resync_seconds

    @property
    def pause(self) -> float:
        """Seconds between the last one that went well and the next."""
        return self._pause

    def age(self) -> float:
        """Seconds since the last one that went well, or since one that is under way got its last part."""
        return time.monotonic() - max(self._last, self._moved)

    async def first(self) -> None:
        """The barrier before anything starts: returns once a full list has succeeded.

        Raises UserError where waiting doesn't help.
        """
        while True:
            try:
                return await self.once(found=lambda _kind, _namespace: None)
            except GoneError as error:
                kinds_of_ours = f"{kinds.RUN.name} or {kinds.PROFILE.name}"
                raise UserError(kinds_of_ours, "is not known to this API server; kubectl apply -f crds/") from error
            except TransientError as error:
                log.warning("waiting for the API server: %s", error)
                await asyncio.sleep(error.retry_after or _FIRST_PAUSE)

    async def run(self) -> None:
        """For ever. One that fails is soon followed by the next: what waits for the API server waits for that.

        `age` tells how long that goes on.
        """
        wait = self._pause
        while True:
            await asyncio.sleep(wait)
            try:
                await self.once()
                wait = self._pause
            except OperatorError as error:
                wait = min(self._settings.resync_seconds, max(_NEXT_PAUSE, getattr(error, "retry_after", None) or 0.0))
                log.warning("resync failed, the last good one was %.0f s ago: %s", self.age(), error)

    async def once(self, *, found: Callable[[str, str], None] | None = None) -> None:
        """List everything."""
        stirred: set[Key] = set()
        began = time.monotonic()
        try:
            for kind in kinds.KINDS:
                for namespace in (kind.is_namespaced and self._settings.namespaces) or (None,):
                    stirred |= await self._list(kind, namespace, found=found or self._found)
        except OperatorError:
            self._moved = self._last
            raise
        stirred |= {run.key for run in self._cache.active()}
        for key in stirred:
            self._wake(key)
        self._last = time.monotonic()
        at_most = max(_LONGEST_PAUSE, self._settings.resync_seconds)
        self._pause = min(max(self._settings.resync_seconds, _REST * (self._last - began)), at_most)
        self._done()

    async def _list(self, kind: Kind, namespace: str | None, *, found: Callable[[str, str], None]) -> set[Key]:
        stirred: set[Key] = set()
        seen: list[str] = []
        version = "0"
        async for chunk in self._connection.list(kind.path(namespace), selector=kind.selector):
            version, self._moved = chunk.version, time.monotonic()
            for body in chunk.items:
                key = self._cache.put(kind, body)
                if key:
                    stirred.add(key)
                    found(kind.name, body["metadata"]["namespace"])
                seen.append(body["metadata"]["uid"])
        return stirred | self._cache.prune(kind, namespace=namespace, seen=seen, version=version)
