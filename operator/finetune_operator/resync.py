"""A full list of everything, before kopf starts and then again and again, since no watch is trusted alone: it finds
what a watch lost, forgets what is gone, and has every unfinished run looked at. It never decides anything itself.
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
    ) -> None:
        self._connection = connection
        self._cache = cache
        self._wake = wake
        self._done = done
        self._settings = settings
        self._last = time.monotonic()

    def age(self) -> float:
        """Seconds since the last one that went well."""
        return time.monotonic() - self._last

    async def first(self) -> None:
        """The barrier before anything starts: returns once a full list has succeeded.

        Raises UserError where waiting doesn't help.
        """
        while True:
            try:
                return await self.once()
            except GoneError as error:
                raise UserError("FineTuneRun", "is not known to this API server; kubectl apply -f crds/") from error
            except TransientError as error:
                log.warning("waiting for the API server: %s", error)
                await asyncio.sleep(error.retry_after or _FIRST_PAUSE)

    async def run(self) -> None:
        """For ever. One that fails is followed by the next; `age` tells how long that goes on."""
        while True:
            await asyncio.sleep(self._settings.resync_seconds)
            try:
                await self.once()
            except OperatorError as error:
                log.warning("resync failed, the last good one was %.0f s ago: %s", self.age(), error)

    async def once(self) -> None:
        """List everything."""
        stirred: set[Key] = set()
        for kind in kinds.KINDS:
            for namespace in self._settings.namespaces or (None,):
                stirred |= await self._list(kind, namespace)
        stirred |= {run.key for run in self._cache.active()}
        for key in stirred:
            self._wake(key)
        self._last = time.monotonic()
        self._done()

    async def _list(self, kind: Kind, namespace: str | None) -> set[Key]:
        stirred: set[Key] = set()
        seen: list[str] = []
        version = "0"
        async for chunk in self._connection.list(kind.path(namespace), selector=kind.selector):
            version = chunk.version
            for body in chunk.items:
                key = self._cache.put(kind, body)
                stirred |= {key} if key else set()
                seen.append(body["metadata"]["uid"])
        return stirred | self._cache.prune(kind, namespace=namespace, seen=seen, version=version)
