"""What the constraint tests know of each field of a profile: mostly what they know of the same field of a run.

The paths begin with `profile`, so that they are told from a run's `spec`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tests import constraint_rows as runs

Object = dict[str, Any]

SECTIONS = ("method", "training", "checkpoint", "recovery")
_OF_A_RUN: Mapping[str, str] = {
    **{f"spec.{name}": f"profile.defaults.{name}" for name in SECTIONS},
    "spec.storage.claimTemplate": "profile.defaults.claimTemplate",
    "spec.tracking.mlflow.trackingUri": "profile.defaults.mlflow.trackingUri",
    "spec.trainer.image": "profile.image",
    **{
        f"spec.resources.{name}": f"profile.{name}"
        for name in ("nodeSelector", "tolerations", "deviceResource", "priorityClassName")
    },
}
"""A run's object or field, and where a profile has the same."""
SIZES, PLACES = ("cpu", "memory", "sharedMemory"), ("defaults.resources", "limits")

SPEC: Object = {
    "description": "One A100 for adapters of up to 13B",
    "device": "A100 80GB",
    "isDefault": False,
    "namespaces": ["ml"],
    "deviceResource": "nvidia.com/gpu",
    "nodeSelector": {"pool": "a100"},
    "tolerations": runs.SPEC["resources"]["tolerations"],
    "priorityClassName": "batch",
    "image": "registry.example.com/trainer:1.2",
    "defaults": {
        **{name: runs.SPEC[name] for name in SECTIONS},
        "resources": {"nodes": 1, "devicesPerNode": 1, "cpu": "8", "memory": "64Gi", "sharedMemory": "16Gi"},
        "claimTemplate": runs.SPEC["storage"]["claimTemplate"],
        "mlflow": {"trackingUri": "http://mlflow.mlflow.svc:5000/", "experiment": "support"},
    },
    "limits": {
        "nodes": 8,
        "devicesPerNode": [8],
        "devices": 64,
        "cpu": "64",
        "memory": "512Gi",
        "sharedMemory": "64Gi",
        "storageSize": "2Ti",
        "storageClassNames": ["fast"],
        "modelUris": ["hf://"],
        "datasetUris": ["s3://datasets/"],
        "uploadUris": ["s3://models/team-a/"],
        "mlflowUris": ["https://mlflow.example.com/"],
        "remoteCode": False,
        "customTasks": False,
        "ownImages": False,
    },
}
"""One value for every field."""

CONTEXTS: Mapping[str, Object] = {
    "profile.defaults.training.batchSize.global": {
        "defaults": runs.CONTEXTS["spec.training.batchSize.global"],
    },
}

PREFIXES = (
    ["hf://", "hf://my-organization/", "s3://models/", "s3://models/team-a/", "https://data.example.com:8443/a b/"],
    [
        "",
        "hf",
        "hf:/",
        "hf://org",
        "s3://models/../",
        "s3://models//",
        "s3://models/.a/",
        "://",
        "S3://a/",
        "s3://a/b",
        "*",
    ],
)


def _moved(path: str) -> str | None:
    """Where a profile has what a run has there."""
    for old, new in _OF_A_RUN.items():
        if path == old or path.startswith((f"{old}.", f"{old}[", f"{old}{{")):
            return new + path.removeprefix(old)
    return None


FORMATS: Mapping[str, tuple[list[Any], list[Any]]] = {
    **{moved: row for path, row in runs.FORMATS.items() if (moved := _moved(path))},
    **{f"profile.{where}.{name}": runs.FORMATS[f"spec.resources.{name}"] for name in SIZES for where in PLACES},
    "profile.namespaces[]": runs.NAMES,
    "profile.limits.storageSize": runs.BYTES,
    "profile.limits.storageClassNames[]": runs.NAMES,
    **{f"profile.limits.{name}Uris[]": PREFIXES for name in ("model", "dataset", "upload", "mlflow")},
}
"""Field: values that its format takes, and values that it doesn't."""


def _change(change: Object) -> Object:
    """A change of a run's spec, as one of a profile's."""
    resources: Object = change.get("resources", {})
    return {"defaults": {name: change[name] for name in SECTIONS if name in change}} | resources


RULES: Mapping[tuple[str, str], tuple[Object, Object]] = {
    (moved, field): (_change(good), _change(bad))
    for (path, field), (good, bad) in runs.RULES.items()
    if (moved := _moved(path))
}

LONGER: Mapping[str, Callable[[str, int], str]] = {
    **{moved: longer for path, longer in runs.LONGER.items() if (moved := _moved(path))},
    **{f"profile.{where}.{name}": str.zfill for name in SIZES for where in PLACES},
    "profile.limits.storageSize": str.zfill,
    **{
        f"profile.limits.{name}Uris[]": lambda text, length: f"{text.ljust(length - 1, 'a')}/"
        for name in ("model", "dataset", "upload", "mlflow")
    },
}
SHORT_FORMATS = frozenset(moved for path in runs.SHORT_FORMATS if (moved := _moved(path)))
