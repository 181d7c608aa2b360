"""The finished model: weights or adapter, tokenizer, model card, the run's settings and history. Whole or not there."""

import json
import shutil
from importlib import metadata
from pathlib import Path

from safetensors import SafetensorError

from finetune_api.snapshot import SavedOutput, Snapshot
from finetune_api.trainer_config import TrainerConfig
from finetune_api.uris import Scheme, Uri
from finetune_trainer.learning.model import Learner
from finetune_trainer.reporting import history
from finetune_trainer.saves import durable, weights
from finetune_trainer.sources.modelfolder import ModelFolder

LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "safetensors")


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
    if learner.full:
        learner.network.to(learner.stored_dtype)
    try:
        with durable.new_folder(Path(config.run_path) / history.OUTPUT) as folder:
            weights.write(learner, model, folder)
            weights.copy_tokenizer(model, folder)
            (folder / "README.md").write_text(model_card(config, last, ended_early=ended_early), encoding="utf-8")
            logs = folder / history.FOLDER
            logs.mkdir()
            (logs / history.PARAMETERS).write_text(config.encode() + "\n", encoding="utf-8")
            told = last.model_copy(update={"output": saved})
            (logs / history.LAST_SNAPSHOT).write_text(told.encode() + "\n", encoding="utf-8")
            for file in filter(Path.exists, steps.files):
                shutil.copyfile(file, logs / file.name)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    return saved


def versions() -> dict[str, str]:
    """Of the libraries that decide what comes out."""
    return {name: metadata.version(name) for name in LIBRARIES}


def model_card(config: TrainerConfig, last: Snapshot, *, ended_early: str = "") -> str:
    """README.md: what this model is, made from what, and how."""
    progress = last.progress
    adapter = config.method.adapter
    library = "transformers" if adapter is None else "peft"
    on_hub = config.model.uri.startswith(f"{Scheme.HUB}://")
    base = f"base_model: {Uri.parse(config.model.uri).name}\n" if on_hub else ""
    kind = "PeftModel.from_pretrained(base, FOLDER)" if adapter else "AutoModelForCausalLM.from_pretrained(FOLDER)"
    settings = json.dumps(config.training.to_wire() | {"method": config.method.to_wire()}, indent=2)
    start = f", from the adapter `{config.model.adapter_uri}`" if config.model.adapter_uri else ""
    assert progress is not None
    assert progress.loss is not None
    figures = (
        f"- Steps: {progress.batch}, epochs: {progress.epoch}, tokens: {progress.tokens:,}\n"
        f"- Loss of the last step: {progress.loss:.4f}\n"
    )
    if progress.eval_loss is not None:
        figures += f"- Loss of the last evaluation: {progress.eval_loss:.4f}\n"
    if ended_early:
        figures += f"- {ended_early}\n"
    used = "\n".join(f"- {name} {version}" for name, version in versions().items())
    return (
        f"---\nlibrary_name: {library}\n{base}pipeline_tag: text-generation\ntags: [finetune-operator]\n---\n\n"
        f"# {config.run.name}\n\n"
        f"{config.method.type} fine-tuning of `{config.model.uri}`{start} on `{config.dataset.train.uri}`"
        f" ({config.task}).\n"
        f"Load it with `{kind}`.\n\n## Result\n\n{figures}\n"
        f"## Hyperparameters\n\n```json\n{settings}\n```\n\n## Versions\n\n{used}\n"
    )
