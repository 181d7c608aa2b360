"""The pod of an attempt. What it may do is decided here and nowhere else: it passes Pod Security `restricted`, holds no
Kubernetes credential, and mounts nothing but what the run names in its own namespace. Pure.
"""

import math

from finetune_api.compute import Resources
from finetune_api.snapshot import PORT
from finetune_api.spec import OnHang
from finetune_operator import custom, environment, gang, mounts, names
from finetune_operator.environment import GRACE_SECONDS
from finetune_operator.names import Manifest
from finetune_operator.run import Run
from finetune_operator.settings import Settings

_PROBE_SECONDS = 10
_USER = 65532
"""The `nonroot` user of common base images."""


def spec_of(run: Run, *, attempt: int, settings: Settings) -> Manifest:
    """Its spec."""
    spec = run.valid_spec
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
        "volumes": [volume for volume, _ in mounts.of(run)],
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
    spec = run.valid_spec
    restarts = spec.recovery.on_hang == OnHang.RESTART
    return {
        **({"livenessProbe": _probe(spec.recovery.hang_timeout_seconds)} if restarts else {}),
        "name": names.TRAINER_CONTAINER,
        "image": spec.trainer.image or settings.trainer_image,
        **(custom.command(spec) if run.is_custom else {}),
        "env": environment.of(run, attempt=attempt, settings=settings),
        "ports": [{"name": "metrics", "containerPort": PORT}],
        "resources": _resources(spec.resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "File",
        "volumeMounts": [mount for _, mount in mounts.of(run)],
    }


def _probe(hang_timeout_seconds: int) -> Manifest:
    """Ends a trainer that doesn't even answer any more: the node tells that better than an operator far away."""
    failures = math.ceil(hang_timeout_seconds / _PROBE_SECONDS)
    probe = {"httpGet": {"path": "/healthz", "port": PORT}, "timeoutSeconds": 5}
    return probe | {"periodSeconds": _PROBE_SECONDS, "failureThreshold": failures}


def _resources(resources: Resources) -> Manifest:
    """CPU has no limit: throttling a training helps nobody, and the request already is its share."""
    devices = {resources.device_resource: str(resources.devices_per_node)} if resources.device_resource else {}
    return {
        "requests": {"cpu": resources.cpu, "memory": resources.memory, **devices},
        "limits": {"memory": resources.memory, **devices},
    }
