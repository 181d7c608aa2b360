"""The objects that the operator creates, whole: claim, Job, Service and Kubernetes Event. Pure builders; they touch
nothing.
"""

from datetime import UTC

from finetune_api.compute import ClaimTemplate, Retain
from finetune_api.snapshot import EventType
from finetune_api.status import RunEvent
from finetune_api.types import API_VERSION, KIND
from finetune_operator import custom, failurerules, gang, kueue, names, pods
from finetune_operator.mounts import claim_name
from finetune_operator.names import Manifest
from finetune_operator.run import Run
from finetune_operator.settings import Settings


def claim(run: Run) -> Manifest:
    """The claim for checkpoints and output. It outlives the run, unless Delete is asked for."""
    storage = run.valid_spec.storage
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
    metadata["labels"] |= kueue.labels(run.valid_spec, retried=failed)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": 0,
            **gang.job(run.valid_spec.resources),
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [failurerules.manifest(rule) for rule in failurerules.of(run)]},
            **kueue.suspension(run.valid_spec),
            "template": {
                "metadata": {
                    "labels": names.labels(run.metadata.name, attempt=attempt)
                    | gang.labels(run.valid_spec.resources, uid=run.metadata.uid),
                    "annotations": {names.RUN_UID_ANNOTATION: run.metadata.uid}
                    | (custom.annotations() if run.is_custom else {}),
                },
                "spec": pods.spec_of(run, attempt=attempt, settings=settings),
            },
        },
    }


def service(run: Run) -> Manifest | None:
    """What gives the pods of several nodes names; None with one."""
    if run.valid_spec.resources.nodes == 1:
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
