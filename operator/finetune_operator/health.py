"""Tells whether this process should be restarted (/healthz) and whether it is of use (/readyz), and why not.

Answered by the event loop that does the work: one that is blocked doesn't answer, and no answer is red too. It must
never look at anything that takes time, never be red for what a restart wouldn't cure, and name no namespace and no run:
whoever reaches the port may ask.
"""

import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

from aiohttp import web

from finetune_operator.resync import Resync
from finetune_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

Check = Callable[[], str | None]
"""What is wrong, None for nothing."""

LATE_SECONDS = 30.0
"""A resync that is so late is stuck."""
BUSY_SECONDS = 45.0
"""A worker that has been at one run for so long is stuck: no request takes longer than 15 s."""
DEAF_SECONDS = 25.0
"""A watch that hasn't told of a change by now has gone deaf."""


class Health:
    """What is asked when a probe comes; replaced as the process goes from one state to the next."""

    def __init__(self) -> None:
        self.trouble: Check = lambda: None
        """Why to restart it."""
        self.unready: Check = lambda: "starting"
        """Why not to count on it."""

    def answer(self, *checks: Check) -> web.Response:
        """Green, or red with the reason."""
        said = next((said for check in checks if (said := check())), None)
        return web.Response(text=f"{said or 'ok'}\n", status=503 if said else 200)


@asynccontextmanager
async def serving(health: Health, *, address: str, port: int) -> AsyncIterator[None]:
    """Answer for as long as the block lasts. Port 0 means not at all. Raises OSError for a port that is taken."""
    if not port:
        yield
        return

    async def alive(_: web.Request) -> web.Response:
        return health.answer(health.trouble)

    async def ready(_: web.Request) -> web.Response:
        return health.answer(health.trouble, health.unready)

    app = web.Application()
    app.add_routes([web.get("/healthz", alive), web.get("/readyz", ready)])
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, address or None, port).start()
        except OSError as error:
            where = f"{address or '*'} port {port}"
            raise OSError(error.errno, f"can't listen on {where} for health: {_words(error)}") from error
        yield
    finally:
        await runner.cleanup()


def _words(error: OSError) -> str:
    """What the system says: asyncio puts the address before it."""
    return os.strerror(error.errno) if error.errno else str(error)


class Watches:
    """Notices a watch that has gone deaf: a list found a change, and no event told of it."""

    def __init__(self, *, by_namespace: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._by_namespace = by_namespace
        self._clock = clock
        self._found: dict[tuple[str, str | None], float] = {}

    def found(self, kind: str, namespace: str) -> None:
        """A list held an object that no event had told of yet."""
        self._found.setdefault(self._watch(kind, namespace), self._clock())

    def told(self, kind: str, namespace: str) -> None:
        """There was an event: that watch works."""
        self._found.pop(self._watch(kind, namespace), None)

    def deaf(self) -> str | None:
        """Which one says nothing."""
        for (kind, namespace), since in self._found.items():
            silent = self._clock() - since
            if silent > DEAF_SECONDS:
                if namespace:
                    log.warning("the watch of %s in %s tells of nothing", kind, namespace)  # not to everybody who asks
                return f"the watch of {kind} hasn't told of a change that was listed {silent:.0f} s ago"
        return None

    def _watch(self, kind: str, namespace: str) -> tuple[str, str | None]:
        return kind, namespace if self._by_namespace else None


def stuck(resync: Resync, queue: WorkQueue, watches: Watches) -> Check:
    """Whether one that leads has got stuck."""

    def reasons() -> Iterator[str | None]:
        if resync.age() > resync.pause + LATE_SECONDS:
            yield f"the last good resync was {resync.age():.0f} s ago"
        if queue.longest() > BUSY_SECONDS:
            yield f"a worker has been at one run for {queue.longest():.0f} s"
        yield watches.deaf()

    return lambda: next((reason for reason in reasons() if reason), None)
