"""What a training's container is told: the spec, and where on its disk each volume lies. Pure."""

from typing import Literal

from finetune_api.compute import Resources
from finetune_api.data import EvalData
from finetune_api.trainer_config import (
    ADAPTER_MOUNT,
    DATA_MOUNT,
    EVAL_MOUNT,
    MODEL_MOUNT,
    CustomConfig,
    DataConfig,
    DataSource,
    MlflowConfig,
    ModelSource,
    OutputConfig,
    RunIdentity,
    TrainerConfig,
)
from finetune_operator.mounts import model_of, path_of
from finetune_operator.run import Run


def trainer_config(run: Run, *, attempt: int, image: str = "") -> TrainerConfig:
    """What the trainer is told: the spec, and where in its container each volume lies; the rest it fetches itself."""
    spec, model, dataset = run.valid_spec, _model_config(run), _data_config(run)
    assert model is not None, "a rule of the API: only task Custom needs none"
    assert dataset is not None, "a rule of the API: only task Custom needs none"
    return TrainerConfig(
        run=_identity(run, attempt),
        model=model,
        task=spec.task,
        dataset=dataset,
        method=spec.method,
        training=spec.training,
        checkpoint=spec.checkpoint,
        output=OutputConfig(merge_adapter=spec.storage.merge_adapter, upload_uri=spec.storage.upload_uri),
        mlflow=_mlflow(run, image),
        tensor_board=spec.tracking.tensor_board,
        device=_device(spec.resources),
    )


def custom_config(run: Run, *, attempt: int) -> CustomConfig:
    """What the command of a Custom task can read of its run."""
    spec = run.valid_spec
    return CustomConfig(
        run=_identity(run, attempt),
        model=_model_config(run),
        dataset=_data_config(run),
        method=spec.method,
        training=spec.training,
        checkpoint=spec.checkpoint,
    )


def _mlflow(run: Run, image: str) -> MlflowConfig | None:
    spec = run.valid_spec
    asked = spec.tracking.mlflow
    if asked is None:
        return None
    return MlflowConfig(
        tracking_uri=asked.tracking_uri,
        experiment=asked.experiment or run.metadata.namespace,
        register_as=asked.register_as,
        alias=asked.alias,
        tags=asked.tags,
        image=image,
        queue=spec.queue.name or "",
    )


def _identity(run: Run, attempt: int) -> RunIdentity:
    found = run.metadata
    return RunIdentity(namespace=found.namespace, name=found.name, uid=found.uid, attempt=attempt)


def _model_config(run: Run) -> ModelSource | None:
    model, asked = model_of(run), run.valid_spec.model
    if model is None or asked is None:
        return None
    return ModelSource(
        uri=model.uri,
        path=path_of(model.uri, MODEL_MOUNT),
        adapter_uri=model.adapter_uri,
        adapter_path=path_of(model.adapter_uri, ADAPTER_MOUNT) if model.adapter_uri else None,
        trust_remote_code=asked.trust_remote_code,
    )


def _data_config(run: Run) -> DataConfig | None:
    dataset = run.valid_spec.dataset
    if dataset is None:
        return None
    return DataConfig(
        train=DataSource(uri=dataset.train.uri, path=path_of(dataset.train.uri, DATA_MOUNT)),
        eval=_evaluation(dataset.eval) if dataset.eval else None,
        format=dataset.format,
        columns=dataset.columns,
        template=dataset.template,
        streaming=dataset.streaming,
    )


def _evaluation(data: EvalData) -> DataSource:
    return DataSource(uri=data.uri, path=path_of(data.uri, EVAL_MOUNT), max_samples=data.max_samples)


def _device(resources: Resources) -> Literal["Auto", "CPU"]:
    return "Auto" if resources.device_resource else "CPU"
