"""A training that is killed and started again ends with the same weights, bit for bit, as one that never was."""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api.snapshot import EventType, ExitCode, Snapshot
from tests import trainer_process
from tests.trainer_builders import configuration, merged

LORA_PACKED: dict[str, Any] = {}
LORA_PADDED = {"training": {"packing": False}}
FULL_PACKED = {"method": {"type": "Full", "lora": None}}
FULL_PADDED = merged(FULL_PACKED, LORA_PADDED)
BF16 = {"training": {"precision": "BF16"}}
FULL_BF16 = merged(FULL_PACKED, BF16)

Whole = tuple[str, list[tuple[int, float]]]
"""The weights' digests and the loss of every step."""

SETTINGS = {
    "LoRA with dropout, packed": LORA_PACKED,
    "LoRA with dropout, padded": LORA_PADDED,
    "LoRA over bf16 weights": BF16,
    "full, packed": FULL_PACKED,
    "full, padded": FULL_PADDED,
    "full with bf16 autocast": FULL_BF16,
    "recomputed activations": {"training": {"gradientCheckpointing": "Enabled"}},
    "deterministic": {"training": {"deterministic": True}},
    "rsLoRA with DoRA": {"method": {"lora": {"rsLora": True, "dora": True}}},
    "QLoRA in 4 bits": {"method": {"type": "QLoRA"}},
    "QLoRA in 8 bits": {"method": {"type": "QLoRA", "quantization": {"bits": 8}}},
    "preferences": {"task": "Preference"},
    "full on preferences": merged({"task": "Preference"}, FULL_PACKED) | FULL_PACKED,
}


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_killed_in_the_middle_of_an_epoch(tmp_path: Path, uninterrupted: Any, changes: dict[str, Any]) -> None:
    config = configuration(tmp_path / "killed", changes)
    first = trainer_process.start(config)
    first.until("CHECKPOINT_SAVED", times=4)
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    second = trainer_process.run(_attempt(config, 2))
    assert _message(second.last_word(), EventType.RESUMED).startswith("Resumed from ep2-ba")
    assert _outcome(tmp_path / "killed") == uninterrupted(changes)


def test_killed_at_every_instant_of_its_saves(tmp_path: Path, uninterrupted: Any) -> None:
    """Three saves and the output, killed before each call that makes something durable, one attempt after the other."""
    changes = {"training": {"maxDuration": "6ba"}}
    config = configuration(tmp_path / "killed", changes)
    killed = 0
    for call in range(1, 100):
        attempt = trainer_process.run(_attempt(config, call), die_at_call=call)
        if attempt.process.exitcode == ExitCode.DONE:
            break
        assert attempt.process.exitcode == -signal.SIGKILL
        killed += 1
        _check_checkpoints(tmp_path / "killed")
    assert killed > 15  # the first save alone has as many
    assert _outcome(tmp_path / "killed") == uninterrupted(changes)
    leftovers = [path for path in (tmp_path / "killed" / "run").rglob("*") if path.name.startswith((".tmp", ".old"))]
    assert leftovers == []


@pytest.mark.parametrize("call", range(18, 61, 7))
def test_killed_at_an_instant_of_a_later_save_or_of_the_output(tmp_path: Path, uninterrupted: Any, call: int) -> None:
    changes = {"training": {"maxDuration": "6ba"}}
    config = configuration(tmp_path / "killed", changes)
    first = trainer_process.run(config, die_at_call=call)
    assert first.process.exitcode == -signal.SIGKILL
    _check_checkpoints(tmp_path / "killed")
    assert trainer_process.run(_attempt(config, 2)).process.exitcode == ExitCode.DONE
    assert _outcome(tmp_path / "killed") == uninterrupted(changes)


def test_stopped_on_request_it_saves_and_goes_on_later(tmp_path: Path, uninterrupted: Any) -> None:
    changes: dict[str, Any] = {}
    config = configuration(tmp_path / "killed", {"checkpoint": {"interval": "100ba"}})
    first = trainer_process.start(config)
    first.until("TRAIN_UPDATED", times=3)
    first.signal(signal.SIGTERM)
    first.signal(signal.SIGTERM)
    assert first.wait() == ExitCode.STOPPED
    word = first.last_word()
    assert word.error is not None
    assert word.error.reason == "Stopped"
    assert len(word.checkpoints) == 1
    assert word.checkpoints[0].name in word.error.message
    second = trainer_process.run(_attempt(config, 2))
    assert second.process.exitcode == ExitCode.DONE
    assert _outcome(tmp_path / "killed") == uninterrupted(changes)


def test_stopped_in_the_middle_of_a_step_it_leaves_the_step_to_the_next_attempt(tmp_path: Path) -> None:
    """A step of many forward passes: the stop isn't kept waiting for its end, and dropout goes on where it was."""
    one_record_a_pass = {"batchSize": {"perDevice": 1, "gradientAccumulationSteps": 240}, "maxDuration": "3ba"}
    changes = {"training": one_record_a_pass, "checkpoint": {"interval": "100ba"}}
    assert (
        trainer_process.run(configuration(tmp_path / "whole", changes, records=240)).process.exitcode == ExitCode.DONE
    )
    config = configuration(tmp_path / "killed", changes, records=240)
    first = trainer_process.start(config)
    first.until("TRAIN_UPDATED")
    first.signal(signal.SIGTERM)
    assert first.wait() == ExitCode.STOPPED
    steps = [line["batch"] for line in first.events() if line["event"] == "TRAIN_UPDATED"]
    assert first.last_word().checkpoints[-1].step == len(steps) < 3
    second = trainer_process.run(_attempt(config, 2))
    assert second.process.exitcode == ExitCode.DONE
    assert _outcome(tmp_path / "killed") == _outcome(tmp_path / "whole")


def test_an_emptied_checkpoint_is_named_and_the_one_before_is_taken(tmp_path: Path) -> None:
    """As where the volume's own repair has taken the files; each file spoiled in each way is in test_corruption."""
    config, kept = _stopped_run(tmp_path)
    for path in kept[-1].iterdir():
        path.unlink()
    attempt = trainer_process.run(_attempt(config, 2))
    message = _message(attempt.last_word(), EventType.RESUMED)
    assert message.startswith(f"Resumed from {kept[-2].name} ")
    assert f"Passed over {kept[-1].name}: manifest.json is missing" in message
    assert _weights(tmp_path) == (tmp_path / "expected").read_text()


def test_checkpoints_of_other_settings_are_named_and_not_taken(tmp_path: Path) -> None:
    config, kept = _stopped_run(tmp_path)
    attempt = trainer_process.run(_attempt(merged(config, {"training": {"learningRate": 0.001}}), 2))
    message = _message(attempt.last_word(), EventType.RESUMED)
    assert message.startswith("Started from the beginning. Passed over ")
    assert all(f"{folder.name}: it was made with other settings or data" in message for folder in kept)


def test_resume_never_starts_from_the_beginning(tmp_path: Path) -> None:
    config, _ = _stopped_run(tmp_path)
    attempt = trainer_process.run(_attempt(merged(config, {"checkpoint": {"resume": "Never"}}), 2))
    assert [milestone.type for milestone in attempt.last_word().milestones] == [
        EventType.DATA_VALIDATED,
        EventType.MODEL_INITIALIZED,
        EventType.TRAIN_FINISHED,
    ]
    assert len(attempt.messages("TRAIN_UPDATED")) == 12
    assert _weights(tmp_path) == (tmp_path / "expected").read_text()


def test_a_finished_run_ends_at_once_and_says_what_it_said_before(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    first = trainer_process.run(config)
    weights = _weights(tmp_path)
    second = trainer_process.run(_attempt(config, 2))
    assert second.process.exitcode == ExitCode.DONE
    assert [line["event"] for line in second.events()] == ["ALREADY_FINISHED"]
    before, now = first.last_word(), second.last_word()
    assert now.attempt == 2
    assert (now.milestones, now.output) == (before.milestones, before.output)
    assert [saved.name for saved in now.checkpoints] == [saved.name for saved in before.checkpoints]
    assert _weights(tmp_path) == weights


def test_after_the_last_checkpoint_only_the_output_is_made_again(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    trainer_process.run(config)
    weights = _weights(tmp_path)
    shutil.rmtree(tmp_path / "run" / "output")
    again = trainer_process.run(_attempt(config, 2))
    assert again.process.exitcode == ExitCode.DONE
    assert again.messages("TRAIN_UPDATED") == []
    assert _weights(tmp_path) == weights
    assert "Steps: 12" in (tmp_path / "run" / "output" / "README.md").read_text()


def test_only_the_newest_checkpoints_are_kept_and_latest_names_the_last(tmp_path: Path) -> None:
    word = trainer_process.run(configuration(tmp_path)).last_word()
    there = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert there == ["ep2-ba10", "ep2-ba12", "latest"]
    assert [saved.name for saved in word.checkpoints] == ["ep2-ba10", "ep2-ba12"]
    assert (tmp_path / "run" / "checkpoints" / "latest").readlink() == Path("ep2-ba12")
    manifest = (tmp_path / "run" / "checkpoints" / "ep2-ba12" / "manifest.json").read_bytes()
    assert word.checkpoints[-1].sha256 == hashlib.sha256(manifest).hexdigest()


def test_no_checkpoint_holds_a_pickle(tmp_path: Path) -> None:
    trainer_process.run(configuration(tmp_path))
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".log", ".safetensors", ".md"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Whole]:
    """What a run with these changes ends with when nothing happens to it; each is trained once."""
    known: dict[str, Whole] = {}

    def train(changes: dict[str, Any]) -> Whole:
        key = json.dumps(changes)
        if key not in known:
            folder = tmp_path_factory.mktemp("whole")
            attempt = trainer_process.run(configuration(folder, changes))
            assert attempt.process.exitcode == ExitCode.DONE, attempt.log.read_text()
            known[key] = _outcome(folder)
        return known[key]

    return train


def _outcome(folder: Path) -> Whole:
    return _weights(folder), _losses(folder)


def _stopped_run(folder: Path) -> tuple[dict[str, Any], list[Path]]:
    """A run whose output is lost after its two last checkpoints but one were made; what it ended with is in a file."""
    config = configuration(folder, {"checkpoint": {"keep": 3}})
    trainer_process.run(config)
    (folder / "expected").write_text(_weights(folder))
    shutil.rmtree(folder / "run" / "output")
    checkpoints = folder / "run" / "checkpoints"
    shutil.rmtree(checkpoints / "ep2-ba12")
    return config, [checkpoints / "ep2-ba8", checkpoints / "ep2-ba10"]


def _attempt(config: dict[str, Any], number: int) -> dict[str, Any]:
    return merged(config, {"run": {"attempt": number}})


def _weights(folder: Path) -> str:
    output = folder / "run" / "output"
    return " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("*.safetensors")))


def _losses(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "run" / "output" / "training_logs" / "metrics.jsonl").read_text().splitlines()
    return [(line["step"], line["loss"]) for line in map(json.loads, lines)]


def _message(word: Snapshot, kind: EventType) -> str:
    return next(milestone.message for milestone in word.milestones if milestone.type == kind)


def _check_checkpoints(folder: Path) -> None:
    """Whatever the instant: what has a checkpoint's name is one, whole."""
    for manifest in (folder / "run" / "checkpoints").glob("ep*/manifest.json"):
        for name, entry in json.loads(manifest.read_text())["files"].items():
            assert hashlib.sha256((manifest.parent / name).read_bytes()).hexdigest() == entry["sha256"]
    for found in (folder / "run" / "checkpoints").glob("ep*"):
        assert (found / "manifest.json").is_file()
