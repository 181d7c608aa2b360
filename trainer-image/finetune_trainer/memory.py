"""When memory runs out: how that is recognised, what the next attempt is told, and how much of it there is. Needs no
torch.
"""

import ctypes
import errno
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import psutil

from finetune_trainer.errors import OutOfMemory

logger = logging.getLogger(__name__)

CGROUP = Path("/sys/fs/cgroup")
NOTE = ".smaller-passes.json"
"""In the run's folder."""

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""


def trouble(error: BaseException) -> OutOfMemory | None:
    """The error for a full device, if this is one: torch's own class isn't there before torch is imported."""
    full = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if not (full or isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM):
        return None
    return OutOfMemory(
        "the device has too little memory: lower training.batchSize.perDevice (and raise gradientAccumulationSteps) or"
        f" maxSequenceLength, or set gradientCheckpointing to Enabled ({str(error)[:200]})"
    )


def keep_heap(environment: Mapping[str, str]) -> bool:
    """Let main memory that a training step gives back wait in the process for the next step; returns whether it does.

    As it comes, glibc returns large blocks to the system, which clears every page that the next step asks for. Who has
    set malloc's parameters by the environment keeps them; other C libraries are left alone.
    """
    tuned = any(name.startswith("MALLOC_") for name in environment) or "malloc" in environment.get("GLIBC_TUNABLES", "")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return (
        not tuned
        and mallopt is not None
        and all(mallopt(*setting) for setting in ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0)))
    )


def give_back_heap() -> None:
    """Return to the system what waits."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def leave_note(folder: Path, *, fingerprint: str, per_device: int) -> None:
    """Tell the attempts after this one, where the processes can't begin again together, in how small passes to try."""
    temporary = folder / f"{NOTE}.tmp"
    try:
        temporary.write_text(json.dumps({"fingerprint": fingerprint, "perDevice": per_device}), encoding="utf-8")
        temporary.replace(folder / NOTE)
    except OSError as error:
        logger.warning("the next attempt can't be told to use less memory: %s", error)


def noted(folder: Path, *, fingerprint: str) -> int | None:
    """What an attempt at the same work has left."""
    try:
        found = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return int(found["perDevice"]) if found["fingerprint"] == fingerprint and found["perDevice"] >= 1 else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("what an earlier attempt said of its memory can't be read: %s", error)
        return None


def free_bytes(cgroup: Path = CGROUP) -> int:
    """Main memory that this process may still take: what its cgroup leaves, but no more than the machine has."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        lines = (cgroup / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return available
    if limit == "max":
        return available
    cached = sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
    return max(0, min(available, int(limit) - used + cached))
