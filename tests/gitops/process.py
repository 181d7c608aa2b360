"""A program as a process beside the test control plane: it logs to a file and ends with the block."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SECONDS = 10


@contextlib.contextmanager
def running(command: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The program with these variables besides the user's, and without the user's proxies."""
    proxies = {"http_proxy", "https_proxy", "all_proxy"}
    mine = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    with log.open("ab") as out:
        process = subprocess.Popen(command, env={**mine, **environment}, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
