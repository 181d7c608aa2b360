"""The status of a FineTuneRun: what the operator reports. Derived from what was observed, never edited by users."""

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from finetune_api.fields import ApiModel, Decimal, Message, Time, UniqueBy
from finetune_api.snapshot import EventType

Count = Annotated[int, Field(ge=0, le=9_007_199_254_740_991)]
Attempt = Annotated[int, Field(ge=0, le=100_000)]
ShortText = Annotated[str, Field(max_length=253)]


class StatusModel(ApiModel):
    """Base of the status models: fields of a newer version are ignored, not refused."""

    model_config = ConfigDict(extra="ignore")


class Phase(StrEnum):
    """The run's state in one word; programs should read the conditions."""

    PENDING = "Pending"
    """Seen, and not yet decided on."""
    QUEUED = "Queued"
    """Waiting for its turn, or for room in the cluster."""
    STARTING = "Starting"
    """Its pods are being created, or read data and model."""
    RUNNING = "Running"
    """Training."""
    SUSPENDED = "Suspended"
    """Paused."""
    COMPLETED = "Completed"
    """Ended with a model."""
    FAILED = "Failed"
    """Ended without one."""
    CANCELED = "Canceled"
    """Ended by its user."""


class ConditionType(StrEnum):
    """What a condition is about."""

    ACCEPTED = "Accepted"
    """The spec is one that this operator can carry out."""
    ADMITTED = "Admitted"
    """The run's turn has come and the cluster has room for it."""
    SUSPENDED = "Suspended"
    """The run is paused."""
    DEGRADED = "Degraded"
    """The run goes on, and something is wrong with it: it hangs, or a checkpoint can't be saved."""
    RECONCILING = "Reconciling"
    """The run is active (kstatus: in progress)."""
    STALLED = "Stalled"
    """The run can't go on by itself (kstatus: failed)."""
    SUCCEEDED = "Succeeded"
    """True when the model is there, False when the run ended without it, Unknown before."""
    FINISHED = "Finished"
    """True on any end."""


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    """It holds."""
    FALSE = "False"
    """It doesn't."""
    UNKNOWN = "Unknown"
    """It can't be told yet."""


class Condition(StatusModel):
    """One aspect of the run's state, as in metav1.Condition."""

    type: ConditionType
    """What the condition is about."""
    status: ConditionStatus
    """Whether it holds."""
    reason: Annotated[str, Field(min_length=1, max_length=128)]
    """Why, in one CamelCase word for programs."""
    message: Message = ""
    """Why, for people."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: Count = 0
    """The generation of the spec that this is about."""


class RunEvent(StatusModel):
    """One thing that happened."""

    sequence: Annotated[int, Field(ge=1, le=1_000_000)]
    """Place in the run's history, counted from 1."""
    type: EventType
    """What happened."""
    time: Time
    """When."""
    message: Message = ""
    """What happened, for people."""
    attempt: Attempt | None = None
    """The attempt in which it happened."""


class Progress(StatusModel):
    """How far the training is. Numbers with a fraction are text, as Kubernetes APIs want it."""

    epoch: Count = 0
    """Epoch now, counted from 1."""
    total_epochs: Count = 0
    """Epochs in all."""
    batch: Count = 0
    """Optimizer steps done, over all epochs."""
    total_batches: Count = 0
    """Optimizer steps in all."""
    tokens: Count = 0
    """Non-padding tokens trained on."""
    total_tokens: Count = 0
    """Non-padding tokens to train on in all."""
    percent: Annotated[int, Field(ge=0, le=100)] = 0
    """Share of the work that is done."""
    done: Annotated[str, Field(max_length=8)] = ""
    """How it is printed: `percent` with its sign, e.g. 89%."""
    eta_seconds: Count | None = None
    """Seconds to the last step at this attempt's rate; saving and uploading left out."""
    eta: Annotated[str, Field(max_length=16)] = ""
    """How it is printed: `etaSeconds` in a larger unit, e.g. 5min."""
    loss: Decimal | None = None
    """Training loss of the last step, mean over its tokens."""
    eval_loss: Decimal | None = None
    """Loss of the last evaluation."""
    learning_rate: Decimal | None = None
    """Learning rate of the last step."""
    tokens_per_second_per_device: Decimal | None = None
    """Non-padding tokens a second and device."""
    device_utilization: Decimal | None = None
    """Share of time in which the device was busy, 0 to 1."""
    device_memory_bytes: Count | None = None
    """Memory used on the device; on CPU the process's resident memory."""
    data_wait_ratio: Decimal | None = None
    """Share of step time spent waiting for data, 0 to 1."""
    mfu_ratio: Decimal | None = None
    """Model FLOPs utilization: share of the devices' peak that the model's arithmetic makes up, 0 to 1."""
    last_step_time: Time | None = None
    """When the last step ended."""
    step_seconds: Count | None = None
    """Seconds that all steps so far took; over the time since `startTime` it is the run's goodput."""
    reported_time: Time | None = None
    """When the trainer reported this."""
    attempt: Attempt = 0
    """The attempt that reported this."""
    stale: bool = False
    """True if nothing could be read from the trainer lately."""


class Checkpoint(StatusModel):
    """A saved state from which a training goes on, or another run starts."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    """ep<epoch>-ba<batch>."""
    step: Count
    """Optimizer steps done when it was saved."""
    time: Time
    """When it was complete."""
    size_bytes: Count
    """Size of all its files."""
    path: Annotated[str, Field(max_length=512)]
    """Folder, relative to the run's folder in the volume."""
    sha256: Annotated[str, Field(max_length=64)]
    """Digest of its manifest, which has the digest of each file."""
    complete: bool = True
    """Whether all its files are there."""


class Output(StatusModel):
    """The result."""

    uri: Annotated[str, Field(max_length=512)]
    """Where the model lies."""
    checkpoint: Annotated[str, Field(max_length=64)] = ""
    """The checkpoint it was made from."""
    upload_uri: Annotated[str, Field(max_length=512)] | None = None
    """Where it was copied to, whole and checked."""
    mlflow_run_id: Annotated[str, Field(max_length=64)] | None = None
    """The MLflow run."""
    registered_model: Annotated[str, Field(max_length=256)] | None = None
    """Name and version in the model registry."""


class TrackingState(StatusModel):
    """What the MLflow server has of the run, as far as the trainer told."""

    mlflow_run_id: Annotated[str, Field(max_length=64)] = ""
    """The MLflow run, the same in all attempts; empty before the server was reached."""
    url: Annotated[str, Field(max_length=1024)] = ""
    """Its page."""
    problem: Message = ""
    """Why the server doesn't take what it is sent, or didn't until the end."""


class Failure(StatusModel):
    """Why the run failed, or why its last attempt did."""

    reason: Annotated[str, Field(min_length=1, max_length=128)]
    """One CamelCase word for programs."""
    message: Message = ""
    """What happened and what to do."""
    exit_code: Annotated[int, Field(ge=0, le=255)] | None = None
    """Exit code of the trainer."""
    pod: ShortText | None = None
    """The pod in which it happened."""
    attempt: Attempt | None = None
    """The attempt in which it happened."""


class ResolvedModel(StatusModel):
    """What `spec.model.uri` stood for when the run began: run:// is resolved once, whatever becomes of that run."""

    uri: Annotated[str, Field(max_length=512)]
    """The weights that the training starts from."""
    adapter_uri: Annotated[str, Field(max_length=512)] | None = None
    """The adapter over them with which it goes on."""


class AppliedProfile(StatusModel):
    """The profile under which the run began. It is applied once, whatever becomes of it later."""

    name: ShortText
    """Name of the ClusterFineTuneProfile."""
    generation: Count
    """Its generation at that time."""
    given: Annotated[str, Field(max_length=32_768)] = ""
    """What it added to the spec, as JSON: a part of a spec. Every attempt of the run goes by it."""


class QueueState(StatusModel):
    """What the run waits for."""

    position: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    """Place among the waiting runs of its namespace, from 1; beyond 9 rounded up to one digit: 20, 300."""
    message: Message = ""
    """What it waits for."""


class FineTuneRunStatus(StatusModel):
    """What has become of the run."""

    observed_generation: Annotated[int, Field(ge=-1, le=9_007_199_254_740_991)] = -1
    """The generation of the spec that the operator has seen; -1 before the first look."""
    phase: Phase | None = None
    """The run's state in one word."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16), UniqueBy("type")] = ()
    """The run's state for programs."""
    attempt: Attempt = 0
    """Number of the newest attempt, counted from 1; each is one Job, or with Kueue one start of a Job."""
    job_attempt: Attempt = 0
    """With Kueue: the earlier attempt in whose Job the newest one goes on; 0 if it has a Job of its own."""
    job_start_time: Time | None = None
    """With Kueue: when Kubernetes started the Job for the newest attempt; it starts it anew after each eviction."""
    restarts_without_progress: Annotated[int, Field(ge=0, le=1000)] = 0
    """Attempts in a row that ended without a newer checkpoint."""
    hang_restarts: Annotated[int, Field(ge=0, le=1000)] = 0
    """Of these, how many were ended because they hung."""
    earlier_step: Count = 0
    """Newest step that was saved by the attempts before this one; only a later one is progress."""
    start_time: Time | None = None
    """When the first pod ran."""
    completion_time: Time | None = None
    """When the run ended."""
    active_seconds: Count = 0
    """Seconds in which a pod ran, over all attempts."""
    earlier_active_seconds: Count = 0
    """Of them, those of the attempts before this one."""
    model: ResolvedModel | None = None
    """What the training starts from."""
    profile: AppliedProfile | None = None
    """The profile under which it began; none for a run without one."""
    events: Annotated[tuple[RunEvent, ...], Field(max_length=64), UniqueBy("sequence")] = ()
    """The run's history, oldest first. TRAIN_UPDATED and CHECKPOINT_SAVED are replaced in place."""
    progress: Progress | None = None
    """How far the training is."""
    checkpoints: Annotated[tuple[Checkpoint, ...], Field(max_length=100), UniqueBy("name")] = ()
    """What was saved and is still there, oldest first."""
    output: Output | None = None
    """The result."""
    failure: Failure | None = None
    """Why the run, or its last attempt, failed."""
    queue: QueueState | None = None
    """What the run waits for."""
    tracking: TrackingState | None = None
    """What the MLflow server has of it."""

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of that type."""
        return next((condition for condition in self.conditions if condition.type == kind), None)

    def event(self, kind: EventType) -> RunEvent | None:
        """The newest event of that type."""
        return next((event for event in reversed(self.events) if event.type == kind), None)

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended, in whatever way. That is for ever."""
        finished = self.condition(ConditionType.FINISHED)
        return finished is not None and finished.status == ConditionStatus.TRUE
