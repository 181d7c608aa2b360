"""Saves on volumes that are slow, full, read-only or broken: nothing older is lost, and the training goes on."""

import functools
import hashlib
import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.snapshot import ExitCode, Snapshot
from finetune_trainer.saves import durable
from tests import ports, trainer_process
from tests.trainer_builders import configuration, merged

ENDLESS: dict[str, Any] = {"training": {"maxDuration": "5000ba"}}

Spoiled = tuple[Callable[[], object], Callable[[], object]]
"""What breaks a volume, and what mends it."""


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A small volume of its own for the run."""
    folder = tmp_path / "run"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no volume can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def _full(run: Path, _broken: Path) -> Spoiled:
    filler = run / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    return

    return fill, filler.unlink


def _read_only(run: Path, _broken: Path) -> Spoiled:
    saves = run / "checkpoints"

    def close() -> None:
        subprocess.run(["mount", "--bind", saves, saves], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", saves], check=True)

    return close, lambda: subprocess.run(["umount", "--lazy", saves], check=True)


def _broken(_run: Path, broken: Path) -> Spoiled:
    """No device here gives EIO: fsync says so instead, in the trainer's process, while a file is there."""
    return broken.touch, broken.unlink


TROUBLES = {"full": (_full, "No space left"), "read-only": (_read_only, "Read-only"), "EIO": (_broken, "Input/output")}


@pytest.mark.parametrize(("spoil", "said"), TROUBLES.values(), ids=TROUBLES)
def test_a_volume_that_breaks_is_a_trouble_until_it_is_mended(
    tmp_path: Path, mounted: Path, spoil: Callable[[Path, Path], Spoiled], said: str
) -> None:
    flag = tmp_path / "broken"
    break_it, mend_it = spoil(mounted, flag)
    config = configuration(tmp_path, ENDLESS)
    port = ports.free()
    attempt = trainer_process.start(config, port=port, before=functools.partial(_fail_while, flag))
    attempt.until("CHECKPOINT_SAVED", times=2)
    break_it()
    attempt.until("CHECKPOINT_FAILED", times=2)
    steps = len(attempt.messages("TRAIN_UPDATED"))
    attempt.until("TRAIN_UPDATED", times=steps + 2)
    now = _told(port)
    assert [trouble.reason for trouble in now.troubles] == ["CheckpointFailed"]
    assert said in now.troubles[0].message
    assert len(now.checkpoints) == 2
    for saved in now.checkpoints:
        durable.verify(mounted / saved.path)
    saves = len(attempt.messages("CHECKPOINT_SAVED"))
    mend_it()
    attempt.until("CHECKPOINT_SAVED", times=saves + 1)
    attempt.signal(signal.SIGTERM)
    assert attempt.wait() == ExitCode.STOPPED
    word = attempt.last_word()
    assert word.troubles == ()
    assert word.progress is not None
    assert word.checkpoints[-1].step == word.progress.batch
    assert {path.name for path in (mounted / "checkpoints").iterdir()} == {
        "latest",
        *(saved.name for saved in word.checkpoints),
    }


def test_on_a_slow_volume_the_steps_go_on_and_it_is_told_when_it_is_complete(tmp_path: Path) -> None:
    config = configuration(tmp_path, {"checkpoint": {"interval": "4ba"}, "training": {"maxDuration": "8ba"}})
    attempt = trainer_process.run(config, before=functools.partial(_slow_fsync, 0.3))
    assert attempt.process.exitcode == ExitCode.DONE
    story = [
        (line["event"], line) for line in attempt.events() if line["event"] in ("TRAIN_UPDATED", "CHECKPOINT_SAVED")
    ]
    first = next(number for number, (event, _) in enumerate(story) if event == "CHECKPOINT_SAVED")
    assert first > 4  # steps beyond the fourth came before it was told
    saved = story[first][1]
    assert saved["seconds"] > 1
    assert saved["stalledSeconds"] < saved["seconds"] / 2


def test_a_stop_during_a_save_ends_with_the_step_that_was_reached(tmp_path: Path) -> None:
    changes = {"checkpoint": {"interval": "4ba"}}
    assert trainer_process.run(configuration(tmp_path / "whole", changes)).process.exitcode == ExitCode.DONE
    config = configuration(tmp_path / "stopped", changes)
    first = trainer_process.start(config, before=functools.partial(_slow_fsync, 0.3))
    first.until("TRAIN_UPDATED", times=5)
    assert first.messages("CHECKPOINT_SAVED") == []
    asked = time.monotonic()
    first.signal(signal.SIGTERM)
    assert first.wait() == ExitCode.STOPPED
    assert time.monotonic() - asked < 60  # two saves on a volume that takes seconds for each; the grace is 300 s
    steps = len(first.messages("TRAIN_UPDATED"))
    assert [saved.step for saved in first.last_word().checkpoints] == [4, steps]
    second = trainer_process.run(merged(config, {"run": {"attempt": 2}}))
    assert second.process.exitcode == ExitCode.DONE
    assert _weights(tmp_path / "stopped") == _weights(tmp_path / "whole")


def _fail_while(flag: Path) -> None:
    """In the trainer's process."""
    fsync = os.fsync

    def fails(handle: int) -> None:
        if flag.exists():
            raise OSError(5, os.strerror(5))
        fsync(handle)

    os.fsync = fails  # type: ignore[assignment]


def _slow_fsync(seconds: float) -> None:
    """In the trainer's process."""
    fsync = os.fsync

    def slow(handle: int) -> None:
        time.sleep(seconds)
        fsync(handle)

    os.fsync = slow  # type: ignore[assignment]


def _told(port: int) -> Snapshot:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=5) as answer:
        return Snapshot.decode(answer.read())


def _weights(folder: Path) -> str:
    output = folder / "run" / "output"
    return " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("*.safetensors")))
