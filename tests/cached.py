"""What tests, checks and benchmarks install beside the development environment, whose pins it could change.

It lies in the cache, named after its hash-pinned list and this Python, and is installed on the first use; whoever comes
second waits for the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

UV = str(Path(sys.executable).parent / "uv")


def folder(name: str, pins: Path, *, install: Callable[[Path], None]) -> Path:
    """The folder that `install` fills. What was left half-done is done again."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"
    tag = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()[:12]
    found = cache / f"{name}-{tag}"
    whole = found / "whole"
    if whole.exists():
        return found
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            shutil.rmtree(found, ignore_errors=True)
            install(found)
            whole.touch()
    return found


def environment(name: str, pins: Path) -> Path:
    """The folder of the programs of a virtual environment with these packages."""

    def install(made: Path) -> None:
        subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, str(made)], check=True)
        options = ("--quiet", "--require-hashes", "--python", str(made / "bin" / "python"))
        subprocess.run([UV, "pip", "sync", *options, str(pins)], check=True)

    return folder(name, pins, install=install) / "bin"
