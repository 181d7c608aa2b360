"""Several processes train what one trains, go on where they were, and agree on every end."""

import hashlib
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from finetune_api.snapshot import EventType, ExitCode
from finetune_trainer.learning import sharding
from tests import gangs, tiny_model, trainer_process
from tests.trainer_builders import configuration, merged
from tests.trainer_process import Attempt

EIGHT = {"perDevice": 2, "gradientAccumulationSteps": None, "global": 8}
"""Four forward passes a step for one process, two for two, one for four; the last step of an epoch has but two."""
SHORT = {"training": {"batchSize": EIGHT, "maxDuration": "8ba"}}
LORA = merged(SHORT, {"method": {"lora": {"dropout": 0.0}}})
FULL = merged(SHORT, {"method": {"type": "Full"}}) | {"method": {"type": "Full", "lora": None}}
AS_ON_CUDA = merged(FULL, {"training": {"precision": "BF16", "gradientCheckpointing": "Enabled"}})
PADDED = merged(LORA, {"training": {"packing": False}})
ON_ITS_OWN = {"training": {"maxDuration": "8ba", "batchSize": {**EIGHT, "perDevice": "Auto"}}}
AUTO, FULL_AUTO = {**LORA, **ON_ITS_OWN}, {**FULL, **ON_ITS_OWN}
PREFERENCES = merged(LORA, {"task": "Preference"})
RECORDS = 28
KINDS = {"LoRA": LORA, "full": FULL}


def config_in(folder: Path, changes: dict[str, Any], *, attempt: int = 1) -> dict[str, Any]:
    return configuration(folder, merged(changes, {"run": {"attempt": attempt}}), records=RECORDS)


def losses(folder: Path) -> list[float]:
    lines = (folder / "run" / "training_logs" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def tokens(folder: Path) -> list[int]:
    lines = (folder / "run" / "training_logs" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["tokens"] for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = (folder / "run" / "output").glob("*.safetensors")
    return load_file(file)


def digest(folder: Path) -> str:
    (file,) = (folder / "run" / "output").glob("*.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def resumed(attempt: Attempt) -> str:
    found = [m.message for m in attempt.last_word().milestones if m.type == EventType.RESUMED]
    return found[0] if found else ""


def assert_equal_within_rounding(one: Path, other: Path) -> None:
    assert losses(one) == pytest.approx(losses(other), abs=2e-5)
    assert tokens(one) == tokens(other)
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.allclose(tensor, found[name], atol=3e-4), name  # AdamW makes a step of a rounding error


@pytest.mark.parametrize(
    ("changes", "size"),
    [(LORA, 2), (PADDED, 4), (FULL, 2), (FULL, 4), (AS_ON_CUDA, 2), (PREFERENCES, 2), (AUTO, 2), (FULL_AUTO, 2)],
    ids=[
        "LoRA, 2",
        "LoRA padded, 4",
        "full, 2",
        "full, 4",
        "full in bf16, recomputed, 2",
        "preferences, 2",
        "LoRA Auto, 2",
        "full Auto, 2",
    ],
)
def test_several_processes_train_what_one_trains(tmp_path: Path, changes: dict[str, Any], size: int) -> None:
    """Records, tokens, losses, evaluations and weights, though a step is a mean over all its tokens."""
    held_out = tiny_model.write_questions(tmp_path / "eval.jsonl", 9, seed=5, longest=200)
    evaluated = {
        "dataset": {"eval": {"uri": "pvc://datasets/eval.jsonl", "path": str(held_out)}},
        "training": {"evaluationInterval": "3ba"},
    }
    changes = changes if changes is PREFERENCES else merged(changes, evaluated)
    one = trainer_process.run(config_in(tmp_path / "one", changes))
    assert one.process.exitcode == ExitCode.DONE, one.log.read_text()
    gang = gangs.start(config_in(tmp_path / "several", changes), size)
    assert gangs.codes(gang) == [ExitCode.DONE] * size, "\n".join(each.log.read_text() for each in gang)
    assert_equal_within_rounding(tmp_path / "one", tmp_path / "several")
    first, alone = gang[0].last_word().progress, one.last_word().progress
    assert first is not None
    assert alone is not None
    if changes is not PREFERENCES:
        assert alone.eval_loss is not None
        assert first.eval_loss == pytest.approx(alone.eval_loss, abs=2e-4)
    assert (first.batch, first.tokens) == (alone.batch, alone.tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nodes", [False, True], ids=["a process", "a node of two"])
def test_one_is_killed_and_the_next_attempt_goes_on_bit_for_bit(tmp_path: Path, kind: str, nodes: bool) -> None:
    """It goes on from a checkpoint that was made right after an evaluation."""
    dropout = {"method": {"lora": {"dropout": 0.1}}} if kind == "LoRA" else {}
    held_out = tiny_model.write_questions(tmp_path / "eval.jsonl", 5, seed=5, longest=200)
    evaluated = {
        "dataset": {"eval": {"uri": "pvc://datasets/eval.jsonl", "path": str(held_out)}},
        "training": {"evaluationInterval": "2ba"},
    }
    changes = merged(merged(KINDS[kind], dropout), evaluated)
    undisturbed = gangs.run(config_in(tmp_path / "whole", changes), 2)
    assert [each.process.exitcode for each in undisturbed] == [ExitCode.DONE] * 2
    killed = {1: {"before": gangs.killed_before_step(6)}}
    gang = gangs.start(config_in(tmp_path / "killed", changes), 2, nodes=nodes, special=killed)
    assert gangs.codes(gang) == [1, -signal.SIGKILL]
    error = gang[0].last_word().error
    assert error is not None
    assert error.reason == "PeerLost"
    again = gangs.run(config_in(tmp_path / "killed", changes, attempt=2), 2, nodes=nodes)
    assert [each.process.exitcode for each in again] == [ExitCode.DONE] * 2, again[0].log.read_text()
    assert resumed(again[0]).startswith("Resumed from ep1-ba4 ")
    assert "rounding" not in resumed(again[0])
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 4)])
def test_a_checkpoint_serves_any_number_of_processes(tmp_path: Path, kind: str, before: int, after: int) -> None:
    changes = KINDS[kind]
    whole = gangs.run(config_in(tmp_path / "whole", changes), before)
    assert [each.process.exitcode for each in whole] == [ExitCode.DONE] * before
    stopped = {0: {"before": gangs.stopped_before_step(5)}}
    gang = gangs.start(config_in(tmp_path / "changed", changes), before, special=stopped)
    assert gangs.codes(gang) == [ExitCode.STOPPED] * before
    again = gangs.run(config_in(tmp_path / "changed", changes, attempt=2), after)
    assert [each.process.exitcode for each in again] == [ExitCode.DONE] * after, again[0].log.read_text()
    assert f"devices {before} is now {after}" in resumed(again[0])
    assert_equal_within_rounding(tmp_path / "whole", tmp_path / "changed")


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_of_one_stops_all_with_one_checkpoint(tmp_path: Path, kind: str) -> None:
    stopped = {1: {"before": gangs.stopped_before_step(3)}}
    gang = gangs.start(
        config_in(tmp_path, merged(KINDS[kind], {"checkpoint": {"interval": "100ba"}})), 2, special=stopped
    )
    assert gangs.codes(gang) == [ExitCode.STOPPED] * 2
    (saved,) = gang[0].last_word().checkpoints
    assert saved.step == len(losses(tmp_path)) < 8
    folder = tmp_path / "run" / saved.path
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".safetensors"}, "no pickle"
    assert json.loads((folder / "manifest.json").read_text())["worldSize"] == 2


def test_a_loss_that_is_no_number_ends_all_in_the_same_way(tmp_path: Path) -> None:
    config = config_in(tmp_path, LORA)
    broken = tiny_model.build_without("What", tmp_path / "model")
    gang = gangs.run(merged(config, {"model": {"path": str(broken)}}), 2)
    assert [each.process.exitcode for each in gang] == [ExitCode.DIVERGED] * 2
    messages = {each.last_word().error.message for each in gang}  # type: ignore[union-attr]
    assert len(messages) == 1


def test_a_full_memory_of_one_makes_the_forward_passes_of_all_smaller(tmp_path: Path) -> None:
    whole = gangs.run(config_in(tmp_path / "whole", LORA), 2)
    assert [each.process.exitcode for each in whole] == [ExitCode.DONE] * 2
    small = {1: {"targets_that_fit": 50}}
    gang = gangs.run(config_in(tmp_path / "small", LORA), 2, special=small)
    assert [each.process.exitcode for each in gang] == [ExitCode.DONE] * 2, gang[1].log.read_text()
    assert "8 x 1 records a step on 2 devices" in "".join(gang[0].messages("MODEL_INITIALIZED"))
    assert_equal_within_rounding(tmp_path / "whole", tmp_path / "small")


def test_spread_weights_are_reckoned_once_however_many_processes_there_are(tmp_path: Path) -> None:
    """What the same pass keeps is the same; gradients and optimizer are divided, and parts of others come and go."""
    changes = merged(FULL, {"training": {"batchSize": {"perDevice": "Auto", "global": None}, "maxDuration": "2ep"}})
    one = trainer_process.run(config_in(tmp_path / "one", changes))
    gang = gangs.run(config_in(tmp_path / "two", changes), 2)
    assert [each.process.exitcode for each in (one, *gang)] == [ExitCode.DONE] * 3, gang[0].log.read_text()
    alone, shared = (next(e for e in each.events() if e["event"] == "MEMORY_PROBED") for each in (one, gang[0]))
    assert alone["message"].split(": ")[0] == shared["message"].split(": ")[0]
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_model.build(), dtype=torch.float32)
    weights = sum(weight.nbytes for weight in network.parameters())
    parts = weights + 2 * weights  # of gradients, and of AdamW's two moments
    assert shared["needed"] == alone["needed"] - parts / 2 + sharding.visiting_bytes(network)


def test_where_weights_are_spread_the_attempt_after_a_full_memory_makes_smaller_passes(tmp_path: Path) -> None:
    small = {1: {"targets_that_fit": 50}}
    first = gangs.run(config_in(tmp_path, FULL), 2, special=small)
    assert first[1].process.exitcode == ExitCode.KILLED, first[1].log.read_text()
    second = gangs.run(config_in(tmp_path, FULL, attempt=2), 2, special=small)
    assert [each.process.exitcode for each in second] == [ExitCode.DONE] * 2, second[1].log.read_text()
    assert "8 x 1 records a step on 2 devices" in "".join(second[0].messages("MODEL_INITIALIZED"))
    assert len(tokens(tmp_path)) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_that_one_cannot_write_is_no_checkpoint_for_any(tmp_path: Path, kind: str) -> None:
    gang = gangs.start(config_in(tmp_path, KINDS[kind]), 2, special={1: {"largest_file": 2000}})
    assert gangs.codes(gang) == [ExitCode.STORAGE] * 2, gang[0].log.read_text()
    word = gang[0].last_word()
    assert [trouble.reason for trouble in word.troubles] == ["CheckpointFailed"]
    assert word.checkpoints == ()
    assert word.progress is not None
    assert word.progress.batch == 8, "it goes on without checkpoints until the last one must be saved"
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_only_the_first_serves_and_writes_the_history(tmp_path: Path) -> None:
    gang = gangs.run(config_in(tmp_path, LORA), 2)
    assert len(losses(tmp_path)) == 8
    assert gang[1].messages("TRAIN_UPDATED") == []
    assert len(gang[0].messages("TRAIN_UPDATED")) == 8
