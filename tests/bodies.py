"""Children as the API server sends them: raw objects of the run in `worlds`, each with what its test is about."""

from typing import Any

from finetune_operator import manifests, names
from tests import builders, worlds

Object = dict[str, Any]


def job(attempt: int = 1, *, uid: str = "", version: int = 10, **changes: Any) -> Object:
    """The Job of an attempt, as it was created."""
    found = manifests.job(worlds.run(), attempt=attempt, settings=worlds.SETTINGS)
    return _stored(found, uid=uid or f"job-{attempt}", version=version, changes=changes)


def claim(*, uid: str = "claim-1", version: int = 10, **changes: Any) -> Object:
    """The run's claim, as it was created."""
    return _stored(manifests.claim(worlds.run()), uid=uid, version=version, changes=changes)


def pod(attempt: int = 1, *, uid: str = "", version: int = 10, **changes: Any) -> Object:
    """The pod that the Job controller makes of an attempt's Job."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "controller": True, "uid": f"job-{attempt}"}
    template = manifests.job(worlds.run(), attempt=attempt, settings=worlds.SETTINGS)["spec"]["template"]
    place = {"name": f"{names.job(worlds.KEY.name, attempt)}-abcde", "namespace": worlds.KEY.namespace}
    found = builders.merged(template, {"metadata": {**place, "ownerReferences": [owner]}})
    return _stored(found, uid=uid or f"pod-{attempt}", version=version, changes=changes)


def running(attempt: int = 1, *, ip: str = "10.0.0.7", **more: Any) -> Object:
    """The same, running."""
    container = {"name": names.TRAINER_CONTAINER, "state": {"running": {"startedAt": "2026-03-01T12:00:05Z"}}}
    return pod(attempt, status={"phase": "Running", "podIP": ip, "containerStatuses": [container]}, **more)


def _stored(manifest: Object, *, uid: str, version: int, changes: Any) -> Object:
    known = {"uid": uid, "resourceVersion": str(version), "creationTimestamp": "2026-03-01T12:00:01Z"}
    return builders.merged(builders.merged(manifest, {"metadata": known}), changes)
