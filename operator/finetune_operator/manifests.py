"""The objects that the operator creates, whole: claim, Job and Kubernetes Event. Pure builders; they touch nothing.

What a Job may do is decided here and nowhere else: it passes Pod Security `restricted`, holds no Kubernetes
credential, and mounts nothing but what the run names in its own namespace.
"""

import math
import re
from collections.abc import Iterator
from datetime import UTC
from typing import Any, Literal

from finetune_api.compute import ClaimTemplate, Resources, Retain
from finetune_api.credentials import MLFLOW_KEYS, STORE_KEYS
from finetune_api.data import EvalData, Task
from finetune_api.snapshot import FINAL_CODES, PORT, EventType, ExitCode
from finetune_api.spec import FineTuneRunSpec, OnHang
from finetune_api.status import ResolvedModel, RunEvent
from finetune_api.trainer_config import (
    ADAPTER_MOUNT,
    CONFIG_VARIABLE,
    DATA_MOUNT,
    EVAL_MOUNT,
    MODEL_MOUNT,
    RUN_MOUNT,
    TOKEN_VARIABLE,
    UPLOAD_PREFIX,
    CustomConfig,
    DataConfig,
    DataSource,
    MlflowConfig,
    ModelSource,
    OutputConfig,
    RunIdentity,
    TrainerConfig,
)
from finetune_api.types import API_VERSION, KIND
from finetune_api.uris import Scheme, Uri
from finetune_operator import custom, gang, kueue, names
from finetune_operator.settings import Settings
from finetune_operator.world import Run

Manifest = dict[str, Any]

CACHE_MOUNT = "/mnt/cache"
"""Room for temporary files; the root file system is read-only."""
HUB_VARIABLE = "HF_HOME"
"""Where the hub's library keeps what it downloads."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - what PyTorch calls it
DISRUPTION = "DisruptionTarget"
_FAILURE_RULES: tuple[ExitCode | str, ...] = (*sorted(FINAL_CODES), DISRUPTION, ExitCode.STOPPED, ExitCode.STORAGE)
"""Ends of a pod that its Job's own condition tells apart, by their place here. A Job without retries fails anyway; but
its pod may be gone, as after an eviction, before the operator sees how it ended.
"""
GRACE_SECONDS = 300
"""Between SIGTERM and SIGKILL: a step and a save must fit in."""
_PROBE_SECONDS = 10
_USER = 65532
"""The `nonroot` user of common base images."""


def claim_name(run: Run) -> str:
    """The claim that holds the run's checkpoints and output."""
    return _spec(run).storage.claim_name or names.claim(run.metadata.name, run.metadata.uid)


def output_uri(run: Run, path: str) -> str:
    """Where `path` of the run's folder lies, as a URI that another run can take."""
    parts = (claim_name(run), _spec(run).storage.sub_path, path)
    return "pvc://" + "/".join(part.strip("/") for part in parts if part)


def claim(run: Run) -> Manifest:
    """The claim for checkpoints and output. It outlives the run, unless Delete is asked for."""
    storage = _spec(run).storage
    template = storage.claim_template or ClaimTemplate()
    spec: Manifest = {
        "accessModes": [template.access_mode.value],
        "resources": {"requests": {"storage": template.size}},
    }
    if template.storage_class_name is not None:
        spec["storageClassName"] = template.storage_class_name
    metadata = _metadata(run, claim_name(run))
    if storage.retain == Retain.DELETE:
        metadata["ownerReferences"] = [_owner(run)]
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def job(run: Run, *, attempt: int, settings: Settings) -> Manifest:
    """The Job of one attempt. The operator is the retry policy, so the Job itself never retries."""
    name = names.job(run.metadata.name, attempt)
    metadata = _metadata(run, name, attempt=attempt) | {"ownerReferences": [_owner(run)]}
    failed = run.status.failure is not None and run.status.failure.attempt == attempt - 1
    metadata["labels"] |= kueue.labels(_spec(run), retried=failed)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": 0,
            **gang.job(_spec(run).resources),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [_failure_rule(rule) for rule in failure_rules(run)]},
            **kueue.suspension(_spec(run)),
            "template": {
                "metadata": {
                    "labels": names.labels(run.metadata.name, attempt=attempt)
                    | gang.labels(_spec(run).resources, uid=run.metadata.uid),
                    "annotations": {names.RUN_UID_ANNOTATION: run.metadata.uid}
                    | (custom.annotations() if _is_custom(run) else {}),
                },
                "spec": _pod_spec(run, attempt=attempt, settings=settings),
            },
        },
    }


def service(run: Run) -> Manifest | None:
    """What gives the pods of several nodes names; None with one."""
    if _spec(run).resources.nodes == 1:
        return None
    metadata = _metadata(run, names.service(run.metadata.uid)) | {"ownerReferences": [_owner(run)]}
    return gang.service(metadata, uid=run.metadata.uid)


def event(run: Run, entry: RunEvent) -> Manifest:
    """The Kubernetes Event of an entry of the run's history, under the entry's own name: it can't be posted twice."""
    time = entry.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": names.event(run.metadata.name, run.metadata.uid, entry.sequence),
            "namespace": run.metadata.namespace,
        },
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": run.metadata.name,
            "namespace": run.metadata.namespace,
            "uid": run.metadata.uid,
        },
        "reason": "".join(word.capitalize() for word in entry.type.split("_")),
        "message": entry.message,
        "type": "Warning" if entry.type in (EventType.FAILED, EventType.RESTARTED, EventType.HUNG) else "Normal",
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
        "source": {"component": names.MANAGER},
    }


def trainer_config(run: Run, *, attempt: int, image: str = "") -> TrainerConfig:
    """What the trainer is told: the spec, and where in its container each volume lies; the rest it fetches itself."""
    spec, model, dataset = _spec(run), _model_config(run), _data_config(run)
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


def _mlflow(run: Run, image: str) -> MlflowConfig | None:
    spec = _spec(run)
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


def custom_config(run: Run, *, attempt: int) -> CustomConfig:
    """What the command of a Custom task can read of its run."""
    spec = _spec(run)
    return CustomConfig(
        run=_identity(run, attempt),
        model=_model_config(run),
        dataset=_data_config(run),
        method=spec.method,
        training=spec.training,
        checkpoint=spec.checkpoint,
    )


def _identity(run: Run, attempt: int) -> RunIdentity:
    found = run.metadata
    return RunIdentity(namespace=found.namespace, name=found.name, uid=found.uid, attempt=attempt)


def _model_config(run: Run) -> ModelSource | None:
    model, asked = _model(run), _spec(run).model
    if model is None or asked is None:
        return None
    return ModelSource(
        uri=model.uri,
        path=_path(model.uri, MODEL_MOUNT),
        adapter_uri=model.adapter_uri,
        adapter_path=_path(model.adapter_uri, ADAPTER_MOUNT) if model.adapter_uri else None,
        trust_remote_code=asked.trust_remote_code,
    )


def _data_config(run: Run) -> DataConfig | None:
    dataset = _spec(run).dataset
    if dataset is None:
        return None
    return DataConfig(
        train=DataSource(uri=dataset.train.uri, path=_path(dataset.train.uri, DATA_MOUNT)),
        eval=_evaluation(dataset.eval) if dataset.eval else None,
        format=dataset.format,
        columns=dataset.columns,
        template=dataset.template,
        streaming=dataset.streaming,
    )


def _is_custom(run: Run) -> bool:
    return _spec(run).task == Task.CUSTOM


def _spec(run: Run) -> FineTuneRunSpec:
    assert run.spec is not None, "a run without a spec is refused before anything is built for it"
    return run.spec


def _metadata(run: Run, name: str, *, attempt: int | None = None) -> Manifest:
    labels = names.labels(run.metadata.name, attempt=attempt)
    annotations = {names.RUN_UID_ANNOTATION: run.metadata.uid}
    return {"name": name, "namespace": run.metadata.namespace, "labels": labels, "annotations": annotations}


def _owner(run: Run) -> Manifest:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": run.metadata.name,
        "uid": run.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def _pod_spec(run: Run, *, attempt: int, settings: Settings) -> Manifest:
    spec = _spec(run)
    pod: Manifest = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(run, attempt=attempt, settings=settings)],
        "volumes": [volume for volume, _ in _mounts(run)],
        **gang.pod(spec.resources, uid=run.metadata.uid),
    }
    optional: Manifest = {
        "nodeSelector": dict(spec.resources.node_selector),
        "tolerations": [toleration.to_wire() for toleration in spec.resources.tolerations],
        "priorityClassName": spec.resources.priority_class_name,
        "imagePullSecrets": [{"name": secret.name} for secret in spec.trainer.image_pull_secrets],
    }
    return pod | {key: value for key, value in optional.items() if value}


def _container(run: Run, *, attempt: int, settings: Settings) -> Manifest:
    spec = _spec(run)
    restarts = spec.recovery.on_hang == OnHang.RESTART
    return {
        **({"livenessProbe": _probe(spec.recovery.hang_timeout_seconds)} if restarts else {}),
        "name": names.TRAINER_CONTAINER,
        "image": spec.trainer.image or settings.trainer_image,
        **(custom.command(spec) if _is_custom(run) else {}),
        "env": _environment(run, attempt=attempt, settings=settings),
        "ports": [{"name": "metrics", "containerPort": PORT}],
        "resources": _resources(spec.resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "File",
        "volumeMounts": [mount for _, mount in _mounts(run)],
    }


def _failure_rule(rule: ExitCode | str) -> Manifest:
    if not isinstance(rule, ExitCode):
        return {"action": "FailJob", "onPodConditions": [{"type": rule, "status": "True"}]}
    codes = {"containerName": names.TRAINER_CONTAINER, "operator": "In", "values": [rule.value]}
    return {"action": "FailJob", "onExitCodes": codes}


def failure_rules(run: Run) -> tuple[ExitCode | str, ...]:
    """Those of the run's Jobs. Under Kueue a pod that was stopped hasn't failed: its Job is suspended, and goes on."""
    queued = kueue.concerns(run.spec)
    return tuple(rule for rule in _FAILURE_RULES if not (queued and rule == ExitCode.STOPPED))


def failure_rule(message: str, *, rules: tuple[ExitCode | str, ...] = _FAILURE_RULES) -> ExitCode | str | None:
    """Which rule a Job's condition speaks of: the exit code that a pod ended with, or DISRUPTION."""
    found = re.search(r" matching FailJob rule at index (\d+)$", message)
    return rules[int(found[1])] if found and int(found[1]) < len(rules) else None


def _probe(hang_timeout_seconds: int) -> Manifest:
    """Ends a trainer that doesn't even answer any more: the node tells that better than an operator far away."""
    failures = math.ceil(hang_timeout_seconds / _PROBE_SECONDS)
    probe = {"httpGet": {"path": "/healthz", "port": PORT}, "timeoutSeconds": 5}
    return probe | {"periodSeconds": _PROBE_SECONDS, "failureThreshold": failures}


def _environment(run: Run, *, attempt: int, settings: Settings) -> list[Manifest]:
    image = _spec(run).trainer.image or settings.trainer_image
    told = custom_config(run, attempt=attempt) if _is_custom(run) else trainer_config(run, attempt=attempt, image=image)
    config = told.encode()
    found: list[Manifest] = [
        {"name": CONFIG_VARIABLE, "value": config.replace("$", "$$")},  # the kubelet expands $(NAME), and makes $$ a $
        {"name": "TMPDIR", "value": CACHE_MOUNT},
        {"name": HUB_VARIABLE, "value": f"{CACHE_MOUNT}/huggingface"},
        {"name": "XDG_CACHE_HOME", "value": CACHE_MOUNT},
    ]
    job_name = names.job(run.metadata.name, attempt)
    found += gang.environment(_spec(run).resources, job_name=job_name, uid=run.metadata.uid)
    found += _credentials(_spec(run))
    if not _is_custom(run):
        return found
    progress = f"{CACHE_MOUNT}/progress"
    return custom.environment(_spec(run), ours=found, progress=progress, grace_seconds=GRACE_SECONDS)


def _credentials(spec: FineTuneRunSpec) -> list[Manifest]:
    """Each variable once: what is for the model comes first."""
    found: list[Manifest] = []
    if spec.model is not None and spec.model.credentials is not None:
        secret = spec.model.credentials.secret_name
        if Uri.parse(spec.model.uri).scheme == Scheme.HUB:
            found.append(_from_secret(TOKEN_VARIABLE, secret, "token"))
        else:
            found += _store_keys(secret)
    if spec.dataset is not None and spec.dataset.credentials is not None:
        there = {entry["name"] for entry in found}
        more = _store_keys(spec.dataset.credentials.secret_name)
        found += [entry for entry in more if entry["name"] not in there]
    if spec.storage.credentials is not None:  # under names of their own: the data may lie in another store
        found += _store_keys(spec.storage.credentials.secret_name, prefix=UPLOAD_PREFIX)
    if spec.tracking.mlflow is not None and spec.tracking.mlflow.credentials is not None:
        secret = spec.tracking.mlflow.credentials.secret_name
        found += [_from_secret(key, secret, key, optional=True) for key in MLFLOW_KEYS]
    return found


def _store_keys(secret: str, prefix: str = "") -> list[Manifest]:
    return [_from_secret(prefix + key, secret, key, optional=True) for key in STORE_KEYS]


def _from_secret(variable: str, secret: str, key: str, *, optional: bool = False) -> Manifest:
    """Read by the kubelet, never by the operator."""
    reference: Manifest = {"name": secret, "key": key} | ({"optional": True} if optional else {})
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def _resources(resources: Resources) -> Manifest:
    """CPU has no limit: throttling a training helps nobody, and the request already is its share."""
    devices = {resources.device_resource: str(resources.devices_per_node)} if resources.device_resource else {}
    return {
        "requests": {"cpu": resources.cpu, "memory": resources.memory, **devices},
        "limits": {"memory": resources.memory, **devices},
    }


def _mounts(run: Run) -> list[tuple[Manifest, Manifest]]:
    """Each volume with its mount."""
    spec = _spec(run)
    run_mount: Manifest = {"name": "run", "mountPath": RUN_MOUNT}
    if spec.storage.sub_path:
        run_mount["subPath"] = spec.storage.sub_path
    found = [
        ({"name": "run", "persistentVolumeClaim": {"claimName": claim_name(run)}}, run_mount),
        ({"name": "cache", "emptyDir": {}}, {"name": "cache", "mountPath": CACHE_MOUNT}),
    ]
    if _is_custom(run):
        found.append(custom.mount())
    found += [_source(name, uri, mount) for name, uri, mount in _sources(run) if _path(uri, mount) is not None]
    shared_memory = spec.resources.shared_memory
    if shared_memory is None and spec.resources.devices_per_node > 1:  # processes hand tensors to each other there
        shared_memory = spec.resources.memory
    if shared_memory is not None:
        memory = {"medium": "Memory", "sizeLimit": shared_memory}
        found.append(
            ({"name": "shared-memory", "emptyDir": memory}, {"name": "shared-memory", "mountPath": SHARED_MEMORY})
        )
    return found


def _sources(run: Run) -> Iterator[tuple[str, str, str]]:
    """Name, URI and mount of all that is read."""
    spec, model = _spec(run), _model(run)
    if spec.dataset is not None:
        yield "data", spec.dataset.train.uri, DATA_MOUNT
        if spec.dataset.eval is not None:
            yield "eval", spec.dataset.eval.uri, EVAL_MOUNT
    if model is not None:
        yield "model", model.uri, MODEL_MOUNT
    if model is not None and model.adapter_uri is not None:
        yield "adapter", model.adapter_uri, ADAPTER_MOUNT


def _source(name: str, uri: str, path: str) -> tuple[Manifest, Manifest]:
    """A volume that is only read. A claim is mounted whole: a path that isn't there is the trainer's to report."""
    place = Uri.parse(uri)
    mount = {"name": name, "mountPath": path, "readOnly": True}
    if place.scheme == Scheme.CONFIG_MAP:
        items = [{"key": place.path, "path": place.path}]
        return {"name": name, "configMap": {"name": place.name, "items": items}}, mount
    return {"name": name, "persistentVolumeClaim": {"claimName": place.name}}, mount


def _path(uri: str, mount: str) -> str | None:
    """Where a volume's `uri` is mounted; None for what the trainer fetches itself, or can't read either and says so."""
    try:
        place = Uri.parse(uri)
    except ValueError:
        return None
    return f"{mount}/{place.path}".rstrip("/") if place.scheme in (Scheme.CLAIM, Scheme.CONFIG_MAP) else None


def _evaluation(data: EvalData) -> DataSource:
    return DataSource(uri=data.uri, path=_path(data.uri, EVAL_MOUNT), max_samples=data.max_samples)


def _model(run: Run) -> ResolvedModel | None:
    """As it was resolved when the run began; a Custom task may have none."""
    asked = _spec(run).model
    return run.status.model or (None if asked is None else ResolvedModel(uri=asked.uri))


def _device(resources: Resources) -> Literal["Auto", "CPU"]:
    return "Auto" if resources.device_resource else "CPU"
