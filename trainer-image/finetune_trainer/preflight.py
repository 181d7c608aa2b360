"""All that can be known to be wrong before torch is imported: settings, the run's folder, model descriptions, data."""

import hashlib
import json
from dataclasses import dataclass

from finetune_api.data import Task
from finetune_api.method import MethodType
from finetune_api.trainer_config import TrainerConfig
from finetune_api.uris import Scheme
from finetune_trainer import data, history, plan, source, tokenizer
from finetune_trainer.errors import ConfigInvalid, NotFound, StorageFailed


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a training starts from."""

    model: source.ModelFolder
    data: data.Dataset
    plan: plan.Plan
    summary: str
    fingerprint: str


def check(config: TrainerConfig) -> Prepared:
    """Check it all. Raises a TrainerError that says what is wrong."""
    _refuse_unsupported(config)
    plan.batch_sizes(config.training.batch_size)
    _take_storage(config)
    data.find_files(config.dataset)
    model = source.find(config.model)
    encoder = tokenizer.load(model)
    longest = min(config.training.max_sequence_length, model.positions or config.training.max_sequence_length)
    dataset, summary = data.load(config.dataset, config.task, encoder, longest=longest)
    _refuse_unknown_tokens(model, dataset)
    source.fetch_weights(model)
    return Prepared(
        model, dataset, plan.Plan.of(config.training, dataset.lengths), summary, _fingerprint(config, model, dataset)
    )


def _refuse_unsupported(config: TrainerConfig) -> None:
    scheme = config.model.uri.partition("://")[0]
    refused = {
        f"task {config.task}": config.task not in (Task.INSTRUCTION_FINE_TUNE, Task.CHAT_COMPLETION),
        "method.type QLoRA": config.method.type == MethodType.QLORA,
        "dataset.eval": config.dataset.eval is not None,
        "training.earlyStopping": config.training.early_stopping is not None,
        f"model.uri with {scheme}://": config.model.path is None and scheme != Scheme.HUB,
    }
    for what, is_asked_for in refused.items():
        if is_asked_for:
            raise ConfigInvalid(f"{what} is not supported by this version of the trainer; remove or change it")


def _take_storage(config: TrainerConfig) -> None:
    try:
        history.take(config)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StorageFailed(f"the run's folder {config.run_path} can't be written: {why}") from error


def _refuse_unknown_tokens(model: source.ModelFolder, dataset: data.Dataset) -> None:
    highest, known = int(dataset.tokens.max()), model.vocabulary_size
    if known is not None and highest >= known:
        raise NotFound(
            f"model {model.source.uri}: its tokenizer makes token {highest}, but it has embeddings for {known} tokens"
            " only; tokenizer and weights don't belong together"
        )


def _fingerprint(config: TrainerConfig, model: source.ModelFolder, dataset: data.Dataset) -> str:
    """Equal for attempts that do the same work: only their checkpoints can be resumed."""
    what = {
        "run": config.run.uid,
        "model": config.model.uri,
        "commit": model.path.name if config.model.path is None else "",
        "method": config.method.to_wire(),
        "training": config.training.to_wire(),
        "data": dataset.digest(),
        "worldSize": 1,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
