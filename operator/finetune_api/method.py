"""What is trained, and how: the hyperparameters of a run. The operator hands them to the trainer unchanged."""

from enum import StrEnum
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.durations import EvaluationInterval, SaveInterval, TrainingLength
from finetune_api.fields import ApiModel, Format, Rule, WordOrInteger


class MethodType(StrEnum):
    """Which weights are trained."""

    LORA = "LoRA"
    """A small low-rank adapter over the frozen model."""
    QLORA = "QLoRA"
    """The same over a model whose frozen weights are quantized."""
    FULL = "Full"
    """All weights."""


ModuleName = Annotated[
    str,
    Field(max_length=128),
    Format(r"^[A-Za-z0-9_.-]+$", "must be a module name, e.g. q_proj, or all-linear"),
]


class LoraBias(StrEnum):
    """Which bias vectors are trained beside the adapter."""

    NONE = "None"
    """None of them."""
    ALL = "All"
    """All of the model."""
    LORA_ONLY = "LoRAOnly"
    """Those of the modules that have an adapter."""


class Lora(ApiModel):
    """The adapter of LoRA and QLoRA."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the update matrices."""
    alpha: Annotated[float, Field(ge=0.001, le=65536)] = 32
    """Scale of the update: alpha / rank."""
    dropout: Annotated[float, Field(ge=0, le=0.95)] = 0.05
    """Probability with which an input of the adapter is dropped in training."""
    target_modules: Annotated[tuple[ModuleName, ...], Field(min_length=1, max_length=64)] = ("all-linear",)
    """Modules that get an adapter, by the last part of their name; all-linear is every linear layer but the output."""
    rs_lora: bool = False
    """Scale the update by alpha / sqrt(rank) instead (rsLoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Train the magnitude of the weights apart from their direction (DoRA, arXiv 2402.09353)."""
    bias: LoraBias = LoraBias.NONE
    """Which bias vectors are trained too."""


class Quantization(ApiModel):
    """How QLoRA stores the frozen weights."""

    bits: Literal[4, 8] = 4
    """Bits a weight: 4 or 8."""


class Method(ApiModel):
    """Which weights are trained."""

    type: MethodType = MethodType.LORA
    """Which weights are trained."""
    lora: Lora | None = None
    """The adapter; unset means its defaults. Not with type Full."""
    quantization: Quantization | None = None
    """How the frozen weights are stored. With type QLoRA only."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.type) || self.type != 'Full' || !has(self.lora)",
            says="lora can't be combined with type Full: remove it, or use type LoRA",
            check=lambda m: m.type != MethodType.FULL or m.lora is None,
            path=".lora",
        ),
        Rule(
            cel="(has(self.type) && self.type == 'QLoRA') || !has(self.quantization)",
            says="quantization needs type QLoRA: remove it, or use type QLoRA",
            check=lambda m: m.type == MethodType.QLORA or m.quantization is None,
            path=".quantization",
        ),
        Rule(
            cel="!has(self.type) || self.type != 'QLoRA' || !has(self.lora) || !has(self.lora.bias)"
            " || self.lora.bias == 'None'",
            says="bias can't be trained with type QLoRA: use None, or type LoRA",
            check=lambda m: m.type != MethodType.QLORA or m.lora is None or m.lora.bias == LoraBias.NONE,
            path=".lora.bias",
        ),
    )

    @property
    def adapter(self) -> Lora | None:
        """The adapter to train, with defaults filled in; None for full fine-tuning."""
        return None if self.type == MethodType.FULL else self.lora or Lora()


class Scheduler(StrEnum):
    """How the learning rate goes on after the warm-up."""

    CONSTANT = "Constant"
    """Stays as it is."""
    LINEAR = "Linear"
    """Falls to 0 in a straight line."""
    COSINE = "Cosine"
    """Falls to 0 as half a cosine."""


class Precision(StrEnum):
    """Number format of the computation."""

    AUTO = "Auto"
    """BF16 where the device computes it natively, else FP32."""
    BF16 = "BF16"
    """16-bit brain floating point."""
    FP32 = "FP32"
    """32-bit floating point."""


class Switch(StrEnum):
    """On, off, or decided by the trainer."""

    AUTO = "Auto"
    """The trainer decides, and says how."""
    ENABLED = "Enabled"
    """On."""
    DISABLED = "Disabled"
    """Off."""


class LearningRateScaling(StrEnum):
    """Whether the learning rate follows the number of devices."""

    NONE = "None"
    """It is used as it is written."""
    SQUARE_ROOT = "SquareRoot"
    """It is multiplied by the square root of the number of devices."""


class BatchSize(ApiModel):
    """How many sequences go into one optimizer step."""

    per_device: Annotated[Literal["Auto"] | int, WordOrInteger("Auto", 1, 4096)] = "Auto"
    """Sequences in one forward pass of one device; Auto leaves it to the trainer, which says what it took."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Forward passes in one optimizer step; unset means 1, or what `global` asks for. Not together with `global`."""
    global_: Annotated[int, Field(ge=1, le=1_048_576)] | None = Field(default=None, alias="global")
    """Sequences in one optimizer step over all devices. Not together with `gradientAccumulationSteps`."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.global) || !has(self.gradientAccumulationSteps)",
            says="global and gradientAccumulationSteps exclude each other: set one of them",
            check=lambda b: b.global_ is None or b.gradient_accumulation_steps is None,
            path=".global",
        ),
    )


class EarlyStopping(ApiModel):
    """Ends a training whose evaluation no longer improves."""

    metric: Literal["eval_loss"] = "eval_loss"
    """What must improve."""
    patience: Annotated[int, Field(ge=1, le=1000)] = 3
    """Evaluations without improvement that are waited for."""
    min_delta: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """What counts as an improvement."""


class Preference(ApiModel):
    """How task Preference learns: direct preference optimization (DPO, arXiv 2305.18290)."""

    beta: Annotated[float, Field(ge=0.001, le=10)] = 0.1
    """How strongly the model is held to where it started from."""


class Training(ApiModel):
    """The hyperparameters."""

    max_duration: TrainingLength = "1ep"
    """How long to train: epochs (3ep), optimizer steps (500ba) or non-padding tokens (2000000tok)."""
    learning_rate: Annotated[float, Field(ge=0, le=10)] = 0.0002
    """Peak learning rate of AdamW."""
    scheduler: Scheduler = Scheduler.COSINE
    """How the learning rate goes on after the warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.03
    """Share of all steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay of AdamW, on matrices only."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Gradients are scaled down to this L2 norm; 0 switches clipping off."""
    batch_size: BatchSize = BatchSize()
    """How many sequences go into one optimizer step."""
    scale_learning_rate_with_batch: LearningRateScaling = LearningRateScaling.NONE
    """Whether the learning rate follows the number of devices."""
    max_sequence_length: Annotated[int, Field(ge=8, le=1048576)] = 2048
    """Tokens in a sequence; what is longer is cut, counted and reported."""
    packing: bool = True
    """Put several records into one sequence, none of which sees another."""
    precision: Precision = Precision.AUTO
    """Number format of the computation."""
    gradient_checkpointing: Switch = Switch.AUTO
    """Trade time for memory: compute activations again in the backward pass."""
    compile: Switch = Switch.AUTO
    """Compile what lies between the model's matrix products (torch.compile), for speed."""
    seed: Annotated[int, Field(ge=0, le=4294967295)] = 17
    """Decides the order of the data, the adapter's first weights and dropout."""
    deterministic: bool = False
    """Only deterministic kernels: the same result twice on the same kind of device, at some cost in speed."""
    evaluation_interval: EvaluationInterval = "1ep"
    """How often the loss on `dataset.eval` is computed."""
    early_stopping: EarlyStopping | None = None
    """Stop when the evaluation no longer improves."""
    preference: Preference = Preference()
    """How task Preference learns; other tasks take no notice."""


class ResumeMode(StrEnum):
    """Whether a new attempt goes on where the last one was."""

    AUTO = "Auto"
    """It goes on from the newest checkpoint that verifies."""
    NEVER = "Never"
    """It starts from the beginning."""


class CheckpointPolicy(ApiModel):
    """When the state of the training is saved."""

    interval: SaveInterval = "1ep"
    """How often: epochs (1ep), optimizer steps (500ba) or minutes (30min). The last step is always saved."""
    keep: Annotated[int, Field(ge=1, le=100)] = 3
    """How many of the newest checkpoints are kept."""
    resume: ResumeMode = ResumeMode.AUTO
    """Whether a new attempt goes on where the last one was."""
