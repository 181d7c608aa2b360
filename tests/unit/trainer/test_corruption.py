"""Each file of the newest checkpoint, spoiled in each way: found, named, and the checkpoint before it is used."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api.snapshot import EventType, ExitCode
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import preflight
from finetune_trainer.saves import checkpoint, durable
from tests import trainer_process
from tests.trainer_builders import configuration, merged

FULL: dict[str, Any] = {"method": {"type": "Full", "lora": None}}
STATE = ("manifest.json", "optimizer.safetensors", "rng.safetensors", "state.json")
LORA_FILES = ("adapter_config.json", "adapter_model.safetensors", *STATE)
FULL_FILES = (
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", *STATE
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run that has lost its output and its last checkpoint; three older ones are there."""

    config: dict[str, Any]
    weights: str
    """What it ends with."""

    def again(self, folder: Path) -> "Trained":
        """A copy to spoil."""
        shutil.copytree(self.config["runPath"], folder / "run", symlinks=True)
        return Trained(config=merged(self.config, {"runPath": str(folder / "run")}), weights=self.weights)

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((Path(self.config["runPath"]) / "checkpoints").glob("ep*"), key=checkpoint._step_of)

    def store(self) -> checkpoint.Store:
        """As the next attempt opens it."""
        config = TrainerConfig.model_validate(self.config)
        fingerprint = preflight.check(config).fingerprint
        return checkpoint.Store(Path(config.run_path), run=config.run, fingerprint=fingerprint, keep=3)

    def ended(self) -> str:
        return _weights(Path(self.config["runPath"]) / "output")


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return _train(tmp_path_factory.mktemp("lora"), {})


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return _train(tmp_path_factory.mktemp("full"), FULL)


def _truncate(file: Path, _other: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip(file: Path, _other: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _zero(file: Path, _other: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def _delete(file: Path, _other: Path) -> None:
    file.unlink()


def _swap(file: Path, other: Path) -> None:
    """With the same file of the oldest checkpoint, or, where they are equal, with another file of this one."""
    equal = file.read_bytes() == (other / file.name).read_bytes()
    other = file.parent / "state.json" if equal else other / file.name
    spare = file.with_name(".spare")
    file.rename(spare)
    other.rename(file)
    spare.rename(other)


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "truncated": _truncate, "one bit flipped": _flip, "zeroed": _zero, "deleted": _delete, "swapped": _swap
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("method", "name"), [("lora", n) for n in LORA_FILES] + [("full", n) for n in FULL_FILES]
)  # fmt: skip
def test_a_spoiled_file_is_found_and_named(
    request: pytest.FixtureRequest, tmp_path: Path, method: str, name: str, way: str
) -> None:
    trained: Trained = request.getfixturevalue(method).again(tmp_path)
    oldest, before, newest = trained.checkpoints
    assert {file.name for file in newest.iterdir()} == set(LORA_FILES if method == "lora" else FULL_FILES)
    WAYS[way](newest / name, oldest)
    found = trained.store().newest()
    assert found.folder == before
    assert len(found.passed_over) == 1
    assert found.passed_over[0].startswith(f"{newest.name}: ")
    if (name, way) != ("manifest.json", "swapped"):  # then it's the files that don't fit
        names = (name, "state.json") if way == "swapped" else (name,)  # with which it may have been swapped
        assert any(named in found.passed_over[0] for named in names)


def _played() -> Iterator[tuple[str, str]]:
    """Each file and each way at least once; all of them with CORRUPTIONS=all."""
    for number, name in enumerate(LORA_FILES):
        for turn, way in enumerate(WAYS):
            if os.environ.get("CORRUPTIONS") == "all" or turn == number % len(WAYS):
                yield name, way


@pytest.mark.parametrize(("name", "way"), list(_played()))
def test_the_next_attempt_says_so_and_ends_with_the_same_weights(
    lora: Trained, tmp_path: Path, name: str, way: str
) -> None:
    trained = lora.again(tmp_path)
    oldest, before, newest = trained.checkpoints
    WAYS[way](newest / name, oldest)
    attempt = trainer_process.run(merged(trained.config, {"run": {"attempt": 2}}))
    assert attempt.process.exitcode == ExitCode.DONE, attempt.log.read_text()[-2000:]
    said = attempt.messages(EventType.RESUMED)[0]
    assert said.startswith(f"Resumed from {before.name} (step 8 of 12). Passed over {newest.name}: ")
    assert trained.ended() == trained.weights


def test_where_all_are_spoiled_it_starts_again_and_deletes_none_without_a_word(lora: Trained, tmp_path: Path) -> None:
    trained = lora.again(tmp_path)
    for folder in trained.checkpoints:
        _flip(folder / "adapter_model.safetensors", folder)
    attempt = trainer_process.run(merged(trained.config, {"run": {"attempt": 2}}))
    assert attempt.process.exitcode == ExitCode.DONE
    said = attempt.messages(EventType.RESUMED)[0]
    assert said.startswith("Started from the beginning. Passed over ep2-ba10: adapter_model.safetensors has other ")
    assert "; ep2-ba8: adapter_model.safetensors has other content than when it was saved; ep1-ba6: " in said
    removed = attempt.messages("CHECKPOINT_REMOVED")
    assert [message.split(",")[0] for message in sorted(removed)] == [
        "checkpoint ep1-ba6",
        "checkpoint ep2-ba10",
        "checkpoint ep2-ba8",
    ]
    assert trained.ended() == trained.weights


def test_another_checkpoint_under_its_name_is_none(lora: Trained, tmp_path: Path) -> None:
    trained = lora.again(tmp_path)
    _, before, newest = trained.checkpoints
    shutil.rmtree(newest)
    shutil.copytree(before, newest)
    found = trained.store().newest()
    assert (found.folder, found.passed_over) == (before, [f"{newest.name}: manifest.json is that of {before.name}"])


def test_a_file_that_was_added_is_named(full: Trained, tmp_path: Path) -> None:
    """Beside full weights: transformers would load an adapter that lies there on top of them."""
    trained = full.again(tmp_path)
    _, before, newest = trained.checkpoints
    (newest / "adapter_config.json").write_text("{}")
    found = trained.store().newest()
    assert (found.folder, found.passed_over) == (before, [f"{newest.name}: adapter_config.json has been added to it"])


@pytest.mark.parametrize("step", range(0, 100, 7))
def test_any_bit_of_a_manifest_is_covered(lora: Trained, tmp_path: Path, step: int) -> None:
    folder = shutil.copytree(lora.checkpoints[-1], tmp_path / "copy")
    content = (folder / "manifest.json").read_bytes()
    for place in range(step, len(content), 100):
        spoiled = bytearray(content)
        spoiled[place] ^= 1 << place % 8
        (folder / "manifest.json").write_bytes(spoiled)
        with pytest.raises(durable.Damaged, match=r"manifest\.json"):
            durable.read_manifest(folder)


def _train(folder: Path, changes: dict[str, Any]) -> Trained:
    config = configuration(folder, merged(changes, {"checkpoint": {"keep": 4}}))
    assert trainer_process.run(config).process.exitcode == ExitCode.DONE
    weights = _weights(folder / "run" / "output")
    shutil.rmtree(folder / "run" / "output")
    shutil.rmtree(folder / "run" / "checkpoints" / "ep2-ba12")
    manifest = json.loads((folder / "run" / "checkpoints" / "ep2-ba10" / "manifest.json").read_text())
    assert manifest["files"].keys() == set(FULL_FILES if changes else LORA_FILES) - {"manifest.json"}
    return Trained(config=config, weights=weights)


def _weights(output: Path) -> str:
    return " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("*.safetensors")))
