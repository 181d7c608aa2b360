"""The forward pass as CUDA takes it, with tensors that have shapes, types and a device, and no numbers.

It needs no device, and so it finds what one would only say on the first step: a kernel that is called wrongly, tensors
of two devices, numbers of two types. What comes out, and the backward pass, only a device can tell: test_gpu.
"""

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import preflight
from finetune_trainer.distributed import Device
from finetune_trainer.learning import model
from finetune_trainer.learning.model import Learner
from finetune_trainer.learning.objective import NextToken
from finetune_trainer.learning.preference import Pairs, Remembered
from tests import tiny_model
from tests.trainer_builders import merged, parsed

CUDA = torch.device("cuda")
LORA = {"method": {"lora": {"dropout": 0.0}}, "training": {"precision": "BF16"}}
VARLEN = "torch_attn._varlen_attn"
CASES = {
    "packed": (LORA, True),
    "padded": (merged(LORA, {"training": {"packing": False}}), False),
    "preferences": (merged(LORA, {"task": "Preference"}), True),
}


class Called(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch has no types for it
    """Remembers which operations are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # see above
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def] # see above
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


pytestmark = pytest.mark.filterwarnings("ignore:CUDA is not available")


@pytest.mark.parametrize(("changes", "packs"), CASES.values(), ids=CASES)
def test_the_loss_on_cuda_is_one_number_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], packs: bool
) -> None:
    assert takes_the_kernel(parsed(tmp_path, changes), monkeypatch) == packs


def test_where_the_device_or_the_type_has_no_such_kernel_each_record_is_a_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not takes_the_kernel(parsed(tmp_path, LORA), monkeypatch, torch_would=False)


def test_heads_that_the_kernel_would_pad_are_computed_record_by_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tiny_model.build(tiny_model.Shape(hidden=80, heads=4))  # heads of 20
    assert not takes_the_kernel(parsed(tmp_path, merged(LORA, {"model": {"path": str(odd)}})), monkeypatch)


def takes_the_kernel(config: TrainerConfig, monkeypatch: pytest.MonkeyPatch, *, torch_would: bool = True) -> bool:
    """Whether a loss, which is looked at here, is computed by the variable-length kernel."""
    prepared = preflight.check(config)
    on_cpu = model.load(prepared.model, config, Device("cpu", "cpu", 1), most_tokens=prepared.plan.most_tokens)
    assert on_cpu.packed == config.training.packing
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # it is the driver that does it
    monkeypatch.setattr(torch.backends.cuda, "can_use_flash_attention", lambda _: torch_would)  # and that says this
    with FakeTensorMode(allow_non_fake_inputs=True), Called() as called:
        learner = _moved(on_cpu)
        objective = (
            Pairs(learner, prepared.data, 0.1, Remembered(torch.zeros(len(prepared.data.lengths), 2)))
            if prepared.data.paired
            else NextToken(learner, prepared.data)
        )
        loss = objective.loss(range(4))
    assert (loss.shape, loss.dtype, loss.device.type) == (torch.Size([]), torch.float32, "cuda")
    return any(name.startswith(VARLEN) for name in called.names)


def _moved(learner: Learner) -> Learner:
    """The same, its weights without numbers on CUDA."""
    for module in learner.network.modules():
        for name, weight in module.named_parameters(recurse=False):
            empty = torch.empty(weight.shape, dtype=weight.dtype, device=CUDA)
            setattr(module, name, torch.nn.Parameter(empty, requires_grad=weight.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA))
    names = ("network", "precision", "packed", "full", "bits", "recomputes", "stored_dtype", "head", "kernels")
    return Learner(device=CUDA, **{name: getattr(learner, name) for name in names})
