"""Every Prometheus family of the trainer. A step or a loss is never a label; one process exports one run."""

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import Metric

from finetune_api.snapshot import TrainProgress
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.reporting.progress import Step

CONTENT_TYPE = CONTENT_TYPE_LATEST
disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter, which nothing reads

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 40, 80, 160, 320)


class Known(Gauge):
    """A gauge that has a series from its first value on: a 0 before would be a loss, a time, a step that never was."""

    def __init__(self, name: str, meaning: str) -> None:
        self._is_known = False
        super().__init__(name, meaning)

    def set(self, value: float) -> None:
        """Set it."""
        super().set(value)
        self._is_known = True

    def collect(self) -> Iterable[Metric]:
        """Its series, or nothing."""
        return super().collect() if self._is_known else ()


info = Info("finetune_trainer", "Which run this process trains.")
loss = Known("finetune_trainer_loss", "Loss of the last step, mean over its target tokens, in nats.")
eval_loss = Known("finetune_trainer_eval_loss", "Loss of the last evaluation, mean over its target tokens or pairs.")
learning_rate = Known("finetune_trainer_learning_rate", "Learning rate of the last step.")
grad_norm = Known("finetune_trainer_grad_norm", "L2 norm of the last step's gradient, before clipping.")
step = Known("finetune_trainer_step", "Optimizer steps done, over all attempts.")
epoch = Known("finetune_trainer_epoch", "Epoch now, counted from 1.")
progress_ratio = Known("finetune_trainer_progress_ratio", "Share of the training that is done.")
tokens_total = Counter("finetune_trainer_tokens", "Non-padding tokens trained on by this process.")
samples_total = Counter("finetune_trainer_samples", "Records trained on by this process.")
tokens_per_second = Known("finetune_trainer_tokens_per_second", "Non-padding tokens a second, over the last 20 steps.")
data_wait_ratio = Known(
    "finetune_trainer_data_wait_ratio", "Share of step time spent waiting for data, over the last 20 steps."
)
mfu_ratio = Known(
    "finetune_trainer_mfu_ratio",
    "Model FLOPs utilization: share of the devices' peak that the model's arithmetic was, over the last 20 steps.",
)
step_duration = Histogram("finetune_trainer_step_duration_seconds", "Time of an optimizer step.", buckets=_SECONDS)
evaluation_duration = Histogram("finetune_trainer_evaluation_duration_seconds", "Time to evaluate.", buckets=_SECONDS)
last_step_timestamp = Known("finetune_trainer_last_step_timestamp_seconds", "When the last step ended.")
checkpoint_duration = Histogram(
    "finetune_trainer_checkpoint_duration_seconds", "Time to save a checkpoint, fsync included.", buckets=_SECONDS
)
checkpoint_failures = Counter("finetune_trainer_checkpoint_failures", "Checkpoints that could not be saved.")
last_checkpoint_timestamp = Known(
    "finetune_trainer_last_checkpoint_timestamp_seconds", "When the last checkpoint was complete."
)
checkpoint_size = Known("finetune_trainer_checkpoint_size_bytes", "Size of the last checkpoint.")
tracking_failures = Counter("finetune_trainer_tracking_failures", "Times that MLflow didn't take what it was sent.")
tracking_pending = Gauge("finetune_trainer_tracking_pending_steps", "Steps that MLflow hasn't got yet.")
device_utilization = Gauge(
    "finetune_trainer_device_utilization_ratio",
    "Share of time in which the device was busy, over the last minute.",
    ["device"],
)
cpu_utilization = Known(
    "finetune_trainer_cpu_utilization_cores", "CPU cores kept busy by trainer and children, over the last minute."
)
device_memory_used = Gauge(
    "finetune_trainer_device_memory_used_bytes", "Memory used on the device; on CPU the process's own.", ["device"]
)
device_memory_peak = Gauge(
    "finetune_trainer_device_memory_peak_bytes",
    "Most memory that this process has held on the device; on CPU its largest resident memory.",
    ["device"],
)
device_memory_total = Gauge(
    "finetune_trainer_device_memory_total_bytes", "Memory of the device; on CPU what the container may use.", ["device"]
)
device_power = Gauge("finetune_trainer_device_power_watts", "Power that the device draws.", ["device"])
device_temperature = Gauge("finetune_trainer_device_temperature_celsius", "Temperature of the device.", ["device"])


@dataclass(frozen=True, kw_only=True)
class DeviceSample:
    """How busy a device was, and how full."""

    device: str
    utilization: float | None
    """Share of time in which it was busy; none for a CPU, or where it can't be told."""
    cpu_cores: float | None
    """CPU cores that this process and its children kept busy."""
    memory_used: int
    memory_total: int
    memory_peak: int | None = None
    """Most that this process has held."""
    power_watts: float | None = None
    temperature_celsius: float | None = None


def describe(config: TrainerConfig, *, device: str) -> None:
    """Say which run this process trains, and on what."""
    info.info(
        {
            "run": config.run.name,
            "namespace": config.run.namespace,
            "attempt": str(config.run.attempt),
            "model": config.model.uri,
            "method": config.method.type.value,
            "device": device,
        }
    )


def record_step(done: Step, progress: TrainProgress, *, rate: float) -> None:
    """Set what a step changes; `rate` is in tokens per second."""
    loss.set(done.loss)
    learning_rate.set(done.learning_rate)
    grad_norm.set(done.grad_norm)
    step.set(done.number)
    epoch.set(done.epoch)
    progress_ratio.set(done.number / max(progress.total_batches, 1))
    if progress.data_wait_ratio is not None:
        data_wait_ratio.set(progress.data_wait_ratio)
    if progress.mfu_ratio is not None:
        mfu_ratio.set(progress.mfu_ratio)
    tokens_total.inc(done.tokens)
    samples_total.inc(done.records)
    tokens_per_second.set(rate)
    step_duration.observe(done.seconds)
    last_step_timestamp.set_to_current_time()


def record_device(sample: DeviceSample) -> None:
    """Set the gauges of one device."""
    if sample.utilization is not None:
        device_utilization.labels(sample.device).set(sample.utilization)
    if sample.cpu_cores is not None:
        cpu_utilization.set(sample.cpu_cores)
    for gauge, value in (
        (device_memory_peak, sample.memory_peak),
        (device_power, sample.power_watts),
        (device_temperature, sample.temperature_celsius),
    ):
        if value is not None:
            gauge.labels(sample.device).set(value)
    device_memory_used.labels(sample.device).set(sample.memory_used)
    device_memory_total.labels(sample.device).set(sample.memory_total)


def exposition() -> bytes:
    """The text that Prometheus scrapes."""
    return generate_latest(REGISTRY)
