"""Keeps the processes of a control plane and its temporary folder from outliving whoever asked for them.

`controlplane.py` starts it as `python -I -S supervisor.py FOLDER` and sends one JSON line for each process to start.
When its standard input ends, because the parent closed it or died of whatever cause, it kills every process and removes
the folder. A process that ends by itself leaves its exit code in FOLDER/<name>.exit. Standard library alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """In the forked child: end when the supervisor does, were it killed itself."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start(order: dict[str, object], *, folder: Path) -> subprocess.Popen[bytes]:
    """Run one process with its output in FOLDER/<name>.log."""
    argv = order["argv"]
    assert isinstance(argv, list)
    with (folder / f"{order['name']}.log").open("ab") as log:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            preexec_fn=die_with_parent,  # noqa: PLW1509  # there is one thread
        )


def note_exits(running: dict[str, subprocess.Popen[bytes]], *, folder: Path) -> None:
    """Write down what has ended since the last look."""
    for name in [name for name, process in running.items() if process.poll() is not None]:
        (folder / f"{name}.exit").write_text(f"{running.pop(name).returncode}\n")


def remove(folder: Path) -> None:
    """Remove the folder; what pods still write while they die may make that take more than one go."""
    deadline = time.monotonic() + 10
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def main() -> int:
    """Serve until standard input ends."""
    folder = Path(sys.argv[1])
    running: dict[str, subprocess.Popen[bytes]] = {}
    wakeup, notify = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(notify)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pending = b""
    try:
        while True:
            ready, _, _ = select.select([0, wakeup], [], [])
            if wakeup in ready:
                os.read(wakeup, 512)
                note_exits(running, folder=folder)
            if 0 in ready:
                received = os.read(0, 65536)
                if not received:
                    return 0
                *orders, pending = (pending + received).split(b"\n")
                for order in map(json.loads, orders):
                    running[order["name"]] = start(order, folder=folder)
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            process.wait()
        remove(folder)


if __name__ == "__main__":
    sys.exit(main())
