"""What a trainer says of itself: the answer of GET /progress, and the container's termination message.

Part of the run protocol, which any image may speak. A snapshot is a hint for progress; whether a run succeeded is
decided from the Job, the exit code and the last word. Nothing here may grow without a bound.
"""

from enum import IntEnum, StrEnum
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError

from finetune_api.fields import ApiModel, cut

SNAPSHOT_LIMIT = 64 * 1024
"""Bytes of /progress that are read at most."""
LAST_WORD_LIMIT = 4096
"""Bytes of a termination message, as the kubelet has it."""
PORT = 9400
"""Where a trainer answers /progress, /metrics and /healthz."""
GANG_PORT = 9402
"""Where the first of several nodes is found by the others."""


class EventType(StrEnum):
    """What happens in a run, in the order in which it does."""

    CREATED = "CREATED"
    """The operator has seen the run."""
    QUEUED = "QUEUED"
    """It waits for its turn, or for room in the cluster."""
    STARTED = "STARTED"
    """All its pods run."""
    DATA_VALIDATED = "DATA_VALIDATED"
    """All data was read and is as the task wants it."""
    MODEL_INITIALIZED = "MODEL_INITIALIZED"
    """The model is loaded and ready to train."""
    TRAIN_UPDATED = "TRAIN_UPDATED"
    """How far the training is; replaced in place."""
    CHECKPOINT_SAVED = "CHECKPOINT_SAVED"
    """The newest checkpoint; replaced in place."""
    TRAIN_FINISHED = "TRAIN_FINISHED"
    """The last step is done; the output is being saved."""
    COMPLETED = "COMPLETED"
    """The model is there."""
    SUSPENDED = "SUSPENDED"
    """The run is paused, and its devices are free."""
    RESUMED = "RESUMED"
    """The run goes on."""
    RESTARTED = "RESTARTED"
    """A new attempt has begun."""
    HUNG = "HUNG"
    """The training makes no step any more."""
    CANCELED = "CANCELED"
    """The run was ended by its user."""
    FAILED = "FAILED"
    """The run ended without a model."""


class ExitCode(IntEnum):
    """How a trainer ends (sysexits.h where it has a code for it)."""

    DONE = 0
    BAD_CONFIG = 64
    BAD_DATA = 65
    NOT_FOUND = 66
    UNREACHABLE = 69
    STORAGE = 73
    STOPPED = 75
    NO_PERMISSION = 77
    DIVERGED = 78
    KILLED = 137


FINAL_CODES = frozenset(
    {ExitCode.BAD_CONFIG, ExitCode.BAD_DATA, ExitCode.NOT_FOUND, ExitCode.NO_PERMISSION, ExitCode.DIVERGED}
)
"""Codes after which another attempt would end the same way."""

PEER_LOST = "PeerLost"
"""The reason of a process that ended only because another one of its training had."""

REASONS: dict[int, str] = {
    ExitCode.BAD_CONFIG: "ConfigInvalid",
    ExitCode.BAD_DATA: "DataInvalid",
    ExitCode.NOT_FOUND: "NotFound",
    ExitCode.UNREACHABLE: "SourceUnreachable",
    ExitCode.STORAGE: "StorageFailed",
    ExitCode.STOPPED: "Stopped",
    ExitCode.NO_PERMISSION: "PermissionDenied",
    ExitCode.DIVERGED: "Diverged",
    ExitCode.KILLED: "Killed",
}
"""The word for a code in `status.failure.reason`; any other code is TrainerFailed."""

MilestoneType = Literal[
    EventType.RESUMED, EventType.DATA_VALIDATED, EventType.MODEL_INITIALIZED, EventType.TRAIN_FINISHED
]

Count = Annotated[int, Field(ge=0, le=9_007_199_254_740_991)]
Folder = Annotated[
    str, Field(max_length=512, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$")
]
"""A path below the run's folder: no part of it begins with a dot."""
Number = Annotated[float, Field(allow_inf_nan=False)]


class SnapshotModel(ApiModel):
    """Base of the snapshot's models: a newer trainer may say more than this operator understands."""

    model_config = ConfigDict(extra="ignore")


class Milestone(SnapshotModel):
    """Something that happens once in an attempt."""

    type: MilestoneType
    """What happened."""
    time: AwareDatetime
    """When."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """What happened, for people."""


class TrainProgress(SnapshotModel):
    """How far the training is."""

    epoch: Count
    """Epoch now, counted from 1."""
    total_epochs: Count
    """Epochs in all."""
    batch: Count
    """Optimizer steps done, over all epochs."""
    total_batches: Count
    """Optimizer steps in all."""
    tokens: Count
    """Non-padding tokens trained on."""
    total_tokens: Count = 0
    """Non-padding tokens to train on in all; the exact number where `maxDuration` is in tokens."""
    in_tokens: bool = False
    """Whether `maxDuration` is in tokens, so that people are told tokens instead of batches."""
    eta_seconds: Count | None = None
    """Seconds to the last step at this attempt's own rate; saving and uploading left out."""
    loss: Number | None = None
    """Loss of the last step, mean over its tokens, in nats."""
    eval_loss: Number | None = None
    """Loss of the last evaluation, in nats."""
    learning_rate: Number | None = None
    """Learning rate of the last step."""
    grad_norm: Number | None = None
    """L2 norm of the last step's gradient, before clipping."""
    tokens_per_second_per_device: Number | None = None
    """Non-padding tokens a second and device, over the last steps."""
    device_utilization: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of time in which the device was busy, over the last minute; none without a device."""
    cpu_utilization: Annotated[float, Field(ge=0, le=100_000, allow_inf_nan=False)] | None = None
    """CPU cores that the trainer and its children kept busy, over the last minute."""
    device_memory_bytes: Count | None = None
    """Memory used on the device; on CPU the process's resident memory."""
    data_wait_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of step time spent waiting for data, over the last steps."""
    mfu_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """Model FLOPs utilization over the last steps, 0 to 1; none where the device's peak isn't known."""
    last_step_time: AwareDatetime | None = None
    """When the last step ended."""
    step_seconds: Annotated[float, Field(ge=0, le=9_007_199_254_740_991, allow_inf_nan=False)] | None = None
    """Seconds that all steps so far took, in earlier attempts too; a step that was done again counts once."""


class SavedCheckpoint(SnapshotModel):
    """A complete checkpoint."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9-]+$")]
    """ep<epoch>-ba<batch>."""
    step: Count
    """Optimizer steps done when it was saved."""
    time: AwareDatetime
    """When it was complete."""
    size_bytes: Count
    """Size of all its files."""
    path: Folder
    """Folder, relative to the run's folder."""
    sha256: Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]{64}$")]
    """Digest of its manifest."""


class SavedOutput(SnapshotModel):
    """The finished model."""

    path: Folder
    """Folder, relative to the run's folder."""
    checkpoint: Annotated[str, Field(max_length=64)] = ""
    """The checkpoint it was made from."""
    upload_uri: Annotated[str, Field(max_length=512)] | None = None
    """Where it was copied to, whole and checked."""


class Tracked(SnapshotModel):
    """What a tracking server has of the run."""

    mlflow_run_id: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9-]*$")] = ""
    """The MLflow run; empty before the server was reached."""
    url: Annotated[str, Field(max_length=1024, pattern=r"^(https?://[!-~]*)?$")] = ""
    """Its page."""
    registered_model: Annotated[str, Field(max_length=320)] = ""
    """Name and version in the model registry."""
    pending_steps: Count = 0
    """Steps that the server hasn't got yet."""
    problem: Annotated[str, Field(max_length=512)] = ""
    """Why the server doesn't take what it is sent."""


class LastError(SnapshotModel):
    """Why the trainer ended, or is about to."""

    reason: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9]*$")]
    """One CamelCase word for programs."""
    message: Annotated[str, Field(max_length=1024)]
    """What happened and what to do."""
    exit_code: Annotated[int, Field(ge=0, le=255)]
    """The code it ends with."""


class Trouble(SnapshotModel):
    """Something that is wrong while the training goes on, e.g. a checkpoint that can't be saved."""

    reason: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9]*$")]
    """One CamelCase word for programs."""
    message: Annotated[str, Field(max_length=1024)]
    """What is wrong and what to do."""
    since: AwareDatetime
    """When it began."""


class Snapshot(SnapshotModel):
    """All that a trainer says, at one moment."""

    version: Literal[1] = 1
    """Version of this form."""
    run_uid: Annotated[str, Field(max_length=64)]
    """UID of the run that this is about; others are ignored."""
    attempt: Annotated[int, Field(ge=1, le=100_000)]
    """Attempt that this is about; others are ignored."""
    sequence: Count
    """Grows with every snapshot of an attempt."""
    time: AwareDatetime
    """When this was said."""
    milestones: Annotated[tuple[Milestone, ...], Field(max_length=8)] = ()
    """What has happened, in order; each type once."""
    progress: TrainProgress | None = None
    """How far the training is; none before the first step."""
    checkpoints: Annotated[tuple[SavedCheckpoint, ...], Field(max_length=100)] = ()
    """The complete checkpoints that are there, oldest first."""
    output: SavedOutput | None = None
    """The finished model."""
    troubles: Annotated[tuple[Trouble, ...], Field(max_length=8)] = ()
    """What is wrong now, while the training goes on; each reason once."""
    tracked: Tracked | None = None
    """What a tracking server has of the run; none without one."""
    error: LastError | None = None
    """Why the trainer ended, if not well."""

    @classmethod
    def decode(cls, text: str | bytes, *, limit: int = SNAPSHOT_LIMIT) -> Self:
        """Read a snapshot. Raises ValueError if it is too long or isn't one; the message is short enough for a log."""
        size = len(text.encode() if isinstance(text, str) else text)
        if size > limit:
            raise ValueError(f"a snapshot of {size} bytes is over the limit of {limit}")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ValueError(cut(f"not a snapshot: {error.errors(include_url=False)[0]}", 300)) from error

    def encode(self, *, limit: int = SNAPSHOT_LIMIT) -> str:
        """As JSON of at most `limit` bytes: the oldest checkpoints go first, then the messages are cut."""
        for candidate in self._shorter():
            text = candidate.model_dump_json(by_alias=True, exclude_none=True)
            if len(text.encode()) <= limit:
                return text
        raise AssertionError(f"a snapshot without checkpoints and messages is longer than {limit} bytes")

    def last_word(self) -> str:
        """The termination message."""
        return self.encode(limit=LAST_WORD_LIMIT)

    def _shorter(self) -> "list[Snapshot]":
        fewer = [self.model_copy(update={"checkpoints": self.checkpoints[-kept:]}) for kept in (50, 20, 10, 5, 3, 2, 1)]
        return [self, *fewer, *(fewer[-1]._cut_to(length) for length in (300, 100, 0))]

    def _cut_to(self, length: int) -> "Snapshot":
        error = self.error and self.error.model_copy(update={"message": cut(self.error.message, max(length, 200))})
        milestones = tuple(m.model_copy(update={"message": cut(m.message, max(length, 2))}) for m in self.milestones)
        troubles = tuple(t.model_copy(update={"message": cut(t.message, max(length, 2))}) for t in self.troubles)
        tracked = self.tracked
        if tracked is not None:
            tracked = tracked.model_copy(update={"problem": cut(tracked.problem, max(length, 2))})
        update = {"milestones": milestones, "troubles": troubles, "error": error, "tracked": tracked}
        return self.model_copy(update=update)
