"""Several devices for one attempt: what its pods are told of each other, and what lets them meet. Pure.

With several nodes the Job is Indexed, one pod for each node; they find the first by its name in a headless Service,
which exposes no port and makes nothing reachable that wasn't. The variables are torchrun's own, so that any image whose
command is torchrun works as it is. One pod's failure ends all: none can go on alone.
"""

from collections.abc import Iterator

from finetune_api.compute import AccessMode, Resources
from finetune_api.snapshot import GANG_PORT
from finetune_api.spec import FineTuneRunSpec
from finetune_operator import names
from finetune_operator.errors import UserError
from finetune_operator.names import Manifest


def job(resources: Resources) -> Manifest:
    """How many pods there are, and that each is somebody."""
    count = {"completions": resources.nodes, "parallelism": resources.nodes}
    return count | ({"completionMode": "Indexed"} if resources.nodes > 1 else {})


def labels(resources: Resources, *, uid: str) -> dict[str, str]:
    """Of each pod, so that the Service finds it."""
    return {names.SERVICE_LABEL: names.service(uid)} if resources.nodes > 1 else {}


def pod(resources: Resources, *, uid: str) -> Manifest:
    """That the pods have names, and that each has a node of its own."""
    if resources.nodes == 1:
        return {}
    term = {
        "labelSelector": {"matchLabels": {names.SERVICE_LABEL: names.service(uid)}},
        "topologyKey": "kubernetes.io/hostname",
    }
    apart = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    return {"subdomain": names.service(uid), "affinity": apart}


def environment(resources: Resources, *, job_name: str, uid: str) -> Iterator[Manifest]:
    """Where a pod's processes stand, and where the first pod is."""
    if resources.nodes == resources.devices_per_node == 1:
        return
    yield {"name": "PET_NNODES", "value": str(resources.nodes)}
    yield {"name": "PET_NPROC_PER_NODE", "value": str(resources.devices_per_node)}
    if resources.nodes > 1:
        index = {"fieldRef": {"fieldPath": f"metadata.annotations['{names.INDEX_ANNOTATION}']"}}
        yield {"name": "PET_NODE_RANK", "valueFrom": index}
        yield {"name": "PET_MASTER_ADDR", "value": f"{job_name}-0.{names.service(uid)}"}
        yield {"name": "PET_MASTER_PORT", "value": str(GANG_PORT)}


def service(metadata: Manifest, *, uid: str) -> Manifest:
    """The names of the pods; also of those that aren't ready, for they become ready together."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.SERVICE_LABEL: names.service(uid)},
        },
    }


def contradictions(spec: FineTuneRunSpec) -> Iterator[UserError]:
    """What several nodes can't do with these settings."""
    template = spec.storage.claim_template
    mode = template.access_mode if template is not None else AccessMode.READ_WRITE_ONCE
    if spec.resources.nodes > 1 and spec.storage.claim_name is None and mode != AccessMode.READ_WRITE_MANY:
        yield UserError(
            "spec.storage.claimTemplate.accessMode",
            f"{mode} is for one node, and resources.nodes is {spec.resources.nodes}: all of them write to the run's"
            " volume; use ReadWriteMany with a storage class that has it, or name such a claim in claimName",
        )
