"""Model FLOPs utilization: the arithmetic that a step has to do, over what its devices could do in that time.

Counted as PaLM's appendix B does (arXiv 2204.02311), with what isn't needed left out: a token takes 2 operations a
weight forward and 2 backward, and 2 more for the gradient of a weight that is trained; the output layer computes only
where something is learned; attention is causal; recomputed activations don't count. No figure where the device's peak
isn't known, or the work isn't: experts of which some are used, 8-bit weights, preference pairs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from finetune_api.method import Precision
from finetune_trainer.data.plan import Batch
from finetune_trainer.learning.model import Learner, size_of
from finetune_trainer.learning.objective import NextToken, Objective

PEAKS: tuple[tuple[str, float, float], ...] = (
    ("B200", 2250e12, 75e12),
    ("H200 NVL", 835e12, 60e12),
    ("H200", 989e12, 67e12),
    ("H100 NVL", 835e12, 60e12),
    ("H100 PCIe", 756e12, 51e12),
    ("H100", 989e12, 67e12),
    ("A100", 312e12, 19.5e12),
    ("L40S", 362e12, 91.6e12),
    ("A10G", 70e12, 31.2e12),
    ("A10", 125e12, 31.2e12),
    ("L4", 121e12, 30.3e12),
)
"""Device, and its operations a second without sparsity in BF16 and FP32 (no TF32, as the trainer computes): NVIDIA's
data sheets, for A10G those of AWS. The first that is one or two words of the device's name.
"""


def peak(device: str, precision: Precision) -> float | None:
    """Operations a second that a device can do; None if it isn't known, or is a slice of one."""
    words = f" {device} ".replace("-", " ")
    if " MIG " in words:
        return None
    found = next((row for row in PEAKS if f" {row[0]} " in words), None)
    return None if found is None else found[1] if precision == Precision.BF16 else found[2]


@dataclass(frozen=True, kw_only=True)
class Work:
    """The arithmetic of a model's training."""

    each_token: float
    """Operations a token, without attention and output layer."""
    each_target: float
    """Operations of the output layer for a token that is learned."""
    each_square: float
    """Operations of attention, a squared length of a record."""

    @classmethod
    def of(cls, learner: Learner) -> "Work | None":
        """What a learner does; None where that can't be told from its weights."""
        config = learner.network.config.get_text_config()
        last = learner.network.get_output_embeddings()
        if last is None or learner.bits == 8 or any(weight.dim() > 2 for weight in learner.network.parameters()):
            return None
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            each_token=float(sum(_operations(weight) for weight in _matrices(learner.network, last))),
            each_target=float(_operations(last.weight)),
            each_square=6.0 * config.num_hidden_layers * config.num_attention_heads * size,
        )


@dataclass(frozen=True, kw_only=True)
class Utilization:
    """How much of its devices' peak a training uses."""

    work: Work
    peak: float
    """Of all devices together."""
    objective: NextToken

    @classmethod
    def of(cls, objective: Objective, *, device: str, devices: int) -> "Utilization | None":
        """None where it isn't known."""
        known = peak(device, objective.learner.precision)
        if known is None or not isinstance(objective, NextToken):
            return None
        work = Work.of(objective.learner)
        return None if work is None else cls(work=work, peak=known * devices, objective=objective)

    def share(self, drawn: Batch, *, seconds: float) -> float:
        """That of a step which took so long."""
        lengths = [self.objective.data.lengths[record] for micro in drawn for record in micro]
        operations = (
            self.work.each_token * sum(lengths)
            + self.work.each_target * sum(map(self.objective.units, drawn))
            + self.work.each_square * sum(length * length for length in lengths)
        )
        return operations / (seconds * self.peak)


def _matrices(network: torch.nn.Module, last: torch.nn.Module) -> Iterator[torch.nn.Parameter]:
    """The weights that every token is multiplied with."""
    apart = {id(module.weight) for module in network.modules() if isinstance(module, torch.nn.Embedding)}
    apart |= {id(weight) for weight in last.parameters()}
    return (weight for weight in network.parameters() if weight.dim() == 2 and id(weight) not in apart)


def _operations(weight: torch.nn.Parameter) -> int:
    return size_of(weight) * (6 if weight.requires_grad else 4)
