"""What the operator hands to the trainer: FINETUNE_CONFIG, the run with everything resolved. Part of the run protocol.

It never holds a credential.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from finetune_api.data import Columns, DataFormat, Task, Template
from finetune_api.fields import ApiModel
from finetune_api.method import CheckpointPolicy, Method, Training
from finetune_api.spec import TrackingUri

CONFIG_VARIABLE = "FINETUNE_CONFIG"
"""Environment variable with this configuration as JSON."""
BIND_VARIABLE = "FINETUNE_BIND_ADDRESS"
"""Environment variable with the address on which the trainer answers; unset means all."""
UPLOAD_PREFIX = "FINETUNE_UPLOAD_"
"""What the names of variables with keys for the upload begin with: those for the data have the names without it."""
TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 - the variable's name, not a token
"""Environment variable with the hub token, set from the user's Secret."""
RUN_MOUNT = "/mnt/run"
MODEL_MOUNT = "/mnt/model"
ADAPTER_MOUNT = "/mnt/adapter"
DATA_MOUNT = "/mnt/data"
EVAL_MOUNT = "/mnt/eval"


class RunIdentity(ApiModel):
    """Which run and attempt this is."""

    namespace: str = "default"
    name: str = "run"
    uid: str = "local"
    """Outside a cluster any word: checkpoints of another one are not gone on with."""
    attempt: Annotated[int, Field(ge=1)] = 1


def _named(given: Any) -> Any:
    """The path stands for the URI where that is all there is, as on a laptop."""
    if isinstance(given, dict) and "uri" not in given and given.get("path"):
        return {**given, "uri": given["path"]}
    return given


class ModelSource(ApiModel):
    """The model to start from."""

    uri: str
    """As the user wrote it; the path where that is all there is."""
    path: str | None = None
    """Where it is mounted; None for what the trainer fetches itself: hf://, s3:// and gs://."""
    adapter_uri: str | None = None
    """The adapter of an earlier run with which the training goes on."""
    adapter_path: str | None = None
    """Where that is mounted."""
    trust_remote_code: bool = False

    @model_validator(mode="before")
    @classmethod
    def _has_a_uri(cls, given: Any) -> Any:
        return _named(given)


class DataSource(ApiModel):
    """A data file or folder."""

    uri: str
    """As the user wrote it; the path where that is all there is."""
    path: str | None = None
    """Where it is mounted; None for what the trainer fetches itself: hf://, s3://, gs:// and https://."""
    max_samples: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _has_a_uri(cls, given: Any) -> Any:
        return _named(given)


class DataConfig(ApiModel):
    """The data to learn from."""

    train: DataSource
    eval: DataSource | None = None
    format: DataFormat = DataFormat.AUTO
    columns: Columns = Columns()
    template: Template = Template()
    streaming: bool = False


class OutputConfig(ApiModel):
    """What is made of the finished model, beside the output folder."""

    merge_adapter: bool = False
    """Write the model with the adapter merged in, too."""
    upload_uri: str | None = None
    """Copy the output folder there."""


class MlflowConfig(ApiModel):
    """Where the run is recorded in MLflow, and as what."""

    tracking_uri: TrackingUri
    experiment: str
    register_as: str | None = None
    alias: str = "candidate"
    tags: Mapping[str, str] = {}
    image: str = ""
    """The trainer's image."""
    queue: str = ""
    """The queue that the run waited in."""


class CustomConfig(ApiModel):
    """What the command of a Custom task finds in FINETUNE_CONFIG: its run, and where things lie."""

    version: Literal[1] = 1
    run: RunIdentity
    task: Literal[Task.CUSTOM] = Task.CUSTOM
    model: ModelSource | None = None
    dataset: DataConfig | None = None
    method: Method = Method()
    training: Training = Training()
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    run_path: str = RUN_MOUNT
    """Folder for checkpoints/ and output/."""

    def encode(self) -> str:
        """As JSON for the environment."""
        return self.model_dump_json(by_alias=True, exclude_none=True)


class TrainerConfig(ApiModel):
    """The configuration of one attempt."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    run: RunIdentity = RunIdentity()
    model: ModelSource
    task: Task = Task.INSTRUCTION_FINE_TUNE
    dataset: DataConfig
    method: Method = Method()
    training: Training = Training()
    checkpoint: CheckpointPolicy = CheckpointPolicy()
    output: OutputConfig = OutputConfig()
    mlflow: MlflowConfig | None = None
    tensor_board: bool = False
    """Write TensorBoard's event files into the run's folder."""
    run_path: str = RUN_MOUNT
    """Folder for checkpoints/ and output/."""
    device: Literal["Auto", "CPU", "CUDA"] = "Auto"
    """Where to train. Auto takes CUDA if there is a device."""

    def encode(self) -> str:
        """As JSON for the environment."""
        return self.model_dump_json(by_alias=True, exclude_none=True)

    @classmethod
    def decode(cls, text: str) -> Self:
        """Read it back. Raises pydantic.ValidationError."""
        return cls.model_validate_json(text)
