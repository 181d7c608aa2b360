"""Device, threads, and which of several processes this is."""

import os
import queue
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from finetune_trainer import distributed
from finetune_trainer.distributed import Nodes, Place
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


def test_processes_of_one_machine_share_its_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    counts = [distributed.usable_cpus(tmp_path / "none", {"LOCAL_WORLD_SIZE": str(n)}) for n in (1, 2, 3, 16)]
    assert counts == [8, 4, 2, 1]


def test_a_process_knows_its_place_from_what_torchrun_tells() -> None:
    told = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert Place.of(told) == Place(5, 8, 1, 4)
    assert Place.of({}) == Place(0, 1, 0, 1)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "there can't be such a process"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "must be numbers"),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, "there can't be such a process"),
    ],
)
def test_a_place_that_cannot_be_is_refused(told: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigInvalid, match=says):
        Place.of(told)


@pytest.mark.parametrize("told", [{"PET_NNODES": "2", "PET_NODE_RANK": "2"}, {"PET_NPROC_PER_NODE": "0"}])
def test_a_node_that_cannot_be_is_refused(told: dict[str, str]) -> None:
    with pytest.raises(ConfigInvalid, match="there can't be such a node"):
        Nodes.of(told)


def test_the_processes_of_all_nodes_are_counted_through() -> None:
    second = Nodes.of({"PET_NNODES": "2", "PET_NPROC_PER_NODE": "4", "PET_NODE_RANK": "1"})
    assert [second.place(n) for n in (0, 3)] == [Place(4, 8, 0, 4), Place(7, 8, 3, 4)]


def test_the_one_process_of_a_node_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    for name in names:  # set first: so that what the function sets is undone too
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    told = {"NNODES": "2", "NPROC_PER_NODE": "1", "NODE_RANK": "1", "MASTER_ADDR": "run-1-0.finetune-x"}
    for name, value in {**told, "MASTER_PORT": "9402"}.items():
        monkeypatch.setenv(f"PET_{name}", value)
    distributed.take_place(os.environ)
    assert [os.environ[name] for name in names] == ["1", "2", "0", "1", "run-1-0.finetune-x", "9402"]


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
    assert distributed.device_count({"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}) == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_taken_where_there_is_one() -> None:
    assert distributed.choose_device("Auto").kind == "cuda"
