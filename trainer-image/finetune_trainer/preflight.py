"""All that can be known to be wrong before torch is imported: settings, the run's folder, model descriptions, data."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from finetune_api.data import Task
from finetune_api.method import MethodType
from finetune_api.trainer_config import TrainerConfig
from finetune_api.uris import Scheme
from finetune_trainer import distributed
from finetune_trainer.data import plan, prepare, statistics, tokenizer
from finetune_trainer.data.dataset import Dataset
from finetune_trainer.errors import ConfigInvalid, NotFound, StorageFailed
from finetune_trainer.reporting import history, journal
from finetune_trainer.saves import upload
from finetune_trainer.sources import modelfolder, sizes

FETCHED = (Scheme.HUB, Scheme.S3, Scheme.GCS)
"""Where the trainer gets a model from by itself."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a training starts from."""

    model: modelfolder.ModelFolder
    data: Dataset
    evaluation: Dataset | None
    plan: plan.Plan
    summary: str
    fingerprint: str


def check(config: TrainerConfig) -> Prepared:
    """Check it all. Raises a TrainerError that says what is wrong."""
    _refuse_unsupported(config)
    plan.batch_sizes(config.training.batch_size, devices=distributed.device_count(os.environ))
    _take_storage(config)
    if distributed.Place.of(os.environ).rank == 0:
        upload.probe(config)
    for given in (config.dataset.train, config.dataset.eval):
        if given is not None and given.path is not None:  # a download waits until the model is known to be one
            prepare.find_files(config.dataset, config.task, given)
    model = modelfolder.find(config.model)
    encoder = tokenizer.load(model)
    dataset, evaluation, summary = _data(config, model, encoder)
    modelfolder.fetch_weights(model)
    sizes.check(model)
    planned = plan.Plan.of(config.training, dataset.lengths, devices=distributed.device_count(os.environ))
    return Prepared(
        model=model,
        data=dataset,
        evaluation=evaluation,
        plan=planned,
        summary=summary,
        fingerprint=_fingerprint(config, model, dataset, records=planned.per_device * planned.accumulation),
    )


def _data(
    config: TrainerConfig, model: modelfolder.ModelFolder, encoder: tokenizer.TextEncoder
) -> tuple[Dataset, Dataset | None, str]:
    """What to train and what to evaluate on, and what to tell of both."""
    scratch, task = Path(config.run_path), config.task
    longest = min(config.training.max_sequence_length, model.positions or config.training.max_sequence_length)
    dataset, summary = prepare.load(config.dataset, task, encoder, longest=longest, scratch=scratch)
    _refuse_unknown_tokens(model, dataset)
    if config.dataset.eval is None:
        return dataset, None, summary
    evaluation, told = prepare.load(
        config.dataset, task, encoder, longest=longest, source=config.dataset.eval, scratch=scratch
    )
    _refuse_unknown_tokens(model, evaluation)
    return dataset, evaluation, f"{summary} Evaluation: {told}{statistics.overlap(dataset, evaluation)}"


def _refuse_unsupported(config: TrainerConfig) -> None:
    scheme = config.model.uri.partition("://")[0]
    refused = {
        f"task {config.task}": config.task == Task.CUSTOM,
        f"model.uri with {scheme}://": config.model.path is None and scheme not in FETCHED,
    }
    for what, is_asked_for in refused.items():
        if is_asked_for:
            raise ConfigInvalid(f"{what} is not supported by this version of the trainer; remove or change it")
    if config.training.early_stopping is not None and config.dataset.eval is None:
        raise ConfigInvalid("training.earlyStopping needs dataset.eval: there is nothing to evaluate on; set it")
    if config.method.type == MethodType.FULL and config.model.adapter_path is not None:
        raise ConfigInvalid(
            f"method.type Full can't go on with the adapter {config.model.adapter_uri or config.model.adapter_path}:"
            " use LoRA or QLoRA, or start from full weights"
        )


def _take_storage(config: TrainerConfig) -> None:
    try:
        history.take(config)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise StorageFailed(f"the run's folder {config.run_path} can't be written: {why}") from error
    journal.keep(Path(config.run_path), attempt=config.run.attempt, rank=distributed.Place.of(os.environ).rank)


def _refuse_unknown_tokens(model: modelfolder.ModelFolder, dataset: Dataset) -> None:
    highest, known = int(dataset.tokens.max()), model.vocabulary_size
    if known is not None and highest >= known:
        raise NotFound(
            f"model {model.source.uri}: its tokenizer makes token {highest}, but it has embeddings for {known} tokens"
            " only; tokenizer and weights don't belong together"
        )


def _fingerprint(config: TrainerConfig, model: modelfolder.ModelFolder, dataset: Dataset, *, records: int) -> str:
    """Equal for attempts that do the same work, on any number of devices, in steps of so many records: only their
    checkpoints can be resumed.
    """
    what = {
        "run": config.run.uid,
        "task": config.task.value,
        "model": config.model.uri,
        "adapter": config.model.adapter_uri or config.model.adapter_path,
        "commit": model.path.name if config.model.path is None else "",
        "method": config.method.to_wire(),
        "training": config.training.to_wire(),
        "data": dataset.digest(),
        "records": records,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
