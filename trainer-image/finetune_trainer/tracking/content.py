"""What MLflow is told of a run, as its parameters, tags and metrics, within MLflow's limits. Pure."""

import math
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Annotated, Any

from pydantic import Field

from finetune_api.fields import ApiModel, cut
from finetune_api.trainer_config import MlflowConfig, TrainerConfig
from finetune_trainer.reporting.metrics import DeviceSample

VALUE_LIMIT, TAG_LIMIT = 6000, 8000
RUN_UID = "finetune.run-uid"
"""The tag by which a run's MLflow run is found again."""
_NAMES = {"seconds": "step_seconds"}
_EVALUATED = {"evalLoss": "evalLoss", "seconds": "evaluationSeconds"}
"""Of a line about an evaluation, and under which names: the rest is in the line of its step."""
_NOT_MEASURED = frozenset({"time", "step"})
_OTHER = {"version", "run", "mlflow", "tensor_board", "run_path", "device"}

Number = Annotated[float, Field(allow_inf_nan=False)]


class Metric(ApiModel):
    """One value. The server stores an equal one once, so that it may be sent again."""

    key: str
    value: Number
    timestamp: int
    """Milliseconds."""
    step: int


def parameters(config: TrainerConfig) -> dict[str, str]:
    """Every hyperparameter, by names that need no quotes in a search: learning_rate, lora_rank, model_uri."""
    told = config.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=_OTHER)
    return {_parameter(path): _text(value)[:VALUE_LIMIT] for path, value in _leaves(told, ())}


def _leaves(value: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, (*path, name))
        else:
            yield (*path, name), inner


def _parameter(path: tuple[str, ...]) -> str:
    short = path[1:] if path[0] == "training" or path[:2] == ("method", "lora") else path
    return "_".join(map(_snake, short))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _snake(name: str) -> str:
    return re.sub("(?<!^)(?=[A-Z])", "_", name).lower()


def tags(config: TrainerConfig, mlflow: MlflowConfig) -> dict[str, str]:
    """Who and what; the run's own tags come last and win."""
    run = config.run
    found = {
        "mlflow.runName": run.name,
        "mlflow.user": run.namespace,
        "mlflow.source.name": f"FineTuneRun {run.namespace}/{run.name}",
        "mlflow.source.type": "JOB",
        "mlflow.docker.image.uri": mlflow.image,
        "mlflow.note.content": f"{config.method.type.value} fine-tuning of {config.model.uri} on"
        f" {config.dataset.train.uri}.",
        "finetune.namespace": run.namespace,
        "finetune.run": run.name,
        "finetune.queue": mlflow.queue,
        "finetune.trainer-version": metadata.version("finetune-operator"),
        **mlflow.tags,
        RUN_UID: run.uid,
    }
    return {key: cut(value, TAG_LIMIT) for key, value in found.items() if value}


def evaluated(line: Mapping[str, Any], *, now: int) -> tuple[Metric, ...]:
    """What a line about an evaluation has: eval_loss and evaluation_seconds."""
    found = {name: line.get(key) for key, name in _EVALUATED.items()}
    return measured({"time": line.get("time", now), "step": line["step"], **found}, now=now)


def measured(line: Mapping[str, Any], *, now: int) -> tuple[Metric, ...]:
    """What a line of the history has: every number in it, as loss, learning_rate and so on."""
    time, step = int(line.get("time", now)), int(line["step"])
    found = {
        _NAMES.get(name, _snake(name)): value
        for name, value in line.items()
        if name not in _NOT_MEASURED and isinstance(value, int | float) and math.isfinite(value)
    }
    seconds, tokens = line.get("seconds"), line.get("tokens")
    if seconds and tokens:
        found["tokens_per_second"] = round(tokens / seconds, 2)
    return tuple(Metric(key=key, value=value, timestamp=time, step=step) for key, value in found.items())


def system(sample: DeviceSample, *, cores: int) -> dict[str, float]:
    """A device's readings under MLflow's names for them; on CPU those of the trainer, not of the whole machine."""
    used, share = sample.memory_used / 1e6, 100 * sample.memory_used / max(sample.memory_total, 1)
    found: dict[str, float | None] = {
        "cpu_utilization_percentage": None if sample.cpu_cores is None else 100 * sample.cpu_cores / cores
    }
    if sample.device == "cpu":
        found |= {"system_memory_usage_megabytes": used, "system_memory_usage_percentage": share}
    else:
        gpu = f"gpu_{sample.device}"
        found |= {
            f"{gpu}_memory_usage_megabytes": used,
            f"{gpu}_memory_usage_percentage": share,
            f"{gpu}_utilization_percentage": None if sample.utilization is None else 100 * sample.utilization,
            f"{gpu}_power_usage_watts": sample.power_watts,
        }
    return {f"system/{name}": round(value, 2) for name, value in found.items() if value is not None}
