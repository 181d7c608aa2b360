"""What the trainer imports, for the process that tests fork it from. Imports only: no thread may run there."""

import peft  # noqa: F401
import torch  # noqa: F401
from transformers.models.llama import modeling_llama  # noqa: F401

import finetune_trainer.training  # noqa: F401
