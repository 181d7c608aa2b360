"""What a run learns from: the task, where its data lies, and how the records are read."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from finetune_api.credentials import Credentials
from finetune_api.fields import ApiModel
from finetune_api.uris import DataUri


class Task(StrEnum):
    """What the data holds, and so what is learned from it."""

    CHAT_COMPLETION = "ChatCompletion"
    """Conversations, a list of messages each; the assistant's messages are learned."""
    INSTRUCTION_FINE_TUNE = "InstructionFineTune"
    """Prompts with their responses; the responses are learned."""
    CONTINUED_PRETRAIN = "ContinuedPretrain"
    """Raw text, all of which is learned."""
    PREFERENCE = "Preference"
    """Prompts with a chosen and a rejected response."""
    CUSTOM = "Custom"
    """Whatever the image in `trainer` makes of it."""


class DataFormat(StrEnum):
    """How the records are stored."""

    AUTO = "Auto"
    """By the file's ending, or by what the folder holds. Compressed files (.gz, .zst, .bz2, .xz) are read too."""
    JSONL = "JSONL"
    """One JSON object a line."""
    JSON = "JSON"
    """One JSON array of objects."""
    PARQUET = "Parquet"
    """Apache Parquet, a row a record."""
    CSV = "CSV"
    """Comma-separated values under a line of names; separated by tabs in a file that ends in .tsv."""
    TEXT = "Text"
    """Plain text (ContinuedPretrain): each file is one text."""
    DELTA = "Delta"
    """A Delta Lake table."""
    MDS = "MDS"
    """Shards of the MosaicML streaming format."""


ColumnName = Annotated[str, Field(min_length=1, max_length=128)]


class Columns(ApiModel):
    """The names that the data uses for the parts of a record."""

    prompt: ColumnName = "prompt"
    """The instruction or question (InstructionFineTune, Preference)."""
    response: ColumnName = "response"
    """The answer to learn (InstructionFineTune)."""
    history: ColumnName = "history"
    """Earlier turns of the same conversation, a list of [prompt, response] pairs (InstructionFineTune)."""
    messages: ColumnName = "messages"
    """A list of {role, content} objects (ChatCompletion)."""
    text: ColumnName = "text"
    """Raw text (ContinuedPretrain)."""
    chosen: ColumnName = "chosen"
    """The preferred answer (Preference)."""
    rejected: ColumnName = "rejected"
    """The answer not preferred (Preference)."""


TemplateText = Annotated[str, Field(max_length=4096)]


class Template(ApiModel):
    """Text around the parts of an instruction record. Empty: the model's own chat template is used if it has one."""

    prefix: TemplateText = ""
    """Put before everything, e.g. a system prompt."""
    instruction: TemplateText = ""
    """Put before each prompt."""
    response: TemplateText = ""
    """Put before each response."""


class TrainData(ApiModel):
    """Where the training data lies."""

    uri: DataUri
    """pvc://claim/path, configmap://name/key, hf://name[:split], s3://, gs:// or https://."""


class EvalData(ApiModel):
    """Where the evaluation data lies."""

    uri: DataUri
    """As for the training data."""
    max_samples: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Use the first so many records."""


class Dataset(ApiModel):
    """The data to learn from."""

    train: TrainData
    """The training data."""
    eval: EvalData | None = None
    """Data to evaluate on while training."""
    credentials: Credentials | None = None
    """For data behind hf://, s3:// and gs://: the Secret's keys AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, GOOGLE_SERVICE_ACCOUNT_JSON and HF_TOKEN, as far as they are there,
    become environment variables of the trainer."""
    format: DataFormat = DataFormat.AUTO
    """How the records are stored."""
    columns: Columns = Columns()
    """The names that the data uses."""
    template: Template = Template()
    """Text around the parts of an instruction record."""
    streaming: bool = False
    """Keep the tokens in a file of the run's volume instead of in memory: for data that doesn't fit."""
