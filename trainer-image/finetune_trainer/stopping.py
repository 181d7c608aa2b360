"""SIGTERM: while there is nothing to save the process ends at once, in training at the end of the step.

A second signal changes nothing.
"""

import os
import signal
from collections.abc import Callable
from types import FrameType

from finetune_api.snapshot import ExitCode


class StopRequest:
    """Whether somebody asked the training to stop."""

    def __init__(self, *, last_act: Callable[[], None]) -> None:
        """`last_act` is done before the process ends in the middle of preparations."""
        self._last_act = last_act
        self._requested = False
        self._training = False

    def listen(self) -> None:
        """Take SIGTERM, and SIGINT of a terminal."""
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)

    def training_begins(self) -> None:
        """From now on a stop waits for the end of the step."""
        self._training = True

    def ignore(self) -> None:
        """How the process ends is decided."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def is_requested(self) -> bool:
        """Whether to save and end."""
        return self._requested

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        if self._requested:
            return
        self._requested = True
        if not self._training:  # an exception could be swallowed by whatever library is at work
            self._last_act()
            os._exit(ExitCode.STOPPED)
