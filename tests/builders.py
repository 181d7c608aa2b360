"""Manifests and stored objects for tests: whole and valid, with what a test is about merged in.

builders.run("x", method={"type": "Full"})
builders.run("x", queue=None)             # None removes
builders.stored(builders.run("x"), status={"phase": "Running"})
"""

import copy
from collections.abc import Mapping
from typing import Any

from finetune_api import types
from finetune_api.spec import FineTuneRunSpec

Object = dict[str, Any]

CREATED = "2026-01-02T03:04:05Z"


def run(name: str = "support-bot", *, namespace: str = "default", **spec: Any) -> Object:
    """What a user applies: the least that is valid, and `spec` merged into it, in the manifest's own names."""
    least = {
        "model": {"uri": "pvc://models/tiny"},
        "dataset": {"train": {"uri": "pvc://datasets/train.jsonl"}},
    }
    return {
        "apiVersion": types.API_VERSION,
        "kind": types.KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": merged(least, spec),
    }


def profile(name: str = "a100", **spec: Any) -> Object:
    """What a platform team applies."""
    metadata = {"name": name}
    return {"apiVersion": types.API_VERSION, "kind": types.PROFILE_KIND, "metadata": metadata, "spec": dict(spec)}


def stored(manifest: Mapping[str, Any], *, uid: str = "", generation: int = 1, **more: Any) -> Object:
    """The same as the API server keeps it, with defaults and metadata; `more` is merged in (metadata=, status=)."""
    name = manifest["metadata"]["name"]
    filled = {
        "metadata": {
            "uid": uid or f"uid-of-{name}",
            "generation": generation,
            "resourceVersion": "1",
            "creationTimestamp": CREATED,
        },
        "spec": FineTuneRunSpec.parse(manifest["spec"]).to_wire(),
        "status": {"observedGeneration": -1},
    }
    return merged(merged(manifest, filled), more)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Object:
    """`base` with `changes`, object by object; None removes, anything else replaces. Neither is altered."""
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result
