"""SIGTERM and SIGINT: the process leaves, and is gone two seconds later whatever it is stuck in.

A thread of its own waits for them, so that neither a blocked event loop nor a library's own signal handlers matter. It
asks the event loop to leave in order, and ends the process when that takes too long. It never writes anything: what an
orderly leave would have released expires by itself.
"""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LEAVE_SECONDS = 1.6
"""From a signal to the end of the process."""


class Leaving:
    """Whether the process was asked to leave. One a process."""

    def __init__(self, *, end: Callable[[int], object] = os._exit) -> None:
        self._end = end
        self._asked = threading.Event()
        self._tell: Callable[[], object] | None = None
        self._lock = threading.Lock()

    def take_signals(self) -> None:
        """From the main thread, before any other thread is started: they all inherit that signals are not theirs."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def asked(self) -> asyncio.Event:
        """An event of the running loop, set when the process has been asked to leave."""
        event, loop = asyncio.Event(), asyncio.get_running_loop()
        with self._lock:
            self._tell = lambda: loop.call_soon_threadsafe(event.set)
            if self._asked.is_set():
                event.set()
        return event

    def end_soon(self, code: int) -> None:
        """The process ends with `code` unless it has ended by itself before."""
        threading.Thread(target=self._end_later, args=(code,), name="end", daemon=True).start()

    def _wait(self) -> None:
        signal.sigwait(SIGNALS)
        self.ask()
        self._end_later(os.EX_OK)

    def ask(self) -> None:
        """To leave."""
        with self._lock:
            self._asked.set()
            if self._tell is not None:
                self._tell()

    def _end_later(self, code: int) -> None:
        time.sleep(LEAVE_SECONDS)
        self._end(code)
