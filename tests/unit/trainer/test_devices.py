"""What is told of the device. NVML itself can't run here: a stand-in answers as its documentation says."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from finetune_trainer.reporting import devices, metrics

BUSY = {"GPU-0a1b-0": 90, "GPU-0a1b-1": 70}


class NVMLError(Exception):
    """As pynvml has it."""


def nvml(*, power: int | None = 412_000) -> Any:
    def power_usage(_: object) -> int:
        if power is None:
            raise NVMLError("Not Supported")
        return power

    module: Any = ModuleType("pynvml")
    module.NVMLError = NVMLError
    module.NVML_TEMPERATURE_GPU = 0
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    module.nvmlDeviceGetUtilizationRates = lambda uuid: SimpleNamespace(gpu=BUSY[uuid], memory=40)
    module.nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(used=30, total=80, free=50)
    module.nvmlDeviceGetPowerUsage = power_usage
    module.nvmlDeviceGetTemperature = lambda _, sensor: 61 if sensor == 0 else 0
    return module


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: SimpleNamespace(uuid=f"0a1b-{n}"))
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 35)


def samples(monkeypatch: pytest.MonkeyPatch, module: Any, *, count: int = 1) -> list[metrics.DeviceSample]:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return devices._nvml_probe(devices._CpuClock(), count)()


def test_a_gpu_is_told_whole(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = samples(monkeypatch, nvml())
    assert found.utilization == 0.9
    assert (found.memory_used, found.memory_peak, found.memory_total) == (30, 35, 80)
    assert (found.power_watts, found.temperature_celsius) == (412.0, 61)


def test_a_figure_that_the_driver_does_not_tell_is_left_out(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = samples(monkeypatch, nvml(power=None))
    assert found.power_watts is None
    assert found.temperature_celsius == 61


def test_one_process_tells_of_all_devices_of_its_machine(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = samples(monkeypatch, nvml(), count=2)
    assert [(each.device, each.utilization) for each in (own, other)] == [("0", 0.9), ("1", 0.7)]
    assert (other.memory_used, other.memory_total, other.power_watts) == (30, 80, 412.0)
    assert other.memory_peak is None, "only its own process knows that"
    assert other.cpu_cores is None


def test_without_nvml_a_device_is_told_by_torch(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = nvml()

    def none(_: object) -> None:
        raise NVMLError("Not Found")

    module.nvmlDeviceGetHandleByUUID = none
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (50, 80))
    (found,) = samples(monkeypatch, module, count=2)
    assert (found.device, found.utilization, found.memory_used, found.memory_peak) == ("0", None, 30, 35)


def test_what_is_known_is_exported_and_nothing_else() -> None:
    metrics.record_device(metrics.DeviceSample(device="7", utilization=0.5, cpu_cores=1, memory_used=7, memory_total=9))
    text = metrics.exposition().decode()
    assert 'finetune_trainer_device_utilization_ratio{device="7"} 0.5' in text
    assert 'finetune_trainer_device_power_watts{device="7"}' not in text


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("1048576\n", 1_048_576), ("max\n", None), (str(1 << 60), None), (None, None)],
    ids=["a limit", "no limit", "a limit above the machine's memory", "no cgroup"],
)
def test_a_container_may_use_what_its_cgroup_says(tmp_path: Path, limit: str | None, expected: int | None) -> None:
    file = tmp_path / "memory.max"
    if limit is not None:
        file.write_text(limit)
    assert devices.usable_memory(file) == (expected or psutil.virtual_memory().total)


def test_the_peak_of_a_process_is_at_least_what_it_uses() -> None:
    (found,) = devices._cpu_probe(devices._CpuClock())()
    assert found.memory_peak is not None
    assert found.memory_used <= found.memory_peak <= found.memory_total
