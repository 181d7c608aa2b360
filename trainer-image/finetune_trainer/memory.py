"""When memory runs out: how that is recognised, and how much of it there is. Needs no torch."""

import errno
from pathlib import Path

import psutil

from finetune_trainer.errors import OutOfMemory

CGROUP = Path("/sys/fs/cgroup")


def trouble(error: BaseException) -> OutOfMemory | None:
    """The error for a full device, if this is one: torch's own class isn't there before torch is imported."""
    full = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if not (full or isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM):
        return None
    return OutOfMemory(
        "the device has too little memory: lower training.batchSize.perDevice (and raise gradientAccumulationSteps) or"
        f" maxSequenceLength, or set gradientCheckpointing to Enabled ({str(error)[:200]})"
    )


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
