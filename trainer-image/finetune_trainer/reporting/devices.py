"""Watches how busy and how full devices and CPU are, from a thread: by NVML and by the system's own accounts."""

import logging
import resource
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from finetune_trainer.distributed import Device
from finetune_trainer.reporting import metrics

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0
WINDOW_SECONDS = 60.0
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")

Probe = Callable[[], list[metrics.DeviceSample]]
"""What it finds of this process's device, and then of the others."""


def watch(device: Device, *, count: int = 1, report: Callable[[metrics.DeviceSample], None]) -> None:
    """Sample devices now and then, for as long as the process lives: one process of a machine does it for all.

    All `count` that train here are exported as metrics; the first, this process's own, is reported.
    """
    cpu = _CpuClock()
    probe = _nvml_probe(cpu, count) if device.kind == "cuda" else _cpu_probe(cpu)
    threading.Thread(target=_sample, args=(probe, report), name="device-watch", daemon=True).start()


def _sample(probe: Probe, report: Callable[[metrics.DeviceSample], None]) -> None:
    pause = threading.Event()
    while not pause.wait(INTERVAL_SECONDS):
        try:
            samples = probe()
        except Exception as error:  # noqa: BLE001 - a driver may raise anything; the figure is missing, no more
            logger.warning("the device can't be watched any more: %s", error)
            return
        for sample in samples:
            metrics.record_device(sample)
        report(samples[0])


class _CpuClock:
    """CPU cores that this process and its children have kept busy over the last minute."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._readings = deque([(time.monotonic(), self._seconds())])

    def cores(self) -> float:
        now, used = time.monotonic(), self._seconds()
        self._readings.append((now, used))
        while len(self._readings) > 2 and self._readings[1][0] <= now - WINDOW_SECONDS:
            self._readings.popleft()
        since, before = self._readings[0]
        return max(0.0, used - before) / max(now - since, 1e-3)

    def _seconds(self) -> float:
        """CPU time so far, that of children which have ended included."""
        own = self._process.cpu_times()
        total: float = own.user + own.system + own.children_user + own.children_system
        for child in self._process.children(recursive=True):
            try:
                times = child.cpu_times()
            except psutil.Error:  # it has ended meanwhile
                continue
            total += times.user + times.system
        return total


class _Mean:
    """The mean of what was seen over the last minute."""

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=round(WINDOW_SECONDS / INTERVAL_SECONDS))

    def of(self, value: float) -> float:
        self._seen.append(value)
        return sum(self._seen) / len(self._seen)


def _cpu_probe(cpu: _CpuClock) -> Probe:
    process = psutil.Process()
    total = usable_memory()

    def probe() -> list[metrics.DeviceSample]:
        used = process.memory_info().rss
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        sample = metrics.DeviceSample(
            device="cpu",
            utilization=None,
            cpu_cores=cpu.cores(),
            memory_used=used,
            memory_peak=max(used, most),
            memory_total=total,
        )
        return [sample]

    return probe


def usable_memory(limit: Path = MEMORY_LIMIT) -> int:
    """Bytes that the container may use: its cgroup's limit, else all of the machine's."""
    total: int = psutil.virtual_memory().total
    try:
        return min(total, int(limit.read_text()))
    except (OSError, ValueError):  # no cgroup of one's own, or "max"
        return total


def _nvml_probe(cpu: _CpuClock, count: int) -> Probe:
    import torch

    try:
        import pynvml

        pynvml.nvmlInit()
        uuids = [torch.cuda.get_device_properties(number).uuid for number in range(count)]
        handles = [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}") for uuid in uuids]
    except Exception as error:  # noqa: BLE001 - no NVML, a MIG slice, another vendor: PyTorch's own figures are left
        logger.warning("NVML can't be used (%s): device utilisation is not reported", error)
        return _torch_probe(cpu)
    busy = [_Mean() for _ in handles]

    def probe_one(number: int, handle: Any) -> metrics.DeviceSample:
        rates, memory = pynvml.nvmlDeviceGetUtilizationRates(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)
        milliwatts = _if_told(pynvml, pynvml.nvmlDeviceGetPowerUsage, handle)
        return metrics.DeviceSample(
            device=str(number),
            utilization=busy[number].of(rates.gpu / 100),
            cpu_cores=None if number else cpu.cores(),
            memory_used=memory.used,
            memory_peak=None if number else torch.cuda.max_memory_reserved(number),
            memory_total=memory.total,
            power_watts=None if milliwatts is None else milliwatts / 1000,
            temperature_celsius=_if_told(pynvml, pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU),
        )

    return lambda: [probe_one(number, handle) for number, handle in enumerate(handles)]


def _if_told(pynvml: Any, ask: Callable[..., float], *about: object) -> float | None:
    """A figure that not every device or driver tells."""
    try:
        return ask(*about)
    except pynvml.NVMLError:
        return None


def _torch_probe(cpu: _CpuClock) -> Probe:
    """Of this process's device alone: to ask for another's memory would take some of it."""
    import torch

    def probe() -> list[metrics.DeviceSample]:
        free, total = torch.cuda.mem_get_info(0)
        sample = metrics.DeviceSample(
            device="0",
            utilization=None,
            cpu_cores=cpu.cores(),
            memory_used=total - free,
            memory_peak=torch.cuda.max_memory_reserved(0),
            memory_total=total,
        )
        return [sample]

    return probe
