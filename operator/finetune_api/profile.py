"""The spec of a ClusterFineTuneProfile: what a platform team offers, and up to where.

The hyperparameters are a run's own models, so that a profile can hold nothing that a run couldn't.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from finetune_api.compute import ClaimTemplate, DeviceResource, Toleration
from finetune_api.fields import ApiModel, Bytes, Cores, Format, LabelKey, LabelName, LabelValue, Name, NameOrEmpty
from finetune_api.method import CheckpointPolicy, Method, Training
from finetune_api.spec import ImageReference, Recovery, TrackingUri

Nodes = Annotated[int, Field(ge=1, le=1024)]
DevicesPerNode = Annotated[int, Field(ge=1, le=128)]


class DefaultResources(ApiModel):
    """What each pod asks for where its run doesn't say."""

    nodes: Nodes | None = None
    """Number of pods, each on a node of its own."""
    devices_per_node: DevicesPerNode | None = None
    """Devices of each pod."""
    cpu: Cores | None = None
    """CPU of each pod."""
    memory: Bytes | None = None
    """Memory of each pod."""
    shared_memory: Bytes | None = None
    """Size of /dev/shm; it counts as memory."""


class DefaultMlflow(ApiModel):
    """The MLflow server of runs that name none."""

    tracking_uri: TrackingUri
    """Address of the server."""
    experiment: Annotated[str, Field(max_length=256)] = ""
    """Experiment; empty means the namespace's name."""


class ProfileDefaults(ApiModel):
    """What holds where a run says nothing; field by field, and what a run says comes first."""

    method: Method = Method()
    """Which weights are trained."""
    training: Training = Training()
    """The hyperparameters."""
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    """When the state of the training is saved."""
    recovery: Recovery = Recovery()
    """What is done when an attempt ends too early."""
    resources: DefaultResources = DefaultResources()
    """What each pod asks for."""
    claim_template: ClaimTemplate | None = None
    """The claim of runs that name none of their own."""
    mlflow: DefaultMlflow | None = None
    """The MLflow server of runs that name none; not of task Custom."""


UriPrefix = Annotated[
    str,
    Field(max_length=256),
    Format(
        r"^[a-z][a-z0-9]*://(([-A-Za-z0-9._]+(:[0-9]+)?/)([^/\\%\x00-\x1f.][^/\\%\x00-\x1f]*/)*)?$",
        "must be the beginning of a URI up to a slash, e.g. hf://, hf://my-organization/ or s3://models/team-a/",
    ),
]
UriPrefixes = Annotated[tuple[UriPrefix, ...], Field(max_length=32)]


class ProfileLimits(ApiModel):
    """What a run may ask for at most. What is unset has no limit, but what is false isn't allowed."""

    nodes: Nodes | None = None
    """Nodes of a run."""
    devices_per_node: Annotated[tuple[DevicesPerNode, ...], Field(min_length=1, max_length=16)] | None = None
    """The numbers of devices that a pod may have; the least is the default."""
    devices: Annotated[int, Field(ge=1, le=131_072)] | None = None
    """Devices of a run: nodes times devices per node."""
    cpu: Cores | None = None
    """CPU of each pod."""
    memory: Bytes | None = None
    """Memory of each pod."""
    shared_memory: Bytes | None = None
    """Size of /dev/shm."""
    storage_size: Bytes | None = None
    """Size of the claim that is made for a run."""
    storage_class_names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=32)] | None = None
    """Storage classes of that claim; the first is the default."""
    model_uris: UriPrefixes | None = None
    """What `model.uri` may begin with."""
    dataset_uris: UriPrefixes | None = None
    """What the URIs of `dataset` may begin with."""
    upload_uris: UriPrefixes | None = None
    """What `storage.uploadUri` may begin with; an empty list allows no upload."""
    mlflow_uris: UriPrefixes | None = None
    """What `tracking.mlflow.trackingUri` may begin with; an empty list allows none but the profile's own."""
    remote_code: bool = False
    """Whether `model.trustRemoteCode` may be true."""
    custom_tasks: bool = False
    """Whether task Custom may be used, with an image of the run's."""
    own_images: bool = False
    """Whether a run of another task may name its own `trainer.image`."""


class ClusterFineTuneProfileSpec(ApiModel):
    """What is offered, what holds by default, and up to where."""

    description: Annotated[str, Field(max_length=256)] = ""
    """What it is good for, for those who choose."""
    device: Annotated[str, Field(max_length=63)] = ""
    """What the device is called, for those who choose, e.g. A100 80GB."""
    is_default: bool = False
    """Whether it is also for runs that name no profile; of several the newest is."""
    namespaces: Annotated[tuple[LabelName, ...], Field(max_length=256)] = ()
    """Namespaces whose runs it is for; empty means all."""
    device_resource: DeviceResource = "nvidia.com/gpu"
    """Resource name of a device; "" trains on CPU. A run can't name another."""
    node_selector: Annotated[Mapping[LabelKey, LabelValue], Field(max_length=16)] = {}
    """Labels that the node must have. A run may ask for more labels, not for other values."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] = ()
    """Taints that the pods tolerate. A run may name no others."""
    priority_class_name: NameOrEmpty = ""
    """PriorityClass of the pods; empty means the cluster's default. A run can't name another."""
    image: ImageReference = ""
    """Image of runs that name none; empty means the one the operator was configured with."""
    defaults: ProfileDefaults = ProfileDefaults()
    """What holds where a run says nothing."""
    limits: ProfileLimits = ProfileLimits()
    """What a run may ask for at most."""
