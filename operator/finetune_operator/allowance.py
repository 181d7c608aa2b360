"""What a profile allows a run, limit by limit: each check names the field, what was asked and what may be. Pure."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from finetune_api.compute import ClaimTemplate, Resources
from finetune_api.data import Task
from finetune_api.fields import cut
from finetune_api.profile import ClusterFineTuneProfileSpec, ProfileLimits
from finetune_api.spec import FineTuneRunSpec
from finetune_operator.errors import UserError

_UNITS = {"m": Decimal("0.001")}
_UNITS |= {unit: Decimal(1000) ** power for power, unit in enumerate(("", "k", "M", "G", "T", "P"))}
_UNITS |= {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate(("", "K", "M", "G", "T", "P")) if unit}


def quantity(text: str) -> Decimal:
    """A number as Kubernetes writes it, e.g. 64Gi or 500m."""
    number = text.rstrip("mkKMGTPi")
    return Decimal(number) * _UNITS[text[len(number) :]]


def defaults(limits: ProfileLimits) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What a run gets that says nothing, where the API's default isn't allowed or isn't one of the choices."""
    if limits.devices_per_node:
        yield ("resources", "devicesPerNode"), min(limits.devices_per_node)
    for path, limit, usual in (
        (("resources", "cpu"), limits.cpu, Resources().cpu),
        (("resources", "memory"), limits.memory, Resources().memory),
        (("storage", "claimTemplate", "size"), limits.storage_size, ClaimTemplate().size),
    ):
        if limit is not None and quantity(usual) > quantity(limit):
            yield path, limit
    if limits.storage_class_names:
        yield ("storage", "claimTemplate", "storageClassName"), limits.storage_class_names[0]


def of_the_profile(
    asked: FineTuneRunSpec, profile: ClusterFineTuneProfileSpec, *, name: str, namespace: str
) -> Iterator[UserError]:
    """What the run, as it is written, can't have from that profile: it is for others, or has what is fixed there."""
    if profile.namespaces and namespace not in profile.namespaces:
        yield UserError("spec.profile", f"profile {name} is not for namespace {namespace}: name another")
    yield from _nodes(asked.resources, profile, name)
    yield from _image(asked, profile, name)
    yield from _mlflow(asked, profile, name)


def _nodes(asked: Resources, profile: ClusterFineTuneProfileSpec, name: str) -> Iterator[UserError]:
    if "device_resource" in asked.model_fields_set and asked.device_resource != profile.device_resource:
        yield _fixed("deviceResource", asked.device_resource, profile.device_resource, name)
    if asked.priority_class_name not in ("", profile.priority_class_name):
        yield _fixed("priorityClassName", asked.priority_class_name, profile.priority_class_name, name)
    for key, value in asked.node_selector.items():
        if profile.node_selector.get(key, value) != value:
            yield _fixed(f"nodeSelector.{key}", value, profile.node_selector[key], name)
    for toleration in asked.tolerations:
        if toleration not in profile.tolerations:
            about = toleration.key or "every taint"
            yield UserError("spec.resources.tolerations", f"profile {name} doesn't tolerate {about}: remove it")


def _image(asked: FineTuneRunSpec, profile: ClusterFineTuneProfileSpec, name: str) -> Iterator[UserError]:
    if asked.task == Task.CUSTOM:
        if not profile.limits.custom_tasks:
            yield UserError("spec.task", f"profile {name} doesn't allow task Custom: name another (limits.customTasks)")
    elif asked.trainer.image not in ("", profile.image) and not profile.limits.own_images:
        message = f"profile {name} doesn't allow an image of the run's own: remove it (limits.ownImages)"
        yield UserError("spec.trainer.image", message)


def _mlflow(asked: FineTuneRunSpec, profile: ClusterFineTuneProfileSpec, name: str) -> Iterator[UserError]:
    mlflow, own = asked.tracking.mlflow, profile.defaults.mlflow
    if mlflow is not None and (own is None or mlflow.tracking_uri != own.tracking_uri):
        yield from _place("tracking.mlflow.trackingUri", mlflow.tracking_uri, profile.limits.mlflow_uris, name)


def of_the_limits(spec: FineTuneRunSpec, limits: ProfileLimits, *, name: str) -> Iterator[UserError]:
    """What of the spec, with the profile's defaults in it, is over a limit."""
    yield from _sizes(spec, limits, name)
    yield from _storage(spec, limits, name)
    model, dataset = spec.model, spec.dataset
    if model is not None:
        yield from _place("model.uri", model.uri, limits.model_uris, name)
        if model.trust_remote_code and not limits.remote_code:
            yield UserError("spec.model.trustRemoteCode", f"profile {name} doesn't allow remote code: remove it")
    if dataset is not None:
        yield from _place("dataset.train.uri", dataset.train.uri, limits.dataset_uris, name)
        if dataset.eval is not None:
            yield from _place("dataset.eval.uri", dataset.eval.uri, limits.dataset_uris, name)
    if spec.storage.upload_uri is not None:
        yield from _place("storage.uploadUri", spec.storage.upload_uri, limits.upload_uris, name)


def _sizes(spec: FineTuneRunSpec, limits: ProfileLimits, name: str) -> Iterator[UserError]:
    asked = spec.resources
    if limits.nodes is not None and asked.nodes > limits.nodes:
        yield _over("resources.nodes", asked.nodes, limits.nodes, name)
    if asked.device_resource:
        choices, devices = limits.devices_per_node, asked.nodes * asked.devices_per_node
        if choices is not None and asked.devices_per_node not in choices:
            may = ", ".join(str(choice) for choice in sorted(choices))
            message = f"{asked.devices_per_node} is not what profile {name} offers: use one of {may}"
            yield UserError("spec.resources.devicesPerNode", message)
        if limits.devices is not None and devices > limits.devices:
            message = (
                f"{asked.nodes} nodes with {asked.devices_per_node} devices are {devices}, more than profile {name}"
                f" allows: {limits.devices} at most"
            )
            yield UserError("spec.resources.nodes", message)
    for field, value, limit in (
        ("resources.cpu", asked.cpu, limits.cpu),
        ("resources.memory", asked.memory, limits.memory),
        ("resources.sharedMemory", asked.shared_memory, limits.shared_memory),
    ):
        if value is not None and limit is not None and quantity(value) > quantity(limit):
            yield _over(field, value, limit, name)


def _storage(spec: FineTuneRunSpec, limits: ProfileLimits, name: str) -> Iterator[UserError]:
    """A claim that the run names is its namespace's own affair."""
    if spec.storage.claim_name is not None:
        return
    asked, names = spec.storage.claim_template or ClaimTemplate(), limits.storage_class_names
    if limits.storage_size is not None and quantity(asked.size) > quantity(limits.storage_size):
        yield _over("storage.claimTemplate.size", asked.size, limits.storage_size, name)
    if names is not None and asked.storage_class_name not in names:
        may = cut(", ".join(names), 300)
        message = f"{asked.storage_class_name} is not what profile {name} offers: use one of {may}"
        yield UserError("spec.storage.claimTemplate.storageClassName", message)


def _place(field: str, uri: str, allowed: Sequence[str] | None, name: str) -> Iterator[UserError]:
    if allowed is None or any(f"{uri}/".startswith(prefix) for prefix in allowed):
        return
    may = f"only what begins with {cut(', '.join(allowed), 300)}" if allowed else "none"
    yield UserError(f"spec.{field}", f"{cut(uri, 200)} is not allowed by profile {name}: {may}")


def _over(field: str, asked: object, limit: object, name: str) -> UserError:
    return UserError(f"spec.{field}", f"{asked} is more than profile {name} allows: {limit} at most")


def _fixed(field: str, asked: str, fixed: str, name: str) -> UserError:
    message = f"{asked or '(none)'} is not what profile {name} has: leave it out, or use {fixed or 'none'}"
    return UserError(f"spec.resources.{field}", message)
