"""How many writes a second may tell of progress alone, over all runs together."""

from collections.abc import Callable
from datetime import datetime

_BURST_SECONDS = 2.0


class Budget:
    """A bucket of tokens: one a write, refilled evenly, for a burst of two seconds' worth."""

    def __init__(self, *, per_second: float, clock: Callable[[], datetime]) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second * _BURST_SECONDS)
        self._left = self._most
        self._clock = clock
        self._filled = clock()

    def take(self) -> bool:
        """Take one token, if there is one."""
        now = self._clock()
        passed = max(0.0, (now - self._filled).total_seconds())
        self._left, self._filled = min(self._most, self._left + passed * self._per_second), now
        if self._left < 1:
            return False
        self._left -= 1
        return True
