"""Any command under the wrapper: real processes, what is told of them, and how they end."""

import ast
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_api import wrapper
from finetune_api.snapshot import LAST_WORD_LIMIT, EventType, Snapshot
from tests import impatience, ports

FILE = Path(wrapper.__file__)
CONFIG = {"run": {"uid": "7f1c", "attempt": 2}, "training": {"maxDuration": "10ba"}}


@dataclass
class Wrapped:
    """A command under the wrapper."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    port: int

    def end(self, timeout: float = 30) -> int:
        return self.process.wait(timeout)

    def snapshot(self) -> Snapshot:
        return Snapshot.decode(self.get("/progress"))

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            found: bytes = answer.read()
            return found

    def last_word(self) -> Snapshot:
        return Snapshot.decode((self.folder / "last-word").read_bytes(), limit=LAST_WORD_LIMIT)

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "log").read_bytes().splitlines()]

    def output(self) -> str:
        return "".join(line["message"] + "\n" for line in self.log() if line["event"] == "OUTPUT")

    def until(self, event: str, text: str = "", timeout: float = 20) -> None:
        deadline = time.monotonic() + timeout
        while not any(line["event"] == event and text in line["message"] for line in self.log()):
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)


@pytest.fixture
def wrap(tmp_path: Path) -> Iterator[Any]:
    """Starts a command; the wrapper is a lone file for an isolated interpreter, as in a foreign image."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str, config: object = CONFIG, **variables: str) -> Wrapped:
        port = ports.free()
        (tmp_path / "wrapper.py").write_bytes(FILE.read_bytes())
        given = json.dumps(config | {"runPath": str(tmp_path / "run")}) if isinstance(config, dict) else str(config)
        environment = {
            "PATH": os.environ["PATH"],
            "FINETUNE_CONFIG": given,
            "FINETUNE_PROGRESS_FILE": str(tmp_path / "progress"),
            "FINETUNE_TERMINATION_LOG": str(tmp_path / "last-word"),
            "FINETUNE_BIND_ADDRESS": "127.0.0.1",
            "FINETUNE_PORT": str(port),
            **variables,
        }
        argv = [sys.executable, "-I", "-S", str(tmp_path / "wrapper.py"), "--", *command]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen(argv, env=environment, stdout=log, stderr=subprocess.STDOUT)
        started.append(process)
        return Wrapped(process, tmp_path, port)

    yield start
    for process in started:  # asked first: it ends what it has started, and a kill would leave that behind
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()


def python(source: str) -> Sequence[str]:
    return (sys.executable, "-I", "-S", "-u", "-c", "import os, sys, time, json, signal\n" + source)


def sh(source: str) -> Sequence[str]:
    return ("sh", "-c", source)


def test_it_is_one_file_for_python_3_8_and_needs_nothing_but_the_standard_library() -> None:
    tree = ast.parse(FILE.read_text(), feature_version=(3, 8))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported <= set(sys.stdlib_module_names)
    assert len(FILE.read_bytes()) < 64 * 1024, "it goes into each pod as an annotation"


def test_lines_of_iteration_loss_and_throughput_become_progress(wrap: Any, gate: Path) -> None:
    lines = "iteration|loss|throughput\\n1|2.5|1650.5\\n 2 | 1.25 | 1625\\n"
    run = wrap(*sh(f"printf '{lines}' > $FINETUNE_PROGRESS_FILE; while [ ! -e {gate} ]; do sleep 0.05; done"))
    run.until("TRAIN_UPDATED", "iteration 2")
    told = run.snapshot()
    assert (told.run_uid, told.attempt) == ("7f1c", 2)
    assert told.progress is not None
    progress = told.progress
    assert (progress.batch, progress.total_batches, progress.loss) == (2, 10, 1.25)
    assert progress.tokens_per_second_per_device == 1625
    assert progress.last_step_time is not None
    assert b"finetune_trainer_loss 1.25" in run.get("/metrics")
    assert run.get("/healthz") == b"ok\n"
    gate.touch()
    assert run.end() == 0
    assert [m.type for m in run.last_word().milestones] == [EventType.TRAIN_FINISHED]
    assert run.last_word().progress == progress.model_copy(
        update={"cpu_utilization": run.last_word().progress.cpu_utilization}
    )


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file for which a command waits."""
    return tmp_path / "gate"


def test_lines_of_json_tell_more(wrap: Any) -> None:
    lines = [
        {"event": "DATA_VALIDATED", "message": "1,000 images"},
        {"epoch": 1, "totalEpochs": 3, "iteration": 4, "totalIterations": 12, "loss": 0.5, "evalLoss": 0.7,
         "learningRate": 0.001, "gradNorm": 1.5, "tokens": 400, "throughput": 99.5, "mine": "is left alone"},
        {"checkpoint": "ep1-ba4", "step": 4},
        {"output": "output/model"},
    ]  # fmt: skip
    source = f"""
os.makedirs(os.environ["FINETUNE_CHECKPOINTS"] + "/ep1-ba4")
open(os.environ["FINETUNE_CHECKPOINTS"] + "/ep1-ba4/model.pt", "wb").write(b"12345")
with open(os.environ["FINETUNE_PROGRESS_FILE"], "w") as file:
    file.write({chr(10).join(map(json.dumps, lines))!r})
"""
    run = wrap(*python(source))
    assert run.end() == 0
    word = run.last_word()
    first = word.milestones[0]
    assert (first.type, first.message) == (EventType.DATA_VALIDATED, "1,000 images")
    assert word.progress is not None
    said = word.progress
    assert (said.epoch, said.total_epochs, said.batch, said.total_batches, said.tokens) == (1, 3, 4, 12, 400)
    assert (said.loss, said.eval_loss, said.learning_rate, said.grad_norm) == (0.5, 0.7, 0.001, 1.5)
    assert [(c.name, c.step, c.size_bytes, c.path) for c in word.checkpoints] == [
        ("ep1-ba4", 4, 5, "checkpoints/ep1-ba4")
    ]
    assert word.output is not None
    assert word.output.path == "output/model"


def test_a_retried_command_finds_its_checkpoints_its_attempt_and_its_data(wrap: Any, tmp_path: Path) -> None:
    config = CONFIG | {"dataset": {"train": {"uri": "pvc://d/x", "path": "/mnt/data/x"}}}
    run = wrap(*sh("echo $FINETUNE_CHECKPOINTS $FINETUNE_OUTPUT $FINETUNE_TRAIN_PATH"), config=config)
    assert run.end() == 0
    assert run.output().split() == [f"{tmp_path}/run/checkpoints", f"{tmp_path}/run/output", "/mnt/data/x"]
    assert (tmp_path / "run" / "checkpoints").is_dir()


def test_what_stands_in_the_file_never_ends_a_training(wrap: Any) -> None:
    source = """
path = os.environ["FINETUNE_PROGRESS_FILE"]
with open(path, "wb") as file:
    file.write(b"\\xff\\x00garbage\\n|||\\n1|x|2\\n-3|1|1\\n1e999|1|1\\n{\\n[1]\\n")
    file.write(b"{\\"loss\\": []}\\n{\\"event\\": 7}\\n")
    file.write(b"[" * 70000 + b"\\n" + b"{" + b"[" * 60000 + b"\\n")
    file.write(b"x" * 3_000_000 + b"\\n3|0.5|10\\n{\\"checkpoint\\": \\"../../etc\\"}\\n4|0.25|11")
"""
    run = wrap(*python(source.replace("\\\\", "\\")))
    assert run.end() == 0, run.log()
    word = run.last_word()
    assert word.progress is not None
    assert (word.progress.batch, word.progress.loss) == (4, 0.25), "a last line that nothing ends counts too"
    assert [trouble.reason for trouble in word.troubles] == ["ProgressUnreadable"]
    assert sum(line["event"] == "BAD_PROGRESS_LINE" for line in run.log()) == 1


def test_a_loss_that_is_no_number_is_a_trouble_until_it_is_one(wrap: Any) -> None:
    run = wrap(*sh("printf '1|nan|5\\n' > $FINETUNE_PROGRESS_FILE"))
    assert run.end() == 0
    word = run.last_word()
    assert word.progress is not None
    assert word.progress.loss is None
    assert [trouble.reason for trouble in word.troubles] == ["LossNotFinite"]


@pytest.mark.parametrize("kind", ["cut", "replaced"])
def test_a_file_that_is_written_anew_is_read_anew(wrap: Any, gate: Path, kind: str) -> None:
    again = "> $FINETUNE_PROGRESS_FILE"
    if kind == "replaced":
        again += ".2; mv $FINETUNE_PROGRESS_FILE.2 $FINETUNE_PROGRESS_FILE"
    run = wrap(
        *sh(
            "printf '1|2|3\\n2|2|3\\n3|2|3\\n' > $FINETUNE_PROGRESS_FILE;"
            f" while [ ! -e {gate} ]; do sleep 0.05; done; printf '9|1|3\\n' {again}"
        )
    )
    run.until("TRAIN_UPDATED", "iteration 3")
    gate.touch()
    assert run.end() == 0
    assert run.last_word().progress is not None
    assert run.last_word().progress.batch == 9


@pytest.mark.parametrize("what", ["nothing", "a folder", "a pipe"])
def test_without_a_file_there_is_no_progress_and_no_harm(wrap: Any, tmp_path: Path, what: str) -> None:
    if what == "a folder":
        (tmp_path / "progress").mkdir()
    elif what == "a pipe":
        os.mkfifo(tmp_path / "progress")
    run = wrap(*sh("echo done"))
    assert run.end() == 0
    assert run.last_word().progress is None
    assert run.last_word().error is None


@pytest.mark.parametrize(
    ("command", "code", "reason", "said"),
    [
        pytest.param(sh("exit 0"), 0, "", "", id="it ends well"),
        pytest.param(sh("exit 65"), 65, "DataInvalid", "ended with exit code 65", id="a code of the protocol"),
        pytest.param(sh("exit 78"), 78, "Diverged", "ended with exit code 78", id="another"),
        pytest.param(sh("echo no luck >&2; exit 3"), 3, "CommandFailed", "stderr: no luck", id="any other code"),
        pytest.param(python("1 / 0"), 1, "CommandFailed", "ZeroDivisionError: division by zero", id="a traceback"),
        pytest.param(sh("kill -9 $$"), 137, "Killed", "was killed by signal 9", id="killed"),
        pytest.param(sh("kill -SEGV $$"), 139, "CommandFailed", "was killed by signal 11", id="crashed"),
        pytest.param(("no-such-program",), 64, "ConfigInvalid", "trainer.command can't be started", id="not there"),
        pytest.param(("/",), 64, "ConfigInvalid", "trainer.command can't be started", id="no program"),
    ],
)
def test_how_it_ended(wrap: Any, command: Sequence[str], code: int, reason: str, said: str) -> None:
    run = wrap(*command)
    assert run.end() == code
    error = run.last_word().error
    assert (error.reason if error else "") == reason
    assert said in (error.message if error else "")
    assert error is None or error.exit_code == code


STOPPABLE = """
def stop(*_):
    {act}
signal.signal(signal.SIGTERM, stop)
print("ready")
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize(
    ("act", "code"),
    [
        pytest.param("sys.exit(75)", 75, id="by the protocol"),
        pytest.param("sys.exit(0)", 75, id="with 0, which doesn't say that the training was over"),
        pytest.param("sys.exit(1)", 75, id="with an error, since it was asked to end"),
        pytest.param("sys.exit(65)", 65, id="with a code that is final"),
        pytest.param("signal.signal(15, signal.SIG_DFL); os.kill(os.getpid(), 15)", 75, id="by the signal"),
        pytest.param(
            "open(os.environ['FINETUNE_PROGRESS_FILE'], 'w').write('{\"event\": \"TRAIN_FINISHED\"}'); sys.exit(0)",
            0,
            id="at the end of the training, which it says",
        ),
    ],
)
def test_sigterm_is_handed_on_and_how_the_command_ends_decides(wrap: Any, act: str, code: int) -> None:
    run = wrap(*python(STOPPABLE.format(act=act)), FINETUNE_GRACE_SECONDS="300")
    run.until("OUTPUT", "ready")
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == code
    assert next(line for line in run.log() if line["event"] == "STOPPING")["graceSeconds"] == 300


def test_a_shell_s_child_hears_sigterm_too(wrap: Any) -> None:
    run = wrap(*sh("echo ready; sleep 100; echo survived"))
    run.until("OUTPUT", "ready")
    run.process.send_signal(signal.SIGTERM)
    assert run.end(10) == 75
    assert "survived" not in run.output()


def test_a_command_that_doesnt_end_is_killed_before_the_grace_period_is_over(wrap: Any) -> None:
    run = wrap(*python(STOPPABLE.format(act="print('no')")), FINETUNE_GRACE_SECONDS="6")
    run.until("OUTPUT", "ready")
    began = time.monotonic()
    run.process.send_signal(signal.SIGTERM)
    assert run.end(20) == 137
    assert time.monotonic() - began < 5
    error = run.last_word().error
    assert error is not None
    assert "did not end within the grace period" in error.message


def test_what_the_command_leaves_behind_is_reaped_and_ended(wrap: Any, tmp_path: Path) -> None:
    """A daemon in a session of its own, and an orphan that ends by itself while the command runs."""
    run = wrap(
        *sh(f"setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 1000' & (sh -c 'exit 3' &); sleep 0.5; ps -o stat=")
    )
    assert run.end() == 0
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


def test_whatever_it_prints_is_one_json_object_a_line(wrap: Any) -> None:
    source = r"""
sys.stdout.buffer.write(b'{"event": "COMPLETED"}\n\xff\xfe bytes \x1b[31m\n' + "ä".encode() * 9000 + b"\n")
sys.stdout.buffer.write(b"z" * 1_000_000)
"""
    run = wrap(*python(source))
    assert run.end() == 0
    said = [line for line in run.log() if line["event"] == "OUTPUT"]
    assert said[0]["message"] == '{"event": "COMPLETED"}'
    assert said[1]["message"] == "\\xff\\xfe bytes \x1b[31m"
    assert "".join(line["message"] for line in said[2:]) == "ä" * 9000 + "z" * 1_000_000
    assert max(len(line["message"]) for line in said) <= 8192


def test_the_cpu_of_the_command_and_of_all_below_it_is_told(wrap: Any) -> None:
    busy = f"{sys.executable} -I -S -c 'while True: pass'"
    run = wrap(*sh(f"printf '1|2|3\\n' > $FINETUNE_PROGRESS_FILE; {busy} & wait"))
    run.until("TRAIN_UPDATED")
    deadline = time.monotonic() + 15
    while (cpu := run.snapshot().progress.cpu_utilization) is None or cpu < 0.05:
        assert time.monotonic() < deadline, cpu
        time.sleep(0.2)
    run.process.send_signal(signal.SIGTERM)
    assert run.end() == 75


def test_a_configuration_that_cant_be_read_is_told(wrap: Any) -> None:
    assert wrap(*sh("exit 0"), config="{").end() == 64


def test_a_taken_port_doesnt_keep_it_from_training(wrap: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        run = wrap(*sh("exit 0"), FINETUNE_PORT=str(taken.getsockname()[1]))
        assert run.end() == 0
    assert any(line["event"] == "NO_PROGRESS_SERVED" for line in run.log())


def test_who_is_gone_before_the_answer_leaves_no_line(wrap: Any) -> None:
    run = wrap(*sh("echo begun; sleep 60"))
    run.until("OUTPUT", "begun")
    impatience.ask_and_go(run.port, "/progress")
    assert run.snapshot().attempt == 2
    run.process.send_signal(signal.SIGTERM)
    run.end()
    assert {line["event"] for line in run.log()} == {"OUTPUT", "STOPPING", "Stopped"}, run.log()


def test_the_last_word_stays_short(wrap: Any) -> None:
    source = """
with open(os.environ["FINETUNE_PROGRESS_FILE"], "w") as file:
    for n in range(150):
        os.makedirs(os.environ["FINETUNE_CHECKPOINTS"] + f"/ep1-ba{n}")
        file.write(json.dumps({"checkpoint": f"ep1-ba{n}", "step": n}) + "\\n")
    for kind in ("RESUMED", "DATA_VALIDATED", "MODEL_INITIALIZED", "TRAIN_FINISHED"):
        file.write(json.dumps({"event": kind, "message": "é" * 5000}) + "\\n")
"""
    run = wrap(*python(source))
    assert run.end() == 0
    assert run.last_word().checkpoints[-1].name == "ep1-ba149"
    assert len(run.last_word().milestones) == 4
