"""TRL for the trainer's benchmark: pinned in requirements/bench.txt, in a folder of its own in the cache.

It never enters the development environment, whose pins it could change; what else it needs it takes from there.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PINS = Path(__file__).resolve().parent.parent / "requirements" / "bench.txt"


def folder() -> Path:
    """Where it is; installed first if it isn't there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator"
    target = cache / f"bench-{hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=cache, prefix=".bench-"))
        _install(made)
        try:
            made.rename(target)
        except OSError:  # another process was first
            shutil.rmtree(made)
    return target


def enable() -> None:
    """Let this process import it. Behind everything else: what the environment has comes first."""
    path = str(folder())
    if path not in sys.path:
        sys.path.append(path)


def _install(made: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    options = ("--quiet", "--no-deps", "--require-hashes", "--python", sys.executable, "--target", str(made))
    subprocess.run([str(uv), "pip", "install", *options, "--requirement", str(PINS)], check=True)
