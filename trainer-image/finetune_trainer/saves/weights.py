"""What is trained, to files and back: an adapter in peft's form, full weights in transformers', safetensors both."""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from finetune_trainer.data.tokenizer import FILES
from finetune_trainer.learning import adapter, sharding
from finetune_trainer.learning.model import Learner
from finetune_trainer.sources.modelfolder import ModelFolder


def tensors(learner: Learner) -> dict[str, torch.Tensor]:
    """What is trained, under the names that `write` expects."""
    if learner.spread:
        return sharding.gathered(learner.network, keep=learner.ranks.is_first)
    return dict(learner.network.state_dict()) if learner.full else adapter.state(learner.network)


def write(learner: Learner, folder: ModelFolder, target: Path, found: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write what is trained, so that plain peft or transformers loads it; full weights with their tokenizer.

    `found` is a copy of `tensors`, where the training may have gone on since.
    """
    now = dict(found or tensors(learner))
    if learner.full:
        learner.network.save_pretrained(target, state_dict=now)
        copy_tokenizer(folder, target)
        return
    save_file({name: tensor.contiguous() for name, tensor in now.items()}, target / adapter.WEIGHTS, {"format": "pt"})
    settings = copy.copy(learner.network.peft_config[adapter.NAME])
    settings.inference_mode = True
    settings.save_pretrained(str(target))


def read_adapter(learner: Learner, source: Path) -> None:
    """Take an adapter's weights from a checkpoint; full weights are read when the model is loaded."""
    adapter.fill(learner.network, source, source.name)


def copy_tokenizer(folder: ModelFolder, target: Path) -> None:
    """The tokenizer as it came, byte for byte."""
    for name in FILES:
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, target / name)
