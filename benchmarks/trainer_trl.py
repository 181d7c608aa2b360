"""TRL for the trainer's benchmark: pinned in requirements/bench.txt, in a folder of its own in the cache.

It never enters the development environment, whose pins it could change; what else it needs it takes from there.
"""

import subprocess
import sys
from pathlib import Path

from tests import cached

PINS = Path(__file__).resolve().parent.parent / "requirements" / "bench.txt"


def folder() -> Path:
    """Where it is; installed first if it isn't there yet."""
    return cached.folder("bench", PINS, install=_install)


def enable() -> None:
    """Let this process import it. Behind everything else: what the environment has comes first."""
    path = str(folder())
    if path not in sys.path:
        sys.path.append(path)


def _install(made: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    options = ("--quiet", "--no-deps", "--require-hashes", "--python", sys.executable, "--target", str(made))
    subprocess.run([str(uv), "pip", "install", *options, "--requirement", str(PINS)], check=True)
