"""The optimizer's state of weights that are spread over processes: each writes its part, any number of them reads it.

By torch's distributed checkpoint in its safetensors form: its own form keeps a pickle beside the tensors, this one says
in each file's header where the parts belong.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from finetune_trainer.ranks import Ranks

FOLDER = "optimizer"


def write(tensors: Mapping[str, torch.Tensor], folder: Path, ranks: Ranks) -> None:
    """Write this process's part. All must; raises OSError on all where one can't."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    try:
        save(
            dict(tensors),
            storage_writer=HuggingFaceStorageWriter(str(folder / FOLDER), save_distributed=True),
            process_group=ranks.for_saves().group(),
        )
    except CheckpointException as error:
        raise OSError("; ".join(str(failure[0]) for failure in error.failures.values())[:300]) from error


def read(into: Mapping[str, torch.Tensor], folder: Path, ranks: Ranks) -> None:
    """Fill tensors, whole or spread, with what a folder's files hold of them, whole or in parts."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    logging.getLogger("torch.distributed.checkpoint").setLevel(logging.ERROR)
    reader = HuggingFaceStorageReader(str(folder))
    load(dict(into), storage_reader=reader, process_group=ranks.group(), no_dist=ranks.place.size == 1)
