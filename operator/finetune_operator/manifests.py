"""The objects that the operator creates, whole: claim, Job and Kubernetes Event. Pure builders; they touch nothing.

What a Job may do is decided here and nowhere else: it passes Pod Security `restricted`, holds no Kubernetes
credential, and mounts nothing but what the run names in its own namespace.
"""

from datetime import UTC
from typing import Any, Literal

from finetune_api.compute import ClaimTemplate, Resources, Retain
from finetune_api.snapshot import PORT, EventType
from finetune_api.spec import FineTuneRunSpec
from finetune_api.status import RunEvent
from finetune_api.trainer_config import (
    CONFIG_VARIABLE,
    DATA_MOUNT,
    MODEL_MOUNT,
    RUN_MOUNT,
    TOKEN_VARIABLE,
    DataConfig,
    DataSource,
    ModelSource,
    RunIdentity,
    TrainerConfig,
)
from finetune_api.types import API_VERSION, KIND
from finetune_api.uris import Scheme, Uri
from finetune_operator import names
from finetune_operator.settings import Settings
from finetune_operator.world import Run

Manifest = dict[str, Any]

CACHE_MOUNT = "/mnt/cache"
"""Room for temporary files; the root file system is read-only."""
HUB_VARIABLE = "HF_HOME"
"""Where the hub's library keeps what it downloads."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - what PyTorch calls it
GRACE_SECONDS = 300
"""Between SIGTERM and SIGKILL: a step and a save must fit in."""
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
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {
                    "labels": names.labels(run.metadata.name, attempt=attempt),
                    "annotations": {names.RUN_UID_ANNOTATION: run.metadata.uid},
                },
                "spec": _pod_spec(run, attempt=attempt, settings=settings),
            },
        },
    }


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
        "type": "Warning" if entry.type in (EventType.FAILED, EventType.RESTARTED) else "Normal",
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
        "source": {"component": names.MANAGER},
    }


def trainer_config(run: Run, *, attempt: int) -> TrainerConfig:
    """What the trainer is told: the spec with every place resolved to a path in its container."""
    spec = _spec(run)
    dataset = spec.dataset
    return TrainerConfig(
        run=RunIdentity(
            namespace=run.metadata.namespace, name=run.metadata.name, uid=run.metadata.uid, attempt=attempt
        ),
        model=ModelSource(uri=spec.model.uri, path=_model_path(spec), trust_remote_code=spec.model.trust_remote_code),
        task=spec.task,
        dataset=DataConfig(
            train=DataSource(uri=dataset.train.uri, path=_data_path(dataset.train.uri)),
            format=dataset.format,
            columns=dataset.columns,
            template=dataset.template,
        ),
        method=spec.method,
        training=spec.training,
        checkpoint=spec.checkpoint,
        device=_device(spec.resources),
    )


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
    return {
        "name": names.TRAINER_CONTAINER,
        "image": spec.trainer.image or settings.trainer_image,
        "env": _environment(run, attempt=attempt),
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


def _environment(run: Run, *, attempt: int) -> list[Manifest]:
    config = trainer_config(run, attempt=attempt).encode()
    found: list[Manifest] = [
        {"name": CONFIG_VARIABLE, "value": config.replace("$", "$$")},  # the kubelet expands $(NAME), and makes $$ a $
        {"name": "TMPDIR", "value": CACHE_MOUNT},
        {"name": HUB_VARIABLE, "value": f"{CACHE_MOUNT}/huggingface"},
    ]
    credentials = _spec(run).model.credentials
    if credentials is not None:
        reference = {"secretKeyRef": {"name": credentials.secret_name, "key": "token"}}
        found.append({"name": TOKEN_VARIABLE, "valueFrom": reference})
    return found


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
        _source("data", spec.dataset.train.uri, DATA_MOUNT),
    ]
    if _model_path(spec) is not None:
        found.append(_source("model", spec.model.uri, MODEL_MOUNT))
    if spec.resources.shared_memory is not None:
        memory = {"medium": "Memory", "sizeLimit": spec.resources.shared_memory}
        found.append(
            ({"name": "shared-memory", "emptyDir": memory}, {"name": "shared-memory", "mountPath": SHARED_MEMORY})
        )
    return found


def _source(name: str, uri: str, path: str) -> tuple[Manifest, Manifest]:
    """A volume that is only read. A claim is mounted whole: a path that isn't there is the trainer's to report."""
    place = Uri.parse(uri)
    mount = {"name": name, "mountPath": path, "readOnly": True}
    if place.scheme == Scheme.CONFIG_MAP:
        items = [{"key": place.path, "path": place.path}]
        return {"name": name, "configMap": {"name": place.name, "items": items}}, mount
    return {"name": name, "persistentVolumeClaim": {"claimName": place.name}}, mount


def _data_path(uri: str) -> str:
    return f"{DATA_MOUNT}/{Uri.parse(uri).path}"


def _model_path(spec: FineTuneRunSpec) -> str | None:
    """None for a model of the hub, which the trainer loads itself."""
    place = Uri.parse(spec.model.uri)
    return f"{MODEL_MOUNT}/{place.path}".rstrip("/") if place.scheme == Scheme.CLAIM else None


def _device(resources: Resources) -> Literal["Auto", "CPU"]:
    return "Auto" if resources.device_resource else "CPU"
