"""Starts operators by forking a process that has loaded everything already, so that a start costs no second of CPU.

`python -m tests.faults.zygote` reads one JSON line for each operator to start ({"id", "environment", "log",
"planted"}) and answers {"id", "pid"}, and {"pid", "code"} when it has ended. A forked operator runs the very `main` of
the package, with its own environment and its own seed. When standard input ends, every operator is killed.
`planted` names a defect of `planted.py`; the package itself has no switch for it.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import select
import signal
import sys
import traceback
from typing import Any

from finetune_operator import __main__ as operator
from tests.faults import planted

PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)


def start(order: dict[str, Any]) -> int:
    """Fork an operator; its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = _be_an_operator(order)
    except BaseException:  # noqa: BLE001 - nothing may escape into the loop of the parent's copy
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _be_an_operator(order: dict[str, Any]) -> int:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for here, there in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(here, there)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(order["environment"])
    random.seed()
    if order["planted"]:
        planted.install(order["planted"])
    return operator.main([])


def say(**said: Any) -> None:
    """One line for whoever started this."""
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


def reap(living: set[int]) -> None:
    """Tell of those that have ended."""
    for pid in list(living):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            living.discard(pid)
            say(pid=pid, code=os.waitstatus_to_exitcode(status))


def main() -> int:
    """Serve until standard input ends."""
    living: set[int] = set()
    wakeup, notify = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(notify)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pending = b""
    say(ready=True)
    try:
        while True:
            ready, _, _ = select.select([0, wakeup], [], [])
            if wakeup in ready:
                os.read(wakeup, 512)
                reap(living)
            if 0 in ready:
                received = os.read(0, 65536)
                if not received:
                    return 0
                *orders, pending = (pending + received).split(b"\n")
                for order in map(json.loads, orders):
                    pid = start(order)
                    living.add(pid)
                    say(id=order["id"], pid=pid)
    finally:
        for pid in living:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
