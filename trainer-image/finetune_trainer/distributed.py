"""Which device this process trains on, which of how many processes it is, and how many threads it may use."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetune_trainer.errors import ConfigInvalid

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
LISTEN_VARIABLE = "FINETUNE_RENDEZVOUS_FD"
"""A socket that listens already, on which the first process is found by the others."""


@dataclass(frozen=True)
class Device:
    """Where the training runs."""

    kind: Literal["cpu", "cuda"]
    name: str
    threads: int


@dataclass(frozen=True)
class Place:
    """Which process this is of those that train together, one for each device."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Place":
        """As torchrun says it. Raises ConfigInvalid where it makes no sense."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        numbers = [environment.get(name, default) for name, default in zip(names, "0101", strict=True)]
        try:
            place = cls(*map(int, numbers))
        except ValueError as error:
            raise ConfigInvalid(f"{', '.join(names)} are {', '.join(numbers)}: they must be numbers") from error
        if not (0 <= place.rank < place.size and 0 <= place.local_rank < place.local_size <= place.size):
            raise ConfigInvalid(f"{', '.join(names)} are {', '.join(numbers)}: there can't be such a process")
        return place


@dataclass(frozen=True)
class Nodes:
    """The machines that train together, and which of them this is."""

    count: int = 1
    devices_each: int = 1
    index: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Nodes":
        """As torchrun reads it from its environment. Raises ConfigInvalid where it makes no sense."""
        names = ("PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK")
        numbers = [environment.get(name) or default for name, default in zip(names, "110", strict=True)]
        try:
            nodes = cls(*map(int, numbers))
        except ValueError as error:
            raise ConfigInvalid(f"{', '.join(names)} are {', '.join(numbers)}: they must be numbers") from error
        if nodes.devices_each < 1 or not 0 <= nodes.index < nodes.count:
            raise ConfigInvalid(f"{', '.join(names)} are {', '.join(numbers)}: there can't be such a node")
        return nodes

    def place(self, local_rank: int) -> Place:
        """One of this node's processes."""
        each = self.devices_each
        return Place(self.index * each + local_rank, self.count * each, local_rank, each)


def take_place(environment: "os._Environ[str]") -> None:
    """With one device on each of several nodes the node's one process is told here where it stands."""
    if "RANK" in environment or environment.get("PET_NNODES", "1") in ("", "1"):
        return
    environment.update(RANK=environment.get("PET_NODE_RANK", ""), WORLD_SIZE=environment["PET_NNODES"])
    environment.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        environment.setdefault(name, environment.get(f"PET_{name}", ""))


def device_count(environment: Mapping[str, str]) -> int:
    """Devices that train together: there is a process for each."""
    return Place.of(environment).size


def allow_determinism(environment: "os._Environ[str]") -> None:
    """Before torch is imported: without this cuBLAS has no deterministic kernels."""
    environment.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def tune_threads(environment: "os._Environ[str]") -> None:
    """Before torch is imported: threads that wait for each other must not burn the CPU share of those they wait for."""
    environment.setdefault("OMP_NUM_THREADS", str(usable_cpus()))
    environment.setdefault("GOMP_SPINCOUNT", "2000")


def usable_cpus(quota: Path = CPU_QUOTA, environment: Mapping[str, str] = os.environ) -> int:
    """CPUs that this process may use: its cgroup's quota, else those it may be scheduled on; its share, of several."""
    allowed = len(os.sched_getaffinity(0))
    try:
        limit, period = quota.read_text().split()
    except (OSError, ValueError):
        limit, period = "max", "1"
    allowed = allowed if limit == "max" else min(allowed, int(limit) // int(period))
    return max(1, allowed // int(environment.get("LOCAL_WORLD_SIZE", "1")))


def choose_device(wanted: Literal["Auto", "CPU", "CUDA"]) -> Device:
    """The device asked for. Raises ConfigInvalid where there is none."""
    import torch

    available = torch.cuda.is_available()
    if wanted == "CUDA" and not available:
        raise ConfigInvalid("device is CUDA but this container sees no CUDA device; ask for one, or use CPU")
    if available and wanted != "CPU":
        return Device("cuda", torch.cuda.get_device_name(_local(torch.cuda.device_count())), torch.get_num_threads())
    return Device("cpu", "cpu", torch.get_num_threads())


def _local(devices: int) -> int:
    """This process's device. Raises ConfigInvalid if there are fewer devices than processes."""
    place = Place.of(os.environ)
    if place.local_size > devices:
        raise ConfigInvalid(f"{place.local_size} processes are to train here, but there are {devices} CUDA devices")
    return place.local_rank
