"""Which device this process trains on, and how many threads it may use. One process, one device: more is refused."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune_trainer.errors import ConfigInvalid

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Device:
    """Where the training runs."""

    kind: Literal["cpu", "cuda"]
    name: str
    threads: int


def refuse_several(environment: Mapping[str, str]) -> None:
    """Raise if this process is one of many, as torchrun starts them."""
    world = environment.get("WORLD_SIZE", "1")
    if world != "1":
        raise ConfigInvalid(f"WORLD_SIZE is {world}: this trainer uses one device; set nodes and devicesPerNode to 1")


def device_count(environment: Mapping[str, str]) -> int:
    """Devices that train together: torchrun starts a process for each."""
    return int(environment.get("WORLD_SIZE", "1"))


def allow_determinism(environment: "os._Environ[str]") -> None:
    """Before torch is imported: without this cuBLAS has no deterministic kernels."""
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def tune_threads(environment: "os._Environ[str]") -> None:
    """Before torch is imported: threads that wait for each other must not burn the CPU share of those they wait for."""
    environment.setdefault("OMP_NUM_THREADS", str(usable_cpus()))
    environment.setdefault("GOMP_SPINCOUNT", "2000")


def usable_cpus(quota: Path = CPU_QUOTA) -> int:
    """CPUs that the container may use: its cgroup's quota, else those it may be scheduled on."""
    allowed = len(os.sched_getaffinity(0))
    try:
        limit, period = quota.read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if limit == "max" else max(1, min(allowed, int(limit) // int(period)))


def choose_device(wanted: Literal["Auto", "CPU", "CUDA"]) -> Device:
    """The device asked for. Raises ConfigInvalid where there is none."""
    import torch

    available = torch.cuda.is_available()
    if wanted == "CUDA" and not available:
        raise ConfigInvalid("device is CUDA but this container sees no CUDA device; ask for one, or use CPU")
    if available and wanted != "CPU":
        return Device("cuda", torch.cuda.get_device_name(0), torch.get_num_threads())
    return Device("cpu", "cpu", torch.get_num_threads())
