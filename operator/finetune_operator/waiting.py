"""Why a run that has a Job isn't training yet, in words that name the field to change. Pure."""

import re
from dataclasses import dataclass
from datetime import timedelta

from finetune_api.fields import cut
from finetune_api.uris import Uri
from finetune_operator import kueue
from finetune_operator.children import Claim, Job, Pod
from finetune_operator.errors import TakenError
from finetune_operator.settings import Settings
from finetune_operator.world import World

UNSCHEDULABLE = "Unschedulable"
"""No node has what the pod asks for."""
CLAIM_PENDING = "ClaimPending"
"""The volume isn't there."""
POD_REFUSED = "PodRefused"
"""The API server doesn't let the Job make its pod: quota, Pod Security or a webhook."""
CHILD_REFUSED = "Refused"
"""The API server refuses the claim or the Job: quota, a policy or a webhook."""
NAME_TAKEN = "NameTaken"
"""An object that isn't this run's has the name of its claim or Job."""
IMAGE_UNAVAILABLE = "ImageUnavailable"
"""The image can't be pulled."""
CONTAINER_WAITING = "ContainerWaiting"
"""The node can't start the container."""
NODE_UNREACHABLE = "NodeUnreachable"
"""A pod should have ended long ago, and its node doesn't say that it has."""

PROFILE_MISSING = "ProfileMissing"
"""There is no profile of the name that the run gives."""

_IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_OVERDUE = timedelta(seconds=60)
_TRANSIENT_REASONS = frozenset({"", "ContainerCreating", "PodInitializing"})


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """What is waited for."""

    reason: str
    message: str
    for_room: bool
    """Whether the cluster lacks room now (the run is Queued), rather than something being wrong with the pod."""


def why(world: World, *, settings: Settings) -> Waiting | None:
    """What keeps the newest attempt from running, or a new one from beginning; None if nothing unusual does."""
    if lacks_its_profile(world):
        return _profile_missing(world)
    if not world.turn.admitted:
        return Waiting(reason=world.turn.reason, message=world.turn.message, for_room=True)
    if world.job is not None and world.job.suspended and not world.job.ended and kueue.concerns(world.run.spec):
        return _for_kueue(world, job=world.job, settings=settings)
    overdue = next((pod for pod in world.live_pods if pod.deletion and world.now - pod.deletion > _OVERDUE), None)
    if overdue is not None:
        return _node_unreachable(overdue)
    if world.job is None or world.job.ended or not is_late(world, settings=settings):
        return None
    for check in (_pod_refused, _claim_pending, _claim_missing, _unschedulable, _container_waiting):
        found = check(world)
        if found is not None:
            return found
    return None


def _for_kueue(world: World, *, job: Job, settings: Settings) -> Waiting | None:
    new = job.created is None or (world.now - job.created).total_seconds() < settings.queued_seconds
    if new and world.workload is kueue.Silence.NO_WORKLOAD:
        return None  # Kueue is about to see it
    queue = world.run.spec.queue.name if world.run.spec is not None else None
    reason, message = kueue.waits(world.workload, queue=queue or "", job=job.name)
    return Waiting(reason=reason, message=cut(message), for_room=True)


def is_late(world: World, *, settings: Settings) -> bool:
    """Whether the newest attempt should be running by now, and isn't."""
    if world.job is None or world.started is not None or (world.pod is not None and world.pod.ended):
        return False
    since = world.job.started or world.job.created
    late = since is not None and (world.now - since).total_seconds() >= settings.queued_seconds
    return late and not world.job.suspended


def explained_by(world: World) -> tuple[Claim | Job | Pod, ...]:
    """The children whose Events say why such an attempt doesn't run yet."""
    claim = (world.claim,) if world.claim is not None and world.claim.phase != "Bound" else ()
    newest = world.pod or world.job
    return claim + ((newest,) if newest is not None else ())


def lacks_its_profile(world: World) -> bool:
    """Whether a run that would begin can't, for want of its profile."""
    wants = world.run.spec is not None and not world.run.spec.suspend
    return world.attempt == 0 and wants and world.run.missing_profile != ""


def _profile_missing(world: World) -> Waiting:
    name = world.run.missing_profile
    message = f"There is no ClusterFineTuneProfile {name} (spec.profile): the run begins once it is there."
    return Waiting(reason=PROFILE_MISSING, message=message, for_room=True)


def _node_unreachable(pod: Pod) -> Waiting:
    """Kubernetes can't tell whether such a pod still writes to its volume, and so no other may be started."""
    message = (
        f"Pod {pod.name} should have ended and node {pod.node} doesn't say that it has. If the node is gone, delete it,"
        " or taint it with node.kubernetes.io/out-of-service"
    )
    return Waiting(reason=NODE_UNREACHABLE, message=message, for_room=False)


def _warning(world: World, kind: str, *, but: str = "") -> str:
    return next((f"{w.reason}: {w.message}" for w in world.warnings if w.kind == kind and w.reason != but), "")


def _pod_refused(world: World) -> Waiting | None:
    said = next((f"{w.reason}: {w.message}" for w in world.warnings if w.reason == "FailedCreate"), "")
    if world.pod is not None or not said:
        return None
    return Waiting(reason=POD_REFUSED, message=cut(f"No pod can be created: {said}"), for_room=True)


def _claim_pending(world: World) -> Waiting | None:
    said = _warning(world, "PersistentVolumeClaim")
    if world.claim is None or world.claim.phase == "Bound" or not said:
        return None
    named = f'storage class "{world.claim.storage_class}"' if world.claim.storage_class else "the default storage class"
    message = f"Claim {world.claim.name} (spec.storage) is not bound; it asks for {named}. {said}"
    return Waiting(reason=CLAIM_PENDING, message=cut(message), for_room=True)


def _claim_missing(world: World) -> Waiting | None:
    """A claim that the user names, and that isn't there."""
    found = re.search(r'persistentvolumeclaim "([^"]+)" not found', world.pod.unschedulable) if world.pod else None
    if found is None:
        return None
    where = f"in namespace {world.run.metadata.namespace}"
    message = (
        f"There is no claim {found[1]}{_named_by(world, found[1])} {where}: create it, or name another in a new run"
    )
    return Waiting(reason=CLAIM_PENDING, message=cut(message), for_room=True)


def _named_by(world: World, name: str) -> str:
    """The fields of the spec in which `name` stands, in brackets."""
    spec = world.run.spec
    if spec is None:
        return ""
    model, dataset, storage = spec.model, spec.dataset, spec.storage
    named = {
        "spec.model.uri": model and Uri.parse(model.uri).name,
        "spec.model.credentials.secretName": model and model.credentials and model.credentials.secret_name,
        "spec.dataset.train.uri": dataset and Uri.parse(dataset.train.uri).name,
        "spec.storage.claimName": storage.claim_name,
        "spec.storage.credentials.secretName": storage.credentials and storage.credentials.secret_name,
    }
    fields = [field for field, value in named.items() if value == name]
    return f" ({', '.join(fields)})" if fields else ""


def _unschedulable(world: World) -> Waiting | None:
    if world.pod is None or not world.pod.unschedulable or world.run.spec is None:
        return None
    asked = world.run.spec.resources
    devices = f"{asked.devices_per_node} {asked.device_resource}, " if asked.device_resource else ""
    cannot = f"No node has room for {devices}cpu {asked.cpu}, memory {asked.memory} (spec.resources)"
    return Waiting(reason=UNSCHEDULABLE, message=cut(f"{cannot}: {world.pod.unschedulable}"), for_room=True)


def _container_waiting(world: World) -> Waiting | None:
    pod = world.pod
    if pod is None:
        return None
    said = pod.waiting_message or _warning(world, "Pod", but="FailedScheduling")
    if pod.waiting_reason in _IMAGE_REASONS:
        message = f"Pod {pod.name}: the image (spec.trainer.image) can't be pulled. {pod.waiting_reason}: {said}"
        return Waiting(reason=IMAGE_UNAVAILABLE, message=cut(message), for_room=False)
    if pod.waiting_reason in _TRANSIENT_REASONS and not said:
        return None
    missing = re.search(r'(?:configmap|secret) "([^"]+)" not found', said)
    named = _named_by(world, missing[1]) if missing else ""
    message = f"Pod {pod.name} can't start: {pod.waiting_reason} {said}{named}"
    return Waiting(reason=CONTAINER_WAITING, message=cut(message), for_room=False)


def refused(error: Exception) -> Waiting:
    """The API server doesn't take the claim or the Job."""
    reason = NAME_TAKEN if isinstance(error, TakenError) else CHILD_REFUSED
    return Waiting(reason=reason, message=cut(str(error)), for_room=True)
