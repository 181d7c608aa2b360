"""Work that a thread of its own does, piece by piece: whoever hands it over never waits, and a hang ends nothing.

The queue has an end: what comes when it is full is dropped and counted. A signal handler may hand something over in the
middle of another's doing so.
"""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

QUEUED = 10_000


class Background(Generic[T]):
    """Does `work` with each piece, told how many before it were dropped; `work` returning False is the end of it."""

    def __init__(self, work: Callable[[T, int], bool], *, name: str) -> None:
        self._work = work
        self._pieces: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._dropped = 0
        self._thread = threading.Thread(target=self._go_on, name=name, daemon=True)
        self._thread.start()

    def put(self, piece: T) -> None:
        """Hand a piece over."""
        if self._pieces.qsize() >= QUEUED:
            self._dropped += 1
        else:
            self._pieces.put(piece)

    def drain(self, timeout: float) -> None:
        """Finish what was handed over, or give up after `timeout` seconds."""
        self._pieces.put(None)
        self._thread.join(timeout)

    def _go_on(self) -> None:
        while (piece := self._pieces.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            if not self._work(piece, dropped):
                return
