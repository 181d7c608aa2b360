"""Adds up the seconds that one kind of work takes, so that a step can say how much of it that was."""

import time
from types import TracebackType


class Stopwatch:
    """Runs in `with` blocks; one that lies in another counts once."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._depth = 0
        self._since = 0.0

    def __enter__(self) -> None:
        if self._depth == 0:
            self._since = time.perf_counter()
        self._depth += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._seconds += time.perf_counter() - self._since

    def taken(self) -> float:
        """Seconds since this was asked last."""
        found, self._seconds = self._seconds, 0.0
        return found
