"""The model without its weights: tells what a config asks for before memory is taken for it.

What config.json has too much of would else be made up, and fill the pod's memory before it is seen not to fit.
"""

import torch
import transformers

from finetune_trainer.errors import NotFound
from finetune_trainer.sources import sizes
from finetune_trainer.sources.modelfolder import ModelFolder

TIMES = 2
"""How many times the numbers of its weights a model may have: tied weights lie in the files once."""


def check(folder: ModelFolder) -> None:
    """Raises NotFound for a model that is larger than its weights, and what transformers raises for what is none."""
    trusted = folder.source.trust_remote_code
    config = transformers.AutoConfig.from_pretrained(folder.path, trust_remote_code=trusted, local_files_only=True)
    with torch.device("meta"):
        network = transformers.AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call] # has no types
            config, trust_remote_code=trusted
        )
    found = sizes.held(folder)
    quantized = "quantization_config" in folder.config
    most = 8 * found.size if quantized else TIMES * found.numbers
    wanted = sum(weight.numel() for weight in network.parameters())
    if wanted > most:
        raise NotFound(
            f"model {folder.source.uri} doesn't fit its config.json: that describes {wanted:,} parameters, and the"
            f" weights have {found.numbers:,}; config.json and weights don't belong together; download the model again"
        )
