"""The spec of a FineTuneRun: what a user writes. Immutable once created, but for the verbs."""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field

from finetune_api.compute import Resources, Storage
from finetune_api.credentials import Credentials
from finetune_api.data import Dataset, Task
from finetune_api.fields import ApiModel, Format, LabelName, Name, Rule
from finetune_api.method import CheckpointPolicy, Method, MethodType, Training
from finetune_api.uris import ModelUri

MANAGED_BY: Final = "finetune.dev/operator"


class Model(ApiModel):
    """The model to start from."""

    uri: ModelUri
    """hf://organization/name[@revision], pvc://claim/path, s3://, gs://, or run://other-run[/checkpoint]."""
    credentials: Credentials | None = None
    """For a gated or private model: the Secret's key `token` becomes the hub token. For s3:// and gs://: the keys that
    `dataset.credentials` names."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""


class Queue(ApiModel):
    """How the run waits for its turn."""

    name: LabelName | None = None
    """A Kueue LocalQueue; unset means the operator's own limits."""
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 0
    """Higher goes first; at the same priority the older run does. Kueue doesn't read it: see `priorityClass`."""
    priority_class: LabelName | None = None
    """With Kueue: its WorkloadPriorityClass; unset means the priority of `resources.priorityClassName`."""
    retry_priority_class: LabelName | None = None
    """With Kueue: the WorkloadPriorityClass of an attempt that follows a failed one; unset means the same as before."""


class OnHang(StrEnum):
    """What is done with a run that makes no step."""

    NOTIFY = "Notify"
    """A condition and an event say so; the run goes on."""
    RESTART = "Restart"
    """The attempt is ended, and the next one starts from the newest checkpoint."""


class Recovery(ApiModel):
    """What is done when an attempt ends too early."""

    max_restarts_without_progress: Annotated[int, Field(ge=0, le=100)] = 3
    """Attempts in a row that may end without a newer checkpoint before the run fails."""
    hang_timeout_seconds: Annotated[int, Field(ge=60, le=604_800)] = 1800
    """Seconds without a step after which a run whose device (or CPU, without one) is idle too counts as hung."""
    on_hang: OnHang = OnHang.NOTIFY
    """What is done with a run that makes no step."""


TrackingUri = Annotated[
    str,
    Field(max_length=512),
    Format(
        r"^https?://[A-Za-z0-9][-A-Za-z0-9.]*(:[0-9]+)?(/[-A-Za-z0-9._~/]*)?$",
        "must be http://HOST[:PORT][/PATH] or https://HOST[:PORT][/PATH]",
    ),
]


class Mlflow(ApiModel):
    """An MLflow tracking server."""

    tracking_uri: TrackingUri
    """Address of the server."""
    experiment: Annotated[str, Field(max_length=256)] = ""
    """Experiment; empty means the namespace's name."""
    register_as: (
        Annotated[
            str,
            Field(max_length=256),
            Format(
                r"^[A-Za-z0-9][-A-Za-z0-9_. ]*$",
                "must be a name of letters, digits, spaces, -, _ and ., e.g. support-bot",
            ),
        ]
        | None
    ) = None
    """Name under which the finished model is registered; the weights of a full model are only then sent to MLflow."""
    alias: Annotated[
        str,
        Field(max_length=255),
        Format(r"^[A-Za-z][-A-Za-z0-9_]*$", "must be a word of letters, digits, - and _, e.g. candidate"),
    ] = "candidate"
    """Alias that the registered version gets, and an earlier version loses."""
    credentials: Credentials | None = None
    """A Secret with `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, or `MLFLOW_TRACKING_TOKEN`."""
    tags: Annotated[
        Mapping[Annotated[str, Field(max_length=250)], Annotated[str, Field(max_length=1000)]], Field(max_length=32)
    ] = {}
    """Tags of the MLflow run."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!self.alias.matches(r'^([Ll][Aa][Tt][Ee][Ss][Tt]|[Vv][0-9]+)$')",
            says="MLflow keeps the aliases latest and v1, v2, ... for itself: use another word",
            check=lambda s: not re.fullmatch("latest|v[0-9]+", s.alias, re.ASCII | re.IGNORECASE),
            path=".alias",
        ),
    )


class Tracking(ApiModel):
    """Where metrics go besides Prometheus."""

    mlflow: Mlflow | None = None
    """Log to MLflow."""
    tensor_board: bool = False
    """Write TensorBoard event files into the run's volume."""


class SecretReference(ApiModel):
    """A Secret in the run's namespace."""

    name: Name
    """Name of the Secret."""


VariableName = Annotated[
    str,
    Field(max_length=128),
    Format(r"^[A-Za-z_][A-Za-z0-9_]*$", "must be the name of an environment variable, e.g. HF_HOME"),
]
Argument = Annotated[str, Field(max_length=4096)]


ImageReference = Annotated[
    str,
    Field(max_length=512),
    Format(r"^([a-zA-Z0-9][-a-zA-Z0-9._:/@]*)?$", "must be an image reference, e.g. registry.example.com/trainer:1.2"),
]


class Trainer(ApiModel):
    """The container that trains."""

    image: ImageReference = ""
    """Image; empty means the one the operator was configured with."""
    image_pull_secrets: Annotated[tuple[SecretReference, ...], Field(max_length=16)] = ()
    """Secrets with registry credentials."""
    command: Annotated[tuple[Argument, ...], Field(max_length=64)] = ()
    """Command of a Custom task; it runs under a small program of the operator's, for which the image needs python3."""
    args: Annotated[tuple[Argument, ...], Field(max_length=256)] = ()
    """Arguments of a Custom task."""
    env: Annotated[Mapping[VariableName, Annotated[str, Field(max_length=4096)]], Field(max_length=64)] = {}
    """Environment of a Custom task. No secrets: they would be readable by all who can read the run."""


def _same(field: str, *, optional: bool) -> Rule:
    """`field` of the spec can't change; if optional, neither appear nor vanish."""
    same = f"self.{field} == oldSelf.{field}"
    cel = f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || {same})" if optional else same
    return Rule(cel=cel, says=f"{field} can't change once the run exists: create a new run", path=f".{field}")


def _same_in(group: str, field: str) -> Rule:
    """`field` within a group of the spec can neither change, appear nor vanish."""
    now, before = f"self.{group}.{field}", f"oldSelf.{group}.{field}"
    return Rule(
        cel=f"has({now}) == has({before}) && (!has({now}) || {now} == {before})",
        says=f"{group}.{field} can't change once the run exists: create a new run",
        path=f".{group}.{field}",
    )


class FineTuneRunSpec(ApiModel):
    """One training.

    Immutable once created, except suspend, cancel, ttlSecondsAfterFinished, activeDeadlineSeconds and queue.priority.
    """

    model: Model | None = None
    """The model to start from. Required, except for task Custom."""
    task: Task = Task.INSTRUCTION_FINE_TUNE
    """What the data holds, and so what is learned from it."""
    dataset: Dataset | None = None
    """The data to learn from. Required, except for task Custom."""
    method: Method = Method()
    """Which weights are trained."""
    training: Training = Training()
    """The hyperparameters."""
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    """When the state of the training is saved."""
    storage: Storage = Storage()
    """Where checkpoints and output are kept."""
    resources: Resources = Resources()
    """What the training pod asks the cluster for."""
    profile: Name | None = None
    """A ClusterFineTuneProfile: its defaults hold for what is left out here, and it has limits. Until it is there, the
    run waits."""
    queue: Queue = Queue()
    """How the run waits for its turn."""
    recovery: Recovery = Recovery()
    """What is done when an attempt ends too early."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """Seconds that the run may be active, over all attempts; waiting and suspension don't count."""
    tracking: Tracking = Tracking()
    """Where metrics go besides Prometheus."""
    trainer: Trainer = Trainer()
    """The container that trains."""
    suspend: bool = False
    """Pause: save a checkpoint and free the devices until it is false again."""
    cancel: bool = False
    """End the run for good; its record and what was saved stay. Can't be taken back."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Seconds after its end at which the run is deleted; unset means never."""
    managed_by: Literal["finetune.dev/operator", "kueue.x-k8s.io/multikueue"] = MANAGED_BY
    """Who acts on this run; this operator leaves the runs of others alone."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *(
            _same(field, optional=False)
            for field in (
                "task",
                "method",
                "training",
                "checkpoint",
                "storage",
                "resources",
                "recovery",
                "tracking",
                "trainer",
                "managedBy",
            )
        ),
        *(_same(field, optional=True) for field in ("model", "dataset", "profile")),
        *(_same_in("queue", field) for field in ("name", "priorityClass", "retryPriorityClass")),
        Rule(cel="self.cancel || !oldSelf.cancel", says="cancel can't be taken back: create a new run", path=".cancel"),
        Rule(
            cel="self.task == 'Custom' || has(self.model)",
            says="model is required: set model.uri, or use task Custom, which needs none",
            check=lambda s: s.task == Task.CUSTOM or s.model is not None,
            path=".model",
        ),
        Rule(
            cel="self.task == 'Custom' || has(self.dataset)",
            says="dataset is required: set dataset.train.uri, or use task Custom, which needs none",
            check=lambda s: s.task == Task.CUSTOM or s.dataset is not None,
            path=".dataset",
        ),
        Rule(
            cel="!has(self.training.earlyStopping) || (has(self.dataset) && has(self.dataset.eval))",
            says="earlyStopping needs dataset.eval: add evaluation data, or remove it",
            check=lambda s: s.training.early_stopping is None or (s.dataset is not None and s.dataset.eval is not None),
            path=".training.earlyStopping",
        ),
        Rule(
            cel="self.task == 'Custom' || (size(self.trainer.command) == 0 && size(self.trainer.args) == 0"
            " && size(self.trainer.env) == 0)",
            says="command, args and env are for task Custom: remove them, or use task Custom",
            check=lambda s: s.task == Task.CUSTOM or not (s.trainer.command or s.trainer.args or s.trainer.env),
            path=".trainer",
        ),
        Rule(
            cel="self.task != 'Custom' || self.trainer.image != ''",
            says="task Custom needs an image: set trainer.image",
            check=lambda s: s.task != Task.CUSTOM or s.trainer.image != "",
            path=".trainer.image",
        ),
        Rule(
            cel="self.task != 'Custom' || size(self.trainer.command) > 0",
            says="task Custom needs a command: set trainer.command, e.g. [python, train.py]",
            check=lambda s: s.task != Task.CUSTOM or bool(s.trainer.command),
            path=".trainer.command",
        ),
        Rule(
            cel="self.task != 'Custom' || (!has(self.storage.uploadUri) && !self.storage.mergeAdapter)",
            says="uploadUri and mergeAdapter are not for task Custom: remove them, and let the command do it",
            check=lambda s: s.task != Task.CUSTOM or not (s.storage.upload_uri or s.storage.merge_adapter),
            path=".storage",
        ),
        Rule(
            cel="self.task != 'Custom' || !has(self.tracking.mlflow)",
            says="mlflow is not for task Custom: remove it, and let the command do it",
            check=lambda s: s.task != Task.CUSTOM or s.tracking.mlflow is None,
            path=".tracking.mlflow",
        ),
        Rule(
            cel="self.task != 'Custom' || !self.tracking.tensorBoard",
            says="tensorBoard is not for task Custom: use false, and let the command write event files",
            check=lambda s: s.task != Task.CUSTOM or not s.tracking.tensor_board,
            path=".tracking.tensorBoard",
        ),
        Rule(
            cel="!has(self.method.type) || self.method.type != 'Full' || !self.storage.mergeAdapter",
            says="mergeAdapter has no adapter to merge with type Full: remove it",
            check=lambda s: s.method.type != MethodType.FULL or not s.storage.merge_adapter,
            path=".storage.mergeAdapter",
        ),
    )
