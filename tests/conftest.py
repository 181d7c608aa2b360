"""What holds for all tests: a property is never judged by how long an example took on a busy machine, and a file's
tests stay together when several processes share the work (`-n 2`), since what they share is started once a process.
"""

import os
import signal

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Processes with as many threads each as the machine has cores wait for each other in every matrix product.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # So a shell starts what it runs in the background; programs that tests end by SIGINT would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


class TogetherByFile(LoadFileScheduling):  # type: ignore[misc]  # xdist ships no types
    """A file's tests go to one process; those of the fault rig too, which plays all its plans in one go."""

    def _split_scope(self, nodeid: str) -> str:
        """The name of what must stay together."""
        path = nodeid.partition("::")[0]
        return "tests/faults" if path.startswith("tests/faults/") else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> TogetherByFile:
    """In the order of the files: the slow tests on real Kubernetes come first."""
    config.option.loadscopereorder = False
    return TogetherByFile(config, log)
