"""What is trained, to files and back: an adapter in peft's form, full weights in transformers', safetensors both."""

import shutil
from pathlib import Path

from safetensors.torch import save_file

from finetune_trainer.data.tokenizer import FILES
from finetune_trainer.learning import adapter
from finetune_trainer.learning.model import Learner
from finetune_trainer.sources.modelfolder import ModelFolder


def write(learner: Learner, folder: ModelFolder, target: Path) -> None:
    """Write what is trained, so that plain peft or transformers loads it; full weights with their tokenizer."""
    if learner.full:
        learner.network.save_pretrained(target)
        copy_tokenizer(folder, target)
        return
    tensors = {name: tensor.contiguous() for name, tensor in adapter.state(learner.network).items()}
    save_file(tensors, target / adapter.WEIGHTS, {"format": "pt"})
    settings = learner.network.peft_config[adapter.NAME]
    trains, settings.inference_mode = settings.inference_mode, True
    settings.save_pretrained(str(target))
    settings.inference_mode = trains


def read_adapter(learner: Learner, source: Path) -> None:
    """Take an adapter's weights from a checkpoint; full weights are read when the model is loaded."""
    adapter.fill(learner.network, source, source.name)


def copy_tokenizer(folder: ModelFolder, target: Path) -> None:
    """The tokenizer as it came, byte for byte."""
    for name in FILES:
        if (folder.path / name).is_file():
            shutil.copyfile(folder.path / name, target / name)
