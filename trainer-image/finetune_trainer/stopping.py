"""SIGTERM: while there is nothing to save the process ends at once, in training at the next place where that is safe.

A thread hears the signal, since the main one may be inside a library's download or load for minutes. A second signal
changes nothing.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable

from finetune_api.snapshot import ExitCode

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Whether somebody asked the training to stop."""

    def __init__(self, *, last_act: Callable[[], None]) -> None:
        """`last_act` is done before the process ends in the middle of preparations."""
        self._last_act = last_act
        self._requested = False
        self._waits = False
        self._lock = threading.Lock()
        self._heard, self._ear = socket.socketpair()

    def listen(self) -> None:
        """Take SIGTERM, and SIGINT of a terminal. From the main thread."""
        self._heard.setblocking(False)
        signal.set_wakeup_fd(self._heard.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._hear, name="stop-request", daemon=True).start()

    def training_begins(self) -> None:
        """From now on a stop waits until the loop asks for it."""
        with self._lock:
            self._waits = True

    def preparing_again(self) -> None:
        """There is nothing to save again: a stop, also one asked for already, ends the process at once."""
        with self._lock:
            self._waits = False
            if self._requested:
                self._end()

    def ignore(self) -> None:
        """How the process ends is decided."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        self.training_begins()

    def is_requested(self) -> bool:
        """Whether to save and end."""
        return self._requested

    def _hear(self) -> None:
        while number := self._ear.recv(1):
            if number[0] in SIGNALS and not self._requested:
                self._note()

    def _note(self) -> None:
        with self._lock:
            self._requested = True
            if not self._waits:  # an exception in the main thread could be swallowed by whatever is at work there
                self._end()

    def _end(self) -> None:
        self._last_act()
        os._exit(ExitCode.STOPPED)
