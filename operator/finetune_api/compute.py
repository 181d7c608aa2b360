"""What a run asks the cluster for: devices, memory, nodes, and a volume for checkpoints and output."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from finetune_api.credentials import Credentials
from finetune_api.fields import ApiModel, Bytes, Cores, Format, LabelKey, LabelValue, Name, NameOrEmpty, Rule
from finetune_api.uris import UploadUri


class AccessMode(StrEnum):
    """How the volume can be mounted."""

    READ_WRITE_ONCE = "ReadWriteOnce"
    """By the pods of one node at a time."""
    READ_WRITE_MANY = "ReadWriteMany"
    """By the pods of many nodes, which a run on several nodes needs."""
    READ_WRITE_ONCE_POD = "ReadWriteOncePod"
    """By one pod at a time."""


class ClaimTemplate(ApiModel):
    """The PersistentVolumeClaim that the operator creates for the run."""

    storage_class_name: Name | None = None
    """Unset means the cluster's default class."""
    size: Bytes = "20Gi"
    """Room for checkpoints and output."""
    access_mode: AccessMode = AccessMode.READ_WRITE_ONCE
    """How the volume can be mounted."""


class Retain(StrEnum):
    """What becomes of the operator's claim when the run is deleted."""

    RETAIN = "Retain"
    """It stays, and the model with it."""
    DELETE = "Delete"
    """It is deleted, and the model with it."""


SubPath = Annotated[
    str,
    Field(max_length=256),
    Format(
        r"^([A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)?$",
        "must be a relative path whose parts don't begin with a dot, e.g. runs/support-bot",
    ),
]


class Storage(ApiModel):
    """Where checkpoints and output are kept: a new claim, or one that exists."""

    claim_template: ClaimTemplate | None = None
    """The claim to create; unset means its defaults. Not together with `claimName`."""
    claim_name: Name | None = None
    """A claim that exists. Not together with `claimTemplate`."""
    sub_path: SubPath = ""
    """Folder in the volume, so that several runs can share one."""
    retain: Retain = Retain.RETAIN
    """What becomes of the operator's claim, and so of the model, when the run is deleted."""
    merge_adapter: bool = False
    """Write the model with its adapter merged in as well, to output/merged, for servers that take whole models."""
    upload_uri: UploadUri | None = None
    """Where the output is copied to when the training is done; tried with a small file before it begins."""
    credentials: Credentials | None = None
    """For `uploadUri`: a Secret with the keys that `dataset.credentials` names. Unset means what the pod has."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.claimName) || !has(self.claimTemplate)",
            says="claimName and claimTemplate exclude each other: set one of them",
            check=lambda s: s.claim_name is None or s.claim_template is None,
            path=".claimName",
        ),
        Rule(
            cel="self.retain == 'Retain' || !has(self.claimName)",
            says="retain: Delete is for the operator's own claim: remove claimName, or use retain: Retain",
            check=lambda s: s.retain == Retain.RETAIN or s.claim_name is None,
            path=".retain",
        ),
        Rule(
            cel="has(self.uploadUri) || !has(self.credentials)",
            says="credentials are for uploadUri: remove them, or set uploadUri",
            check=lambda s: s.upload_uri is not None or s.credentials is None,
            path=".credentials",
        ),
    )


class TolerationOperator(StrEnum):
    """How a toleration compares with a taint."""

    EXISTS = "Exists"
    """The taint has the key."""
    EQUAL = "Equal"
    """The taint has the key and the value."""


class TaintEffect(StrEnum):
    """Which taints are tolerated."""

    NO_SCHEDULE = "NoSchedule"
    """Keeps pods from being placed."""
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    """Keeps pods from being placed if there is another node."""
    NO_EXECUTE = "NoExecute"
    """Evicts running pods, too."""


class Toleration(ApiModel):
    """A taint that the training pod tolerates, as in a pod."""

    key: LabelKey | None = None
    """The taint's key; unset with operator Exists means all."""
    operator: TolerationOperator = TolerationOperator.EQUAL
    """How the toleration compares with a taint."""
    value: LabelValue | None = None
    """The taint's value; with operator Equal only, where unset means an empty value."""
    effect: TaintEffect | None = None
    """Effect of the taint; unset means all."""
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """How long a NoExecute taint is tolerated; unset means for ever."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.key) || self.operator == 'Exists'",
            says="without a key the operator must be Exists: add a key, or use operator: Exists",
            check=lambda t: t.key is not None or t.operator == TolerationOperator.EXISTS,
            path=".operator",
        ),
        Rule(
            cel="self.operator == 'Equal' || !has(self.value)",
            says="operator Exists takes no value: remove it, or use operator: Equal",
            check=lambda t: t.operator == TolerationOperator.EQUAL or t.value is None,
            path=".value",
        ),
        Rule(
            cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            says="tolerationSeconds needs effect: NoExecute",
            check=lambda t: t.toleration_seconds is None or t.effect == TaintEffect.NO_EXECUTE,
            path=".tolerationSeconds",
        ),
    )


DeviceResource = Annotated[
    str,
    Field(max_length=253),
    Format(
        r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
        'must be the name of an extended resource, e.g. nvidia.com/gpu, or "" for CPU',
    ),
]


class Resources(ApiModel):
    """What the training pod asks the cluster for."""

    nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of pods, each on a node of its own."""
    devices_per_node: Annotated[int, Field(ge=1, le=128)] = 1
    """Devices of each pod."""
    device_resource: DeviceResource = "nvidia.com/gpu"
    """Resource name of a device, e.g. nvidia.com/gpu, nvidia.com/mig-3g.20gb, amd.com/gpu; "" trains on CPU."""
    cpu: Cores = "4"
    """CPU of each pod."""
    memory: Bytes = "16Gi"
    """Memory of each pod; what it uses beyond is answered by the kernel with OOMKilled."""
    shared_memory: Bytes | None = None
    """Size of /dev/shm; it counts as memory."""
    node_selector: Annotated[Mapping[LabelKey, LabelValue], Field(max_length=32)] = {}
    """Labels that the node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that the pod tolerates."""
    priority_class_name: NameOrEmpty = ""
    """PriorityClass of the pod; empty means the cluster's default."""
