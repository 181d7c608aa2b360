"""The finished model: weights or adapter, tokenizer, model card, the run's settings and history. Whole or not there."""

import shutil
from pathlib import Path

from safetensors import SafetensorError

from finetune_api.snapshot import SavedOutput, Snapshot
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.learning import sharding
from finetune_trainer.learning.model import Learner
from finetune_trainer.reporting import history
from finetune_trainer.saves import card, durable, merge, weights
from finetune_trainer.sources.modelfolder import ModelFolder


def write(
    config: TrainerConfig,
    learner: Learner,
    *,
    model: ModelFolder,
    steps: history.History,
    last: Snapshot,
    checkpoint: str,
    ended_early: str = "",
) -> SavedOutput:
    """Write the output folder; `ended_early` says why there are fewer steps than planned. Raises OSError."""
    saved = SavedOutput(path=history.OUTPUT, checkpoint=checkpoint)
    whole = None
    if learner.spread:
        whole = sharding.gathered(learner.network, keep=learner.ranks.is_first, dtype=learner.stored_dtype)
    elif learner.full:
        learner.network.to(learner.stored_dtype)
    if not learner.ranks.is_first:
        return saved
    try:
        with durable.new_folder(Path(config.run_path) / history.OUTPUT) as folder:
            weights.write(learner, model, folder, whole)
            weights.copy_tokenizer(model, folder)
            merged = str(learner.stored_dtype).removeprefix("torch.") if config.output.merge_adapter else ""
            told = card.text(config, model, last, merged=merged, bits=learner.bits, ended_early=ended_early)
            (folder / "README.md").write_text(told, encoding="utf-8")
            logs = folder / history.FOLDER
            logs.mkdir()
            (logs / history.PARAMETERS).write_text(config.encode() + "\n", encoding="utf-8")
            snapshot = last.model_copy(update={"output": saved})
            (logs / history.LAST_SNAPSHOT).write_text(snapshot.encode() + "\n", encoding="utf-8")
            for file in filter(Path.exists, steps.files):
                shutil.copyfile(file, logs / file.name)
            if merged:  # last: the learner can't train any more after it
                merge.write(learner, model, folder / merge.FOLDER)
            durable.write_manifest(folder, {"version": 1, "run": config.run.uid, "checkpoint": checkpoint})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    return saved
