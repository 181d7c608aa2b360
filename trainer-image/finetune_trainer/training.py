"""Brings model, checkpoints and data together, says so, and hands over to the loop; once more where memory ran out."""

import gc
import logging
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from finetune_api.method import ResumeMode
from finetune_api.snapshot import EventType
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import distributed, loop, memory, ranks
from finetune_trainer.data.dataset import Dataset
from finetune_trainer.data.plan import Plan
from finetune_trainer.errors import StorageFailed
from finetune_trainer.learning import compiling, flops, model, preference, probe
from finetune_trainer.learning.objective import NextToken, Objective
from finetune_trainer.preflight import Prepared
from finetune_trainer.reporting import devices, journal, metrics
from finetune_trainer.reporting.reporter import MEMORY_FULL, Reporter
from finetune_trainer.saves import card, checkpoint
from finetune_trainer.stopping import StopRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Full:
    """Memory ran out in the middle of a training."""

    per_device: int
    """Records in a forward pass with which it did."""
    step: int

    def says(self) -> str:
        return (
            f"Memory ran out at step {self.step:,} with {self.per_device} records in a forward pass: from the last"
            " checkpoint on it is half of them in twice as many passes; steps and order of the records stay the same."
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Given:
    """What stays the same however often the training begins again."""

    config: TrainerConfig
    prepared: Prepared
    device: distributed.Device
    ranks: ranks.Ranks
    store: checkpoint.Store
    reporter: Reporter
    stop: StopRequest


def run(config: TrainerConfig, prepared: Prepared, reporter: Reporter, stop: StopRequest) -> None:
    """Train. Raises a TrainerError where that ends before its time."""
    device = distributed.choose_device(config.device)
    with ranks.told_as_loss():
        together = ranks.join(os.environ, cuda=device.kind == "cuda")
        _run(config, prepared, reporter, stop, device=device, together=together)
        together.leave()


def _run(
    config: TrainerConfig,
    prepared: Prepared,
    reporter: Reporter,
    stop: StopRequest,
    *,
    device: distributed.Device,
    together: ranks.Ranks,
) -> None:
    metrics.describe(config, device=device.name)
    if together.place.local_rank == 0:
        devices.watch(device, count=together.place.local_size, report=reporter.device_sampled)
    store = _open_store(config, prepared, together)
    given = _Given(
        config=config, prepared=prepared, device=device, ranks=together, store=store, reporter=reporter, stop=stop
    )
    full = _train(given, after=None)
    while full is not None:
        stop.preparing_again()
        reporter.trouble(MEMORY_FULL, full.says())
        gc.collect()
        memory.give_back_heap()
        if device.kind == "cuda":
            torch.cuda.empty_cache()
        full = _train(given, after=full)


def _train(given: _Given, *, after: _Full | None) -> _Full | None:
    """From the newest checkpoint to the end, or until memory is full and a forward pass can be made smaller."""
    training = _prepare(given, after)
    given.stop.training_begins()
    try:
        loop.train(training)
    except Exception as error:
        per_device, progress = training.plan.per_device, given.reporter.snapshot().progress
        if memory.trouble(error) is None or per_device == 1:
            raise
        if training.learner.spread:  # the others wait in the middle of a pass: all begin again, as a new attempt
            memory.leave_note(
                Path(given.config.run_path), fingerprint=given.prepared.fingerprint, per_device=per_device // 2
            )
            raise
        return _Full(per_device, 1 if progress is None else progress.batch + 1)
    return None


def _prepare(given: _Given, after: _Full | None) -> loop.Training:
    config, prepared, reporter, store = given.config, given.prepared, given.reporter, given.store
    reporter.checkpoints_are(store.complete)
    resumes = config.checkpoint.resume == ResumeMode.AUTO or after is not None
    found = store.newest() if resumes else checkpoint.Found()
    most_tokens = prepared.plan.most_tokens
    learner = model.load(
        prepared.model, config, given.device, most_tokens=most_tokens, checkpoint=found.folder, ranks=given.ranks
    )
    if given.device.kind == "cpu":
        memory.keep_heap(os.environ)
    trial = _trial(config, prepared, learner)
    plan = _plan(config, prepared, trial, found, after)
    compiled = compiling.settle(trial, plan, config.training, steps_done=found.step, known=found.facts.get("compiled"))
    learner = replace(learner, compiled=compiled)
    reference = _reference(config, prepared, learner, plan, found)
    facts = _facts(given.device, learner)
    start = f" with the adapter {config.model.adapter_uri}" if config.model.adapter_uri else ""
    told = f"Model data downloaded and initialized for base model {config.model.uri}{start}: "
    over = f" on {plan.devices} devices" if plan.devices > 1 else ""
    passes = f"{plan.accumulation} x {plan.per_device} records a step{over}"
    reporter.milestone(EventType.MODEL_INITIALIZED, f"{told}{config.method.type} {learner.describe()}, {passes}.")
    if found.folder is not None or found.passed_over or after is not None:
        before = "" if after is None else f"{after.says()} "
        reporter.milestone(EventType.RESUMED, before + _resumed(found, plan, facts))
        reporter.checkpoints_are(store.complete)
    reporter.chose(_chosen(learner, plan))
    held_out = prepared.evaluation
    objective = _objective(config, learner, prepared.data, reference.get("train"))
    return loop.Training(
        config=config,
        plan=plan,
        model=prepared.model,
        learner=learner,
        objective=objective,
        evaluation=None if held_out is None else _objective(config, learner, held_out, reference.get("eval")),
        reference=reference,
        devices=distributed.device_count(os.environ),
        store=store,
        found=found,
        reporter=reporter,
        facts=facts,
        utilization=flops.Utilization.of(objective, device=given.device.name, devices=plan.devices),
        stop_requested=lambda: given.ranks.any(given.stop.is_requested()),
        stop_requested_here=given.stop.is_requested,
    )


def _plan(
    config: TrainerConfig, prepared: Prepared, trial: Objective, found: checkpoint.Found, after: _Full | None
) -> Plan:
    """The plan in forward passes that fit: halved, or as the checkpoint has it, or found out now."""
    if after is not None:
        return probe.split(prepared.plan, after.per_device // 2)
    noted = memory.noted(Path(config.run_path), fingerprint=prepared.fingerprint)
    known = [size for size in (found.per_device, noted) if size is not None]
    if known:
        return probe.split(prepared.plan, min(known))
    if config.training.batch_size.per_device != "Auto":
        return prepared.plan
    return probe.fit(trial, prepared.plan)


def _trial(config: TrainerConfig, prepared: Prepared, learner: model.Learner) -> Objective:
    """An objective to try things with: as large and slow as the real one, and its loss means nothing."""
    nothing = torch.zeros(len(prepared.data.lengths), 2)
    table = None if preference.start_is_under_the_adapter(config) else nothing
    return _objective(config, learner, prepared.data, table)


def _objective(config: TrainerConfig, learner: model.Learner, data: Dataset, table: torch.Tensor | None) -> Objective:
    if not data.paired:
        return NextToken(learner, data)
    reference = preference.WithoutAdapter(learner) if table is None else preference.Remembered(table)
    return preference.Pairs(learner, data, config.training.preference.beta, reference)


def _reference(
    config: TrainerConfig, prepared: Prepared, learner: model.Learner, plan: Plan, found: checkpoint.Found
) -> dict[str, torch.Tensor]:
    """What the model at the start says of all pairs, where it isn't there any more in training."""
    if not prepared.data.paired or preference.start_is_under_the_adapter(config):
        return {}
    if found.folder is not None:
        return checkpoint.read_reference(found.folder)
    tables = {"train": preference.compute(learner, prepared.data, _drawn(plan), at_once=plan.per_device)}
    if prepared.evaluation is not None:
        every = range(len(prepared.evaluation.lengths))
        tables["eval"] = preference.compute(learner, prepared.evaluation, every, at_once=plan.per_device)
    count = sum(map(len, tables.values()))
    journal.event(logger, "REFERENCE_COMPUTED", f"what the model says of {count:,} pairs before it learns is computed")
    return tables


def _drawn(plan: Plan) -> set[int]:
    """The records that come in the planned steps."""
    if plan.steps >= plan.steps_per_epoch:
        return set(range(len(plan.lengths)))
    return {record for step in range(plan.steps) for micro in plan.batch(step) for record in micro}


def _open_store(config: TrainerConfig, prepared: Prepared, together: ranks.Ranks) -> checkpoint.Store:
    try:
        return checkpoint.Store(
            Path(config.run_path),
            run=config.run,
            fingerprint=prepared.fingerprint,
            keep=config.checkpoint.keep,
            ranks=together,
        )
    except OSError as error:
        raise StorageFailed(f"the checkpoints in {config.run_path} can't be reached: {error}") from error


def _facts(device: distributed.Device, learner: model.Learner) -> dict[str, Any]:
    """What decides, beside the settings, which bits come out."""
    quantized = {} if learner.bits is None else {"bitsandbytes": metadata.version("bitsandbytes")}
    return {
        "python": platform.python_version(),
        **card.versions(),
        **quantized,
        "device": device.name,
        "devices": learner.ranks.place.size,
        "threads": device.threads,
        "precision": str(learner.precision),
        "packed": learner.packed,
        "compiled": learner.compiled,
    }


def _chosen(learner: model.Learner, plan: Plan) -> dict[str, str]:
    """What the settings may leave open, for a tracking server."""
    switches = {"packed": learner.packed, "recomputed": learner.recomputes, "compiled": learner.compiled}
    return {
        "precision": str(learner.precision),
        "records-a-pass": str(plan.per_device),
        "passes-a-step": str(plan.accumulation),
        "devices": str(plan.devices),
        **{name: str(is_on).lower() for name, is_on in switches.items()},
    }


def _resumed(found: checkpoint.Found, plan: Plan, facts: Mapping[str, Any]) -> str:
    if found.folder is None:
        start = "Started from the beginning."
    else:
        start = f"Resumed from {found.folder.name} (step {found.step:,} of {plan.steps:,})."
    passed = f" Passed over {'; '.join(found.passed_over)}." if found.passed_over else ""
    changed = [f"{key} {was} is now {facts.get(key)}" for key, was in found.facts.items() if facts.get(key) != was]
    differs = f" Equal to an uninterrupted run up to rounding only: {', '.join(changed)}." if changed else ""
    return f"{start}{passed}{differs}"
