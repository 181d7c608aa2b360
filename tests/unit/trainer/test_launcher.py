"""A process for each device: how they are started, stopped and ended, as one program with one code and last word."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api.snapshot import EventType, ExitCode, Snapshot
from finetune_trainer import launcher
from finetune_trainer.distributed import LISTEN_VARIABLE, Nodes
from tests import gangs
from tests.trainer_builders import configuration, merged

EIGHT = {"perDevice": 2, "gradientAccumulationSteps": None, "global": 8}
LONG = {"training": {"batchSize": EIGHT, "maxDuration": "24ba"}}


@dataclass
class Launched:
    """The program as a container's command."""

    folder: Path
    config: Mapping[str, Any]
    devices: int = 2

    def __post_init__(self) -> None:
        self.log = self.folder / f"log-{self.config['run']['attempt']}"
        self.word = self.folder / f"word-{self.config['run']['attempt']}"
        variables = {
            "FINETUNE_CONFIG": json.dumps(self.config),
            "FINETUNE_TERMINATION_LOG": str(self.word),
            "FINETUNE_BIND_ADDRESS": "127.0.0.1",
            "FINETUNE_PORT": "0",
            "OMP_NUM_THREADS": "1",
            "PET_NPROC_PER_NODE": str(self.devices),
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "finetune_trainer"], env={**os.environ, **variables}, stdout=log, stderr=log
            )

    def until_saved(self, timeout: float = 240) -> None:
        end = time.monotonic() + timeout
        while "CHECKPOINT_SAVED" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < end, self.log.read_text()[-2000:]
            time.sleep(0.02)

    def ranks(self) -> dict[int, int]:
        """Process id by rank."""
        found = {}
        for name in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            told = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
            found[next(int(line[5:]) for line in told if line.startswith(b"RANK="))] = int(name)
        return found

    def ends(self, timeout: float = 240) -> int:
        return self.process.wait(timeout)

    def last_word(self) -> Snapshot:
        return Snapshot.decode(self.word.read_text())


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "run" / "output" / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_killed_then_stopped_then_finished_it_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = gangs.run(configuration(tmp_path / "whole", LONG, records=28), 2)
    assert [each.process.exitcode for each in whole] == [ExitCode.DONE] * 2
    folder = tmp_path / "disturbed"
    config = configuration(folder, LONG, records=28)

    first = Launched(folder, config)
    first.until_saved()
    os.kill(first.ranks()[1], signal.SIGKILL)
    assert first.ends() == ExitCode.KILLED
    error = first.last_word().error
    assert error is not None
    assert (error.reason, error.message) == ("Killed", "process 2 of 2 ended with exit code 137 and no word")
    assert first.last_word().checkpoints != ()

    second = Launched(folder, merged(config, {"run": {"attempt": 2}}))
    second.until_saved()
    second.process.send_signal(signal.SIGTERM)
    assert second.ends() == ExitCode.STOPPED, second.log.read_text()
    word = second.last_word()
    assert word.error is not None
    assert word.error.reason == "Stopped"
    assert word.checkpoints[-1].name in word.error.message

    third = Launched(folder, merged(config, {"run": {"attempt": 3}}))
    assert third.ends() == ExitCode.DONE, third.log.read_text()
    word = third.last_word()
    assert word.output is not None
    assert [m.type for m in word.milestones][-1] == EventType.TRAIN_FINISHED
    assert digest(folder) == digest(tmp_path / "whole")


def test_what_is_wrong_for_all_is_told_once_and_ends_with_its_code(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"prompt": "What?", "respnse": "That."}\n')
    launched = Launched(tmp_path, config)
    assert launched.ends() == ExitCode.BAD_DATA
    error = launched.last_word().error
    assert error is not None
    assert "respnse" in error.message


def test_a_stop_before_the_training_ends_all_at_once(tmp_path: Path) -> None:
    launched = Launched(tmp_path, configuration(tmp_path, records=28))
    end = time.monotonic() + 60
    while "DATA_VALIDATED" not in launched.log.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    launched.process.send_signal(signal.SIGTERM)
    assert launched.ends() == ExitCode.STOPPED


def test_processes_of_one_machine_meet_at_a_socket_that_is_open_already() -> None:
    nodes = Nodes(devices_each=2)
    first = launcher.environment_of(nodes.place(0), {"HOME": "/"}, port=4711, listen=5)
    second = launcher.environment_of(nodes.place(1), {"HOME": "/"}, port=4711, listen=5)
    assert first[LISTEN_VARIABLE] == "5"
    assert LISTEN_VARIABLE not in second
    assert (second["RANK"], second["WORLD_SIZE"], second["LOCAL_RANK"], second["HOME"]) == ("1", "2", "1", "/")
    assert (second["MASTER_ADDR"], second["MASTER_PORT"]) == ("127.0.0.1", "4711")


def test_processes_of_several_machines_meet_at_the_first_one() -> None:
    given = {"PET_MASTER_ADDR": "run-1-0.finetune-x", "PET_MASTER_PORT": "9402"}
    place = Nodes(count=2, devices_each=4, index=1).place(2)
    told = launcher.environment_of(place, given, port=None, listen=None)
    assert (told["RANK"], told["WORLD_SIZE"], told["LOCAL_RANK"], told["LOCAL_WORLD_SIZE"]) == ("6", "8", "2", "4")
    assert (told["MASTER_ADDR"], told["MASTER_PORT"]) == ("run-1-0.finetune-x", "9402")
