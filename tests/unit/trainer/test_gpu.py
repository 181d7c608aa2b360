"""The same promises on CUDA. Skipped where there is no device."""

import hashlib
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.snapshot import ExitCode
from finetune_trainer import preflight
from finetune_trainer.data import batch
from finetune_trainer.distributed import choose_device
from finetune_trainer.learning import model
from tests import trainer_process
from tests.trainer_builders import configuration, merged, parsed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUDA: dict[str, Any] = {"device": "CUDA"}


def test_the_packed_loss_is_that_of_the_cpu(tmp_path: Path) -> None:
    config = parsed(tmp_path, {"method": {"lora": {"dropout": 0.0}}, "training": {"precision": "BF16"}})
    prepared = preflight.check(config)
    losses = []
    for wanted in ("CPU", "CUDA"):
        device = choose_device("CPU" if wanted == "CPU" else "CUDA")
        learner = model.load(prepared.model, config, device, most_tokens=prepared.plan.most_tokens)
        assert learner.packed
        tensors = batch.build(prepared.data, range(6), packed=True, device=learner.device)
        losses.append(float(learner.loss(tensors).detach()) / len(tensors.targets))
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_killed_and_started_again_the_weights_are_the_same_when_deterministic(tmp_path: Path) -> None:
    changes = merged(CUDA, {"training": {"deterministic": True, "precision": "BF16"}})
    assert trainer_process.run(configuration(tmp_path / "whole", changes)).process.exitcode == ExitCode.DONE
    config = configuration(tmp_path / "killed", changes)
    first = trainer_process.start(config)
    first.until("CHECKPOINT_SAVED", times=2)
    first.signal(signal.SIGKILL)
    first.wait()
    trainer_process.run(merged(config, {"run": {"attempt": 2}}))
    digests = [
        hashlib.sha256((tmp_path / name / "run/output/adapter_model.safetensors").read_bytes()).hexdigest()
        for name in ("whole", "killed")
    ]
    assert digests[0] == digests[1]


def test_device_figures_are_reported(tmp_path: Path) -> None:
    attempt = trainer_process.start(configuration(tmp_path, merged(CUDA, {"training": {"maxDuration": "5000ba"}})))
    attempt.until("TRAIN_UPDATED", times=100)
    attempt.signal(signal.SIGTERM)
    assert attempt.wait() == ExitCode.STOPPED
    progress = attempt.last_word().progress
    assert progress is not None
    assert progress.device_memory_bytes


def test_compiled_it_trains_to_the_loss_that_it_has_without(tmp_path: Path) -> None:
    losses = []
    for wanted in ("Disabled", "Enabled"):
        changes = merged(CUDA, {"training": {"compile": wanted, "precision": "BF16"}})
        attempt = trainer_process.run(configuration(tmp_path / wanted, changes))
        assert attempt.process.exitcode == ExitCode.DONE
        progress = attempt.last_word().progress
        assert progress is not None
        losses.append(progress.loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
