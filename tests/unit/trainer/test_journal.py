"""The trainer's log: whatever is said is a record of its own, short enough and harmless to look at; kept an attempt."""

import json
import logging
import os
import pty
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from finetune_api.snapshot import ExitCode
from finetune_trainer.reporting import attemptlog, logline
from finetune_trainer.reporting.attemptlog import AttemptLog
from tests import trainer_process
from tests.trainer_builders import configuration, merged

UGLY = {
    "escape sequences": "\x1b[2J\x1b]0;owned\x07",
    "a line of its own": 'x\n{"level": "info", "event": "COMPLETED"}\r\n',
    "DEL and C1": "\x7f\x80\x85\x9b31m",
    "line separators": "a\u2028b\u2029c",
    "text that runs backwards": "\u202eevil\u202c \u2066x\u2069 \u200f\u061c",
    "what nobody sees": "\u200b\ufeff\u2060\U000e0041",
    "half a character": "\ud800 and \udfff",
    "quotes and backslashes": '\\" \\u001b \\',
}


@pytest.mark.parametrize("text", UGLY.values(), ids=UGLY)
def test_a_record_is_one_line_in_which_everything_can_be_seen(text: str) -> None:
    (line,) = logline.as_json(_record(text))
    assert json.loads(line)["message"] == text
    assert line.isprintable()
    assert not {unicodedata.category(character) for character in line} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert all(shown.isprintable() for shown in logline.as_text(_record(text)))


@pytest.mark.parametrize("text", ["x", "\u00e4", "\U0001f600", "\x1b", "\\", '"', "\u2028"], ids=ascii)
def test_a_long_record_goes_on_in_further_lines_and_nothing_of_it_is_lost(text: str) -> None:
    lines = logline.as_json(_record(text * 2000, step=7))
    assert max(len(line.encode()) + 1 for line in lines) <= logline.LIMIT
    read = [json.loads(line) for line in lines]
    assert [line["part"] for line in read] == list(range(1, len(read) + 1))
    assert {(line["event"], line["level"]) for line in read} == {("library", "warning")}
    assert read[0]["step"] == 7
    told = "".join(line["message"] for line in read)
    assert told == text * 2000 or "lines are left out" in told


def test_of_a_record_without_end_the_middle_is_left_out() -> None:
    lines = logline.as_json(_record("begin " + "x" * 10**6 + " end"))
    assert len(lines) == logline.MOST_PARTS
    assert json.loads(lines[0])["message"].startswith("begin x")
    assert json.loads(lines[-1])["message"].endswith("x end")
    assert any("lines are left out" in line for line in lines)


def test_a_long_traceback_is_told_whole() -> None:
    def fails(depth: int) -> None:
        if depth:
            goes_on(depth - 1)
        raise ValueError("wrong")

    def goes_on(depth: int) -> None:
        fails(depth)

    with pytest.raises(ValueError, match="wrong") as caught:
        fails(40)
    error = (caught.type, caught.value, caught.tb)
    record = logging.LogRecord("library", logging.ERROR, "", 0, "failed", None, error)
    lines = [json.loads(line) for line in logline.as_json(record)]
    told = "".join(line.get("traceback", "") for line in lines)
    assert told == logging.Formatter().formatException(error)


@pytest.mark.parametrize(
    "fields",
    [{"loss": float("nan")}, {"folder": Path("/x")}, {"many": list(range(1000))}, {"deep": {"a": float("inf")}}],
    ids=["not a number", "not JSON", "too much", "deep"],
)
def test_any_field_makes_valid_json(fields: dict[str, Any]) -> None:
    for line in logline.as_json(_record("told", **fields)):
        assert len(line.encode()) < logline.LIMIT
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} isn't JSON"))


def test_arguments_that_do_not_fit_are_shown() -> None:
    record = logging.LogRecord("library", logging.INFO, "", 0, "%d of %d", (1,), None)
    assert "%d of %d" in json.loads(logline.as_json(record)[0])["message"]


SPEAKS = """
import logging, os, sys, threading, warnings
from finetune_trainer.reporting import journal
log = journal.open_journal()
stray = logging.getLogger("stray")
stray.addHandler(logging.StreamHandler())
stray.propagate = False
journal.adopt()
stray.warning("from a library with a handler of its own")
late = logging.getLogger("late")
late.addHandler(logging.StreamHandler())
late.propagate = False
late.warning("from one that came later")
warnings.warn("a warning")
print("printed\\x1b[31m")
for share in range(5):
    sys.stderr.write(f"\\rLoading: {share}")
print(file=sys.stderr)
thread = threading.Thread(target=lambda: {}["missing in a thread"])
thread.start()
thread.join()
raise RuntimeError("nobody caught this")
"""


def test_whatever_a_program_says_is_a_record() -> None:
    found = subprocess.run([sys.executable, "-c", SPEAKS], capture_output=True, text=True, check=False)
    assert found.stderr == ""
    assert found.returncode == 1
    told = [json.loads(line) for line in found.stdout.splitlines()]
    said = [(line["event"], line["level"], line["message"]) for line in told if "message" in line]
    for event, level, part in (
        ("stray", "warning", "from a library with a handler of its own"),
        ("stderr", "warning", "from one that came later"),
        ("py.warnings", "warning", "UserWarning: a warning"),
        ("stdout", "info", "printed\x1b[31m"),
        ("stderr", "warning", "Loading: 4"),
        ("uncaught", "error", "missing in a thread"),
        ("uncaught", "error", "nobody caught this"),
    ):
        assert any(line[:2] == (event, level) and part in line[2] for line in said), (event, said)
    assert not any("Loading: 3" in message for _, _, message in said)
    assert "RuntimeError: nobody caught this" in "".join(line.get("traceback", "") for line in told)


def test_a_terminal_gets_words() -> None:
    ours, theirs = pty.openpty()
    program = "import logging; from finetune_trainer.reporting import journal; log = journal.open_journal();"
    program += r"journal.event(logging.getLogger('finetune_trainer'), 'X', 'step 1: \x1b[2J loss 2.5'); log.drain()"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = os.read(ours, 4096).decode()
    assert process.wait() == 0
    os.close(ours)
    assert shown.endswith("step 1: \\u001b[2J loss 2.5\r\n")
    assert shown[2] == shown[5] == ":"


def test_the_log_of_each_attempt_stays_in_the_volume(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    first = trainer_process.run(config)
    second = trainer_process.run(merged(config, {"run": {"attempt": 2}}))
    assert (first.process.exitcode, second.process.exitcode) == (ExitCode.DONE, ExitCode.DONE)
    kept = (tmp_path / "run" / "logs" / "attempt-1.log").read_text()
    assert kept == first.log.read_text()
    assert max(map(len, kept.splitlines())) < logline.LIMIT


def test_a_log_that_can_not_be_written_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").write_text("a file where the folder should be")
    attempt = trainer_process.run(configuration(tmp_path))
    assert attempt.process.exitcode == ExitCode.DONE
    told = [line["message"] for line in attempt.events() if "the log in the run's volume" in line["message"]]
    assert len(told) == 1


def test_a_log_is_no_longer_than_two_files_and_the_oldest_attempts_go(tmp_path: Path) -> None:
    for number in range(1, attemptlog.KEPT + 3):
        AttemptLog(tmp_path, attempt=number).add("x")
    last = AttemptLog(tmp_path, attempt=attemptlog.KEPT + 3, largest=100)
    for number in range(50):
        last.add(f"line {number:04}")
    names = sorted(path.name for path in last.folder.iterdir())
    assert len(names) == attemptlog.KEPT + 1
    assert "attempt-3.log" not in names
    assert "attempt-4.log" in names
    assert last.path.read_text().endswith("line 0049\n")
    assert last.path.stat().st_size + last.path.with_name(f"{last.path.stem}.older.log").stat().st_size < 300


def _record(message: str, **fields: Any) -> logging.LogRecord:
    record = logging.LogRecord("library", logging.WARNING, "", 0, message, None, None)
    record.fields = fields
    return record
