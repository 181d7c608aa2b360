"""Device, threads, and the one process that is allowed."""

import queue
from pathlib import Path

import pytest
import torch

from finetune_trainer import devices, distributed
from finetune_trainer.errors import ConfigInvalid
from finetune_trainer.metrics import DeviceSample


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("max 100000", 99), ("150000 100000", 1), ("50000 100000", 1), ("9900000 100000", 99)],
    ids=["no quota", "one and a half", "half a CPU is one thread", "more than there are"],
)
def test_threads_follow_the_containers_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, cpus: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(99)))
    (tmp_path / "cpu.max").write_text(text)
    assert distributed.usable_cpus(tmp_path / "cpu.max") == cpus


def test_without_cgroups_all_cpus_may_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    assert distributed.usable_cpus(tmp_path / "missing") == 3


def test_one_of_many_processes_is_refused() -> None:
    distributed.refuse_several({})
    distributed.refuse_several({"WORLD_SIZE": "1"})
    with pytest.raises(ConfigInvalid, match="WORLD_SIZE is 2"):
        distributed.refuse_several({"WORLD_SIZE": "2"})


def test_cpu_is_taken_when_asked_for() -> None:
    assert distributed.choose_device("CPU").kind == "cpu"


def test_the_use_of_the_cpu_is_between_nothing_and_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "INTERVAL_SECONDS", 0.05)
    samples: queue.Queue[DeviceSample] = queue.Queue()
    devices.watch(distributed.Device("cpu", "cpu", 2), report=samples.put)
    sample = samples.get(timeout=5)
    assert sample.utilization is not None
    assert 0 <= sample.utilization <= 1
    assert 0 < sample.memory_used < sample.memory_total


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_taken_where_there_is_one() -> None:
    assert distributed.choose_device("Auto").kind == "cuda"
