"""The model: loaded whole or not at all, with an adapter or without, and the sum of its loss over a micro-batch.

Numbers: with an adapter the frozen weights are bf16 or fp32 as the precision says, or quantized, the adapter and its
optimizer state fp32. In full fine-tuning all weights are fp32 and BF16 means autocast.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch.nn import functional

from finetune_api.method import Lora, Precision, Switch
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.data import batch
from finetune_trainer.distributed import Device
from finetune_trainer.errors import NotFound
from finetune_trainer.learning import adapter, attention, loss, outputlayer, quantization, sharding, skeleton
from finetune_trainer.learning.kernels import Kernels
from finetune_trainer.learning.stopwatch import Stopwatch
from finetune_trainer.ranks import Ranks
from finetune_trainer.sources.modelfolder import ModelFolder

logger = logging.getLogger(__name__)

PROBE_LENGTHS = (5, 9)
"""Records with which it is tried whether a model keeps packed records apart."""


@dataclass(frozen=True, eq=False)
class Learner:
    """A model in training."""

    network: Any
    device: torch.device
    precision: Precision
    packed: bool
    full: bool
    bits: int | None
    """Bits of a quantized frozen weight."""
    recomputes: bool
    """Whether activations are computed again in the backward pass."""
    stored_dtype: torch.dtype
    """How the source stores its weights, and so how full weights are stored in the output."""
    head: outputlayer.TargetsOnly
    kernels: Kernels
    """What computes between its products."""
    compiled: bool = False
    """Whether that is compiled."""
    ranks: Ranks = field(default_factory=Ranks)
    """Those who train it together."""
    data_wait: Stopwatch = field(default_factory=Stopwatch)
    """Time in which it had to wait for what it learns from."""

    @property
    def spread(self) -> bool:
        """Whether each process has only a part of the weights."""
        return self.full and self.ranks.place.size > 1

    @property
    def mean_of(self) -> int:
        """Of how many gradients the backward pass makes the mean."""
        return self.ranks.place.size if self.spread else 1

    def failing_together(self) -> AbstractContextManager[None]:
        """What fails in this block fails for all, where the processes don't wait for each other in its middle."""
        return nullcontext() if self.spread else self.ranks.failing_together()

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by name."""
        return {name: weight for name, weight in self.network.named_parameters() if weight.requires_grad}

    def loss(self, tensors: batch.Tensors) -> torch.Tensor:
        """The loss, summed over the targets."""
        if self.head.takes_losses:
            return self._through_head(tensors, partial(loss.summed, targets=tensors.targets))
        return functional.cross_entropy(self._logits(tensors), tensors.targets, reduction="sum")

    def scores(self, tensors: batch.Tensors) -> torch.Tensor:
        """The log-probability of each row's targets, summed over the row."""
        if self.head.takes_losses:
            losses = self._through_head(tensors, partial(loss.each, targets=tensors.targets))
        else:
            losses = functional.cross_entropy(self._logits(tensors), tensors.targets, reduction="none")
        return -torch.stack([row.sum() for row in torch.split(losses, list(tensors.counts))])

    @contextmanager
    def only_looking(self) -> Iterator[None]:
        """Without gradient and dropout, and without a trace in the random generators."""
        devices = [self.device] if self.device.type == "cuda" else []
        trains = self.network.training
        self.network.eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=devices):
                yield
        finally:
            self.network.train(trains)

    def _logits(self, tensors: batch.Tensors) -> torch.Tensor:
        return self.head.picked(self._through_head(tensors, None)).float()

    def _through_head(self, tensors: batch.Tensors, computes: outputlayer.Computes | None) -> torch.Tensor:
        """What the output layer gives, or what it computes instead of logits."""
        with self._autocast(), self.head.computing(computes):
            self.head.positions = tensors.positions
            found: torch.Tensor = self.network(**tensors.inputs, use_cache=False).logits
        return found

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == Precision.BF16 else nullcontext()

    def describe(self) -> str:
        """Method, sizes, precision and layout, for people."""
        trained, total = (sum(map(size_of, ws)) for ws in (self.trained.values(), self.network.parameters()))
        share = "all" if trained == total else f"{trained:,} of"
        frozen = "" if self.bits is None else f" over weights of {self.bits} bits"
        layout = "packed" if self.packed else "padded"
        again = ", activations recomputed" if self.recomputes else ""
        parts = ", partly compiled" if self.compiled else ""
        where = f"in {self.precision} on {self.device.type}"
        return f"trains {share} {total:,} parameters{frozen} {where}, records {layout}{again}{parts}"


def size_of(weight: torch.nn.Parameter) -> int:
    """How many numbers a parameter stands for: several of 4 bits lie in each byte."""
    packed = getattr(weight, "quant_state", None)
    return weight.numel() if packed is None else torch.Size(packed.shape).numel()


def load(
    folder: ModelFolder,
    config: TrainerConfig,
    device: Device,
    *,
    most_tokens: int,
    checkpoint: Path | None = None,
    ranks: Ranks | None = None,
) -> Learner:
    """The model, ready to train; full weights from `checkpoint` if there is one. Raises NotFound, ConfigInvalid.

    `most_tokens` is what the largest forward pass holds. Of several `ranks` each has all weights, or a part of all if
    all are trained.
    """
    wanted, training = config.method.adapter, config.training
    ranks = ranks or Ranks()
    spread = wanted is None and ranks.place.size > 1
    precision = choose_precision(training.precision, device)
    place = torch.device(device.kind)
    _prepare_torch(device, deterministic=training.deterministic)
    frozen_dtype = torch.bfloat16 if precision == Precision.BF16 and wanted is not None else torch.float32
    quantized = quantization.options(config.method, frozen_dtype, place)
    network = _load_network(folder, checkpoint if wanted is None else None, dtype=frozen_dtype, **quantized)
    at_first = torch.device("cpu") if spread else place
    network = network if quantized else network.to(at_first)
    quantization.keep_differentiable(network)
    packed = training.packing and _can_pack(network, at_first)
    if training.packing and not packed:
        logger.warning("this model can't keep packed records apart: records are padded instead")
    if wanted is not None:
        network = _with_adapter(network, config, wanted)
    kernels = Kernels(network)
    kernels.fuse()
    head = outputlayer.TargetsOnly(network)
    if spread:
        sharding.spread(network, ranks, place)
    recomputes = ranks.any(_recomputes(network, training.gradient_checkpointing, precision, most_tokens))
    if recomputes:
        network.activation_checkpointing_enable({"use_reentrant": False})
    network.train()
    return Learner(
        network,
        device=place,
        precision=precision,
        packed=packed,
        full=wanted is None,
        bits=quantization.bits(config.method),
        recomputes=recomputes,
        stored_dtype=_stored_dtype(folder),
        head=head,
        kernels=kernels,
        ranks=ranks,
    )


def _with_adapter(network: Any, config: TrainerConfig, wanted: Lora) -> Any:
    """The network with a new adapter, or that of an earlier run."""
    seed, source = config.training.seed, config.model
    if source.adapter_path is None:
        return adapter.add(network, wanted, seed=seed)
    uri = source.adapter_uri or source.adapter_path
    return adapter.load(network, Path(source.adapter_path), uri, config.method.lora, seed=seed)


def choose_precision(wanted: Precision, device: Device) -> Precision:
    """BF16 where the device computes it natively."""
    if wanted != Precision.AUTO:
        return wanted
    if device.kind == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        native = "avx512_bf16" in flags or "amx_bf16" in flags
    return Precision.BF16 if native else Precision.FP32


def _prepare_torch(device: Device, *, deterministic: bool) -> None:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    attention.register()
    if deterministic and device.kind == "cuda":
        torch.use_deterministic_algorithms(mode=True)
        torch.backends.cudnn.benchmark = False


def _load_network(folder: ModelFolder, checkpoint: Path | None, **options: Any) -> Any:
    uri = folder.source.uri
    try:
        skeleton.check(folder)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint or folder.path,
            use_safetensors=True,
            trust_remote_code=folder.source.trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with the reason
            **options,
        )
    except (OSError, ValueError, KeyError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise NotFound(f"model {uri} can't be loaded: {error}") from error
    network, report = loaded
    missing, wrong = sorted(report["missing_keys"]), report["mismatched_keys"]
    if missing or wrong:
        what = f"weights are missing, e.g. {missing[0]}" if missing else f"weights have other sizes: {wrong}"
        raise NotFound(f"model {uri} doesn't fit its config.json: {what}")
    return network


def _recomputes(network: Any, wanted: Switch, precision: Precision, most_tokens: int) -> bool:
    """Whether activations are computed again. Auto: on CUDA, where they would fill more than half of what is free."""
    if wanted != Switch.AUTO or network.device.type != "cuda":
        return wanted == Switch.ENABLED
    text = network.config.get_text_config()
    bytes_each = 40 if precision == Precision.BF16 else 75  # a token, layer and hidden unit; docs/trainer-speed.md
    return bool(most_tokens * text.num_hidden_layers * text.hidden_size * bytes_each > torch.cuda.mem_get_info()[0] / 2)


def _can_pack(network: Any, device: torch.device) -> bool:
    """Whether the model gives packed records what it gives them one by one; if so, it is set to do so."""
    if not getattr(network, "_supports_attention_backend", False):
        return False
    before = network.config._attn_implementation
    rows = [(torch.arange(length, device=device) * 7 + 3) % network.config.vocab_size for length in PROBE_LENGTHS]
    network.eval()
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        alone = torch.cat([network(input_ids=row[None], use_cache=False).logits[0] for row in rows])
        network.set_attn_implementation(attention.NAME)
        try:
            together = network(
                input_ids=torch.cat(rows)[None],
                position_ids=torch.cat([torch.arange(length, device=device) for length in PROBE_LENGTHS])[None],
                segments=PROBE_LENGTHS,
                use_cache=False,
            ).logits[0]
            apart = bool((alone - together).abs().max() < outputlayer.tolerance(alone))
        except Exception as error:  # noqa: BLE001 - whatever a model's code can't do with this, padding can
            logger.info("packing was tried and failed: %s", error)
            apart = False
    if not apart:
        network.set_attn_implementation(before)
    return apart


def _stored_dtype(folder: ModelFolder) -> torch.dtype:
    named = folder.config.get("dtype") or folder.config.get("torch_dtype") or "float32"
    found = getattr(torch, str(named), torch.float32)
    return found if isinstance(found, torch.dtype) else torch.float32
