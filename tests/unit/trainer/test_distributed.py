"""Device, threads, and the one process that is allowed."""

import queue
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from finetune_trainer import distributed
from finetune_trainer.errors import ConfigInvalid
from finetune_trainer.reporting import devices
from finetune_trainer.reporting.metrics import DeviceSample


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


def test_a_cpu_has_no_utilization_but_cores_that_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "INTERVAL_SECONDS", 0.05)
    samples: queue.Queue[DeviceSample] = queue.Queue()
    devices.watch(distributed.Device("cpu", "cpu", 2), report=samples.put)
    sample = samples.get(timeout=5)
    assert sample.utilization is None
    assert sample.cpu_cores is not None
    assert sample.cpu_cores >= 0
    assert 0 < sample.memory_used < sample.memory_total


def test_what_children_compute_counts_while_they_live_and_after() -> None:
    clock = devices._CpuClock()
    before = clock._seconds()
    script = "import time\nwhile time.process_time() < 0.6: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    alive = clock._seconds()
    child.communicate(b"\n")
    assert alive - before >= 0.55
    assert clock._seconds() - before >= 0.55
    assert clock.cores() > 0


def test_the_use_of_the_cpu_is_that_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now, used = [0.0], [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(devices._CpuClock, "_seconds", lambda _: used[0])
    clock = devices._CpuClock()
    cores = []
    for second in range(2, 400, 2):
        now[0] = second
        used[0] += 4.0 if second <= 200 else 0.0
        cores.append(clock.cores())
    assert cores[:100] == pytest.approx([2.0] * 100)
    assert cores[-1] == 0.0


def test_torchrun_says_how_many_devices_train_together() -> None:
    assert distributed.device_count({}) == 1
    assert distributed.device_count({"WORLD_SIZE": "4"}) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_taken_where_there_is_one() -> None:
    assert distributed.choose_device("Auto").kind == "cuda"
