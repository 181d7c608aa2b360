"""Watches how busy and how full the device is, from a thread: by NVML, or for a CPU by this process's own use of it."""

import logging
import threading
from collections.abc import Callable

import psutil

from finetune_trainer import metrics
from finetune_trainer.distributed import Device

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 2.0

Probe = Callable[[], metrics.DeviceSample]


def watch(device: Device, *, report: Callable[[metrics.DeviceSample], None]) -> None:
    """Sample the device now and then, for as long as the process lives."""
    probe = _nvml_probe() if device.kind == "cuda" else _cpu_probe(device.threads)
    threading.Thread(target=_sample, args=(probe, report), name="device-watch", daemon=True).start()


def _sample(probe: Probe, report: Callable[[metrics.DeviceSample], None]) -> None:
    pause = threading.Event()
    while not pause.wait(INTERVAL_SECONDS):
        try:
            sample = probe()
        except Exception as error:  # noqa: BLE001 - a driver may raise anything; the figure is missing, no more
            logger.warning("the device can't be watched any more: %s", error)
            return
        metrics.record_device(sample)
        report(sample)


def _cpu_probe(threads: int) -> Probe:
    process = psutil.Process()
    total = psutil.virtual_memory().total
    process.cpu_percent()  # the first call only starts the clock

    def probe() -> metrics.DeviceSample:
        busy = process.cpu_percent() / 100 / threads
        used = process.memory_info().rss
        return metrics.DeviceSample(device="cpu", utilization=min(busy, 1.0), memory_used=used, memory_total=total)

    return probe


def _nvml_probe() -> Probe:
    import torch

    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    except Exception as error:  # noqa: BLE001 - no NVML, a MIG slice, another vendor: PyTorch's own figures are left
        logger.warning("NVML can't be used (%s): device utilisation is not reported", error)
        return _torch_probe()

    def probe() -> metrics.DeviceSample:
        rates, memory = pynvml.nvmlDeviceGetUtilizationRates(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)
        return metrics.DeviceSample(
            device="0", utilization=rates.gpu / 100, memory_used=memory.used, memory_total=memory.total
        )

    return probe


def _torch_probe() -> Probe:
    import torch

    def probe() -> metrics.DeviceSample:
        free, total = torch.cuda.mem_get_info(0)
        return metrics.DeviceSample(device="0", utilization=None, memory_used=total - free, memory_total=total)

    return probe
