"""What a stranger's template may take of this process: processor time and memory, no more.

It must never end what is not its own: the bounds hold while the template is at work, and are gone after it. From the
main thread alone, since signals come there.
"""

import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SECONDS = 10.0
"""Of the processor's time: a pod that waits for its turn doesn't use it up."""
SECONDS_A_MESSAGE = 1e-4
"""More for each message that is written: ten times what ordinary templates take, so that long data isn't refused."""
MEMORY = 512 << 20
"""More than what the process has already."""
AGAIN = 1.0
"""Seconds after which a template that has swallowed its end is ended again."""


class Exceeded(Exception):
    """Why it was ended."""


class _TimeIsUp(BaseException):
    """Raised in the midst of the template. Nothing that Jinja catches."""


@dataclass
class Allowance:
    """What there is for the templates of some records; all of them together use it up."""

    seconds: float = field(default_factory=lambda: SECONDS)

    def __post_init__(self) -> None:
        signal.signal(signal.SIGPROF, _time_is_up)
        soft, self._highest = resource.getrlimit(resource.RLIMIT_AS)
        self._before, wanted = soft, _address_space() + MEMORY
        self._within = wanted if soft == resource.RLIM_INFINITY else min(wanted, soft)

    def spend(self, work: Callable[[], str], *, messages: int) -> str:
        """What `work` gives. Raises Exceeded where it takes more than there is left."""
        self.seconds += messages * SECONDS_A_MESSAGE
        started = time.process_time()
        try:
            try:
                self._begin()
                return work()
            finally:
                self._end()
        except _TimeIsUp:
            self._end()  # it may have come in the midst of the line above
            raise Exceeded(f"was ended after {SECONDS:.0f} s of processor time: it may never come to an end") from None
        except MemoryError:
            raise Exceeded(f"was ended where it took more than {MEMORY >> 20} MiB of memory") from None
        finally:
            self.seconds -= time.process_time() - started

    def _begin(self) -> None:
        global _at_work  # noqa: PLW0603 - a signal is the whole process's, and so is whether it means anything
        resource.setrlimit(resource.RLIMIT_AS, (self._within, self._highest))
        _at_work = True
        signal.setitimer(signal.ITIMER_PROF, max(self.seconds, 1e-3), AGAIN)

    def _end(self) -> None:
        global _at_work  # noqa: PLW0603 - as above
        _at_work = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (self._before, self._highest))


_at_work = False


def _time_is_up(*_: object) -> None:
    if _at_work:  # one that comes late means nothing any more
        raise _TimeIsUp


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
