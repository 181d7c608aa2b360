"""Nothing is unpickled and no code of a model runs: canaries lie in models and checkpoints, and none of them sings.

CVE-2026-1839 is transformers' Trainer loading rng_state.pth of a checkpoint with pickle. Here nothing is loaded so: not
that file, nor any other, and that is heard from the interpreter itself, whatever the library that would do it.
"""

import functools
import json
import os
import pickle
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.snapshot import EventType, ExitCode
from finetune_trainer.saves import durable
from tests import tiny_model, trainer_process
from tests.trainer_builders import configuration, merged

FULL: dict[str, Any] = {"method": {"type": "Full", "lora": None}}
METHODS = {"LoRA": {}, "full": FULL}

PICKLES = (
    "adapter_model.bin", "optimizer.bin", "optimizer.pkl", "optimizer.pt", "pytorch_model.bin", "rng_state.pth",
    "rng_state_0.pth", "scaler.pt", "scheduler.pt", "tokenizer.pickle", "tokenizer.pkl", "training_args.bin",
    "vocab.pkl",
)  # fmt: skip


class Canary:
    """Sings when it is unpickled."""

    def __init__(self, song: Path) -> None:
        self.song = song

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.song),)


@pytest.fixture
def song(tmp_path: Path) -> Path:
    """What is there once one has sung."""
    return tmp_path / "song"


@pytest.mark.parametrize("zipped", [True, False], ids=["torch's form", "plain"])
def test_a_canary_sings_when_it_is_unpickled(tmp_path: Path, song: Path, zipped: bool) -> None:
    _plant(tmp_path / "cage", song)
    file = tmp_path / "cage" / ("optimizer.pt" if zipped else "training_args.bin")
    if zipped:
        torch.load(file, weights_only=False)
    else:
        pickle.loads(file.read_bytes())
    assert song.exists()


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_a_training_and_its_resumption_unpickle_nothing(tmp_path: Path, song: Path, changes: dict[str, Any]) -> None:
    source = shutil.copytree(tiny_model.build(), tmp_path / "model")
    _plant(source, song)
    config = configuration(tmp_path, merged(changes, {"model": {"path": str(source)}}))
    heard = tmp_path / "heard"
    listen = functools.partial(_listen, heard)
    first = trainer_process.start(config, before=listen)
    first.until("CHECKPOINT_SAVED", times=2)
    first.signal(signal.SIGKILL)
    first.wait()
    newest = max((tmp_path / "run" / "checkpoints").glob("ep*"), key=lambda folder: int(folder.name.split("-ba")[1]))
    _plant(newest, song)
    _sign(newest)
    second = trainer_process.run(merged(config, {"run": {"attempt": 2}}), before=listen)
    assert second.process.exitcode == ExitCode.DONE, second.log.read_text()[-2000:]
    assert second.messages(EventType.RESUMED)[0].startswith(f"Resumed from {newest.name} ")
    assert not song.exists()
    assert heard.read_text() == ""


def test_what_unpickles_is_heard(tmp_path: Path) -> None:
    attempt = trainer_process.run(configuration(tmp_path), before=functools.partial(_listen_and_unpickle, tmp_path))
    assert attempt.process.exitcode == ExitCode.DONE
    assert (tmp_path / "heard").read_text().splitlines() == ["collections.Counter", "torch.load"]


REFUSED: dict[str, tuple[str, str]] = {
    "weights": ("pytorch_model.bin", "pickled weights can run code and are not loaded"),
    "an adapter": ("adapter_model.bin", "pickled ones are not loaded"),
    "the code of a model": ("config.json", "can't be loaded"),
    "the code of a tokenizer": ("tokenizer_config.json", "its tokenizer can't be loaded"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_could_only_be_unpickled_or_run_is_refused(tmp_path: Path, song: Path, what: str) -> None:
    source = shutil.copytree(tiny_model.build(), tmp_path / "model")
    _plant(source, song)
    changes: dict[str, Any] = {"model": {"path": str(source)}}
    (source / "song.py").write_text(f"import os\nos.mkdir({str(song)!r})\n")
    if what == "weights":
        (source / "model.safetensors").unlink()
    elif what == "an adapter":
        changes = {"model": {"adapterPath": str(_adapter(tmp_path, song)), "adapterUri": "run://first"}}
    elif what == "the code of a model":
        auto = {"AutoConfig": "song.Config", "AutoModelForCausalLM": "song.Model"}
        _change(source / "config.json", {"model_type": "song", "architectures": ["Model"], "auto_map": auto})
    else:
        (source / "tokenizer.json").unlink()
        named = {"tokenizer_class": "SongTokenizer", "auto_map": {"AutoTokenizer": ["song.Tokenizer", None]}}
        _change(source / "tokenizer_config.json", named)
    listen = functools.partial(_listen, tmp_path / "heard")
    attempt = trainer_process.run(configuration(tmp_path, changes), before=listen)
    assert attempt.process.exitcode == ExitCode.NOT_FOUND, attempt.log.read_text()[-2000:]
    error = attempt.last_word().error
    assert error is not None
    assert REFUSED[what][1] in error.message
    assert not song.exists()
    assert (tmp_path / "heard").read_text() == ""


def test_code_beside_a_known_model_is_left_alone(tmp_path: Path, song: Path) -> None:
    source = shutil.copytree(tiny_model.build(), tmp_path / "model")
    (source / "song.py").write_text(f"import os\nos.mkdir({str(song)!r})\n")
    auto = {"AutoConfig": "song.Config", "AutoModelForCausalLM": "song.Model"}
    _change(source / "config.json", {"auto_map": auto})
    config = configuration(tmp_path, {"model": {"path": str(source)}, "training": {"maxDuration": "1ba"}})
    assert trainer_process.run(config).process.exitcode == ExitCode.DONE
    assert not song.exists()


def _plant(folder: Path, song: Path) -> None:
    """Each name that a library loads with pickle, by turns in torch's form and plain."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(PICKLES):
        if name == "optimizer.pt" or (number % 2 == 0 and name != "training_args.bin"):
            torch.save(Canary(song), folder / name)
        else:
            (folder / name).write_bytes(pickle.dumps(Canary(song)))


def _sign(folder: Path) -> None:
    """As if the trainer had saved what lies there."""
    manifest = durable.read_manifest(folder)
    (folder / durable.MANIFEST).unlink()
    durable.write_manifest(folder, {key: value for key, value in manifest.items() if key != "files"})


def _adapter(folder: Path, song: Path) -> Path:
    made = folder / "adapter"
    _plant(made, song)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (made / "adapter_config.json").write_text(json.dumps(settings))
    return made


def _change(file: Path, changes: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _listen(heard: Path) -> None:
    """In the trainer's process: note each class that is looked up for a pickle, and each use of torch.load."""
    file = os.open(heard, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    load = torch.load

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            os.write(file, f"{arguments[0]}.{arguments[1]}\n".encode())

    def noted(*arguments: Any, **options: Any) -> Any:
        os.write(file, b"torch.load\n")
        return load(*arguments, **options)

    sys.addaudithook(note)
    torch.load = noted


def _listen_and_unpickle(folder: Path) -> None:
    from collections import Counter

    torch.save({}, folder / "empty")
    _listen(folder / "heard")
    pickle.loads(pickle.dumps(Counter()))
    torch.load(folder / "empty")
