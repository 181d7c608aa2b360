"""Brings model, checkpoints and data together, says so, and hands over to the loop."""

import logging
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_api.method import ResumeMode
from finetune_api.snapshot import EventType
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import checkpoint, devices, distributed, loop, metrics, model, output
from finetune_trainer.errors import StorageFailed
from finetune_trainer.preflight import Prepared
from finetune_trainer.reporter import Reporter
from finetune_trainer.stopping import StopRequest

logger = logging.getLogger(__name__)


def run(config: TrainerConfig, prepared: Prepared, reporter: Reporter, stop: StopRequest) -> None:
    """Train. Raises a TrainerError where that ends before its time."""
    device = distributed.choose_device(config.device)
    metrics.describe(config, device=device.name)
    devices.watch(device, report=reporter.device_sampled)
    store = _open_store(config, prepared)
    reporter.checkpoints_are(store.complete)
    found = store.newest() if config.checkpoint.resume == ResumeMode.AUTO else checkpoint.Found()
    most_tokens = prepared.plan.most_tokens
    learner = model.load(prepared.model, config, device, most_tokens=most_tokens, checkpoint=found.folder)
    facts = _facts(device, learner)
    told = f"Model data downloaded and initialized for base model {config.model.uri}: "
    reporter.milestone(EventType.MODEL_INITIALIZED, f"{told}{config.method.type} {learner.describe()}.")
    if found.folder is not None or found.passed_over:
        reporter.milestone(EventType.RESUMED, _resumed(found, prepared.plan.steps, facts))
        reporter.checkpoints_are(store.complete)
    stop.training_begins()
    loop.train(
        loop.Training(
            config=config,
            data=prepared.data,
            plan=prepared.plan,
            model=prepared.model,
            learner=learner,
            store=store,
            found=found,
            reporter=reporter,
            facts=facts,
            stop_requested=stop.is_requested,
        )
    )


def _open_store(config: TrainerConfig, prepared: Prepared) -> checkpoint.Store:
    try:
        return checkpoint.Store(
            Path(config.run_path), run=config.run, fingerprint=prepared.fingerprint, keep=config.checkpoint.keep
        )
    except OSError as error:
        raise StorageFailed(f"the checkpoints in {config.run_path} can't be reached: {error}") from error


def _facts(device: distributed.Device, learner: model.Learner) -> dict[str, Any]:
    """What decides, beside the settings, which bits come out."""
    return {
        "python": platform.python_version(),
        **output.versions(),
        "device": device.name,
        "threads": device.threads,
        "precision": str(learner.precision),
        "packed": learner.packed,
    }


def _resumed(found: checkpoint.Found, steps: int, facts: Mapping[str, Any]) -> str:
    if found.folder is None:
        start = "Started from the beginning."
    else:
        start = f"Resumed from {found.folder.name} (step {found.step:,} of {steps:,})."
    passed = f" Passed over {'; '.join(found.passed_over)}." if found.passed_over else ""
    changed = [f"{key} {was} is now {facts.get(key)}" for key, was in found.facts.items() if facts.get(key) != was]
    differs = f" Equal to an uninterrupted run up to rounding only: {', '.join(changed)}." if changed else ""
    return f"{start}{passed}{differs}"
