"""What TensorBoard itself reads of a run that was killed and went on: the figures of its history, each step once."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune_api.snapshot import ExitCode
from finetune_trainer.reporting.progress import Evaluated, Step
from finetune_trainer.reporting.tensorboard import Events
from tests import ports, trainer_process
from tests.trainer_builders import configuration, merged, parsed

TAGS = {"loss": "train/loss", "learningRate": "train/learning_rate", "gradNorm": "train/grad_norm"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose first attempt was killed some steps after a save."""
    folder = tmp_path_factory.mktemp("tensorboard")
    evaluated = {"eval": {"uri": "pvc://datasets/train.jsonl", "path": str(folder / "train.jsonl")}}
    changes = {"tensorBoard": True, "dataset": evaluated, "training": {"evaluationInterval": "3ba"}}
    config = configuration(folder, merged(changes, {"checkpoint": {"interval": "4ba"}}))
    first = trainer_process.start(config)
    first.until("TRAIN_UPDATED", times=7)
    first.signal(signal.SIGKILL)
    first.wait()
    second = trainer_process.run(merged(config, {"run": {"attempt": 2}}))
    assert second.process.exitcode == ExitCode.DONE, second.log.read_text()
    return folder / "run"


def test_tensorboards_own_reader_finds_each_step_of_the_history_once(run: Path) -> None:
    files = sorted((run / "tensorboard" / "support-bot").iterdir())
    assert len(files) in {1, 2}, "the first attempt may have been killed before its thread wrote"
    found = EventAccumulator(str(files[0].parent), size_guidance={"scalars": 0})
    found.Reload()
    steps = _lines(run / "training_logs" / "metrics.jsonl")
    assert len(steps) == 12
    for name, tag in TAGS.items():
        shown = {event.step: event.value for event in found.Scalars(tag)}
        assert len(found.Scalars(tag)) == len(shown)
        assert {step["step"]: float(np.float32(step[name])) for step in steps if step["step"] in shown} == shown
        assert set(shown) >= {step["step"] for step in steps[-8:]}, "what the last attempt did"
    evaluations = _lines(run / "training_logs" / "evaluations.jsonl")
    shown = {event.step: event.value for event in found.Scalars("eval/loss")}
    assert shown[12] == float(np.float32(evaluations[-1]["evalLoss"]))


def test_the_real_server_shows_the_figures_the_settings_and_the_hyperparameters(run: Path) -> None:
    with served(run / "tensorboard") as server:
        assert get(f"{server}/data/runs") == ["support-bot"]
        points = get(f"{server}/data/plugin/scalars/scalars?run=support-bot&tag=train%2Floss")
        steps = {step["step"]: float(np.float32(step["loss"])) for step in _lines(run / "training_logs/metrics.jsonl")}
        shown = {step: value for _, step, value in points}
        assert len(points) == len(shown) >= 8
        assert shown == pytest.approx({step: steps[step] for step in shown})
        assert get(f"{server}/data/plugin/text/tags") == {"support-bot": ["run"]}
        told = get(f"{server}/data/plugin/text/text?run=support-bot&tag=run")
        assert "pvc://models/tiny" in told[-1]["text"]
        asked = {
            "experimentName": "",
            "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_RUNNING", "STATUS_SUCCESS"],
            "colParams": [],
            "startIndex": 0,
            "sliceSize": 10,
        }
        (group,) = get(f"{server}/data/plugin/hparams/session_groups", asked)["sessionGroups"]
        assert group["hparams"]["training.learningRate"] == 0.003
        assert group["hparams"]["method.type"] == "LoRA"


def test_a_node_whose_clock_is_behind_writes_what_is_read_last(tmp_path: Path) -> None:
    config = parsed(tmp_path)
    folder = tmp_path / "run" / "tensorboard" / "support-bot"
    folder.mkdir(parents=True)
    (folder / "events.out.tfevents.9000000000.elsewhere").write_bytes(b"")
    _write(config, steps=1)
    assert sorted(path.name for path in folder.iterdir())[1] == "events.out.tfevents.9000000001.finetune"


def test_a_full_volume_loses_what_comes_until_there_is_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "run" / "tensorboard" / "support-bot"
    folder.parent.mkdir(parents=True)
    folder.write_text("a file where the folder should be")
    events = Events(parsed(tmp_path), steps_done=0)
    for number in (1, 2):
        events.step(_step(number))
    _until(lambda: "can't be written" in caplog.text)
    _until(lambda: events._file.lost == 2)
    folder.unlink()
    events.step(_step(3))
    events.evaluated(Evaluated(step=3, epoch=1, loss=math.nan, records=1, seconds=1))
    events.close()
    found = EventAccumulator(str(folder))
    found.Reload()
    assert [event.step for event in found.Scalars("train/loss")] == [3]
    assert math.isnan(found.Scalars("eval/loss")[0].value)
    assert found.Tensors("run"), "a file begins as it should, however late"
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "what TensorBoard shows can't be written, the training goes on without",
        "what TensorBoard shows can be written again; 2 records were lost",
    ]


def test_a_name_that_leads_elsewhere_does_not(tmp_path: Path) -> None:
    _write(parsed(tmp_path, {"run": {"name": "../../x"}}), steps=1)
    assert [path.name for path in (tmp_path / "run" / "tensorboard").iterdir()] == ["_.._x"]


def test_a_step_does_not_wait_for_it(tmp_path: Path) -> None:
    """Even where the volume hangs: a pipe that nobody reads stands for it."""
    events = Events(parsed(tmp_path), steps_done=0)
    events._file.path.parent.mkdir(parents=True)
    os.mkfifo(events._file.path)
    took = []
    for number in range(1, 201):
        started = time.thread_time()
        events.step(_step(number))
        took.append(time.thread_time() - started)
    assert sorted(took)[100] < 0.001
    reader = os.open(events._file.path, os.O_RDONLY | os.O_NONBLOCK)  # lets the thread go
    events.close()
    os.close(reader)


def _write(config: Any, *, steps: int) -> None:
    events = Events(config, steps_done=0)
    for number in range(steps):
        events.step(_step(number + 1))
    events.close()


def _step(number: int) -> Step:
    return Step(number=number, epoch=1, loss=1.5, grad_norm=0.1, learning_rate=0.01, tokens=100, records=4, seconds=0.5)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a TensorBoard that shows a folder."""
    port = ports.free()
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={folder}", f"--port={port}", "--host=127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        _until(lambda: get(f"{address}/data/runs") == ["support-bot"], seconds=90)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


def get(url: str, asked: Mapping[str, Any] | None = None) -> Any:
    """What is answered there; None if nobody does."""
    body = None if asked is None else json.dumps(asked).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError:
        raise
    except OSError:
        return None


def _until(true: Any, *, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
