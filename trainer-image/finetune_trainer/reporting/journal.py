"""The log: one JSON object a line on stdout and in the run's volume, words on a terminal. Whatever is said, by
libraries, warnings, stray prints and uncaught errors too, is a record.

A slow or closed stdout, or a full volume, must never block or end a training: lines go through bounded queues to
threads of their own; when one is full, they are dropped and counted.
"""

import contextlib
import io
import json
import logging
import sys
import threading
import warnings
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from finetune_trainer.reporting import logline
from finetune_trainer.reporting.attemptlog import AttemptLog
from finetune_trainer.reporting.background import Background

REMEMBERED = 1_000
"""Lines from before it is known where the run's folder is, or that it is this run's."""


class Journal(logging.Handler):
    """A logging handler that never blocks."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stdout
        self._lines = logline.as_text if self._stream.isatty() else logline.as_json
        self._shown = Background(self._show, name="journal")
        self._kept: Background[str] | None = None
        self._early: deque[str] = deque(maxlen=REMEMBERED)

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record."""
        for line in self._lines(record):
            self._shown.put(line)
        for line in logline.as_json(record):
            (self._early.append if self._kept is None else self._kept.put)(line)

    def keep_in(self, run_path: Path, *, attempt: int, rank: int) -> None:
        """From now on write to the run's volume too, what was said before first."""
        if self._kept is not None:
            return
        file = AttemptLog(run_path, attempt=attempt, rank=rank)

        def write(line: str, dropped: int) -> bool:
            for each in (*_note(dropped), line):
                file.add(each)
            return True

        with self.lock or contextlib.nullcontext():
            kept = Background(write, name="attempt-log")
            for line in self._early:
                kept.put(line)
            self._early.clear()
            self._kept = kept

    def drain(self, timeout: float = 5.0) -> None:
        """Write what is queued, or give up after `timeout` seconds."""
        self._shown.drain(timeout)
        if self._kept is not None:
            self._kept.drain(timeout)

    def _show(self, line: str, dropped: int) -> bool:
        try:
            self._stream.write("".join(f"{each}\n" for each in (*_note(dropped), line)))
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads any more: the training goes on without a log
            return False
        return True


class _Said(io.TextIOBase):
    """Takes the place of stdout or stderr: each line that is printed is logged."""

    encoding = "utf-8"

    def __init__(self, name: str, level: int, real: TextIO) -> None:
        self._logger, self._level, self._real = logging.getLogger(name), level, real
        self._local = threading.local()

    @property
    def buffer(self) -> Any:
        """For bytes, which go where they went before."""
        return self._real.buffer

    def fileno(self) -> int:
        """For other processes, the same."""
        return self._real.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, rest = (getattr(self._local, "begun", "") + text).split("\n")
        self._local.begun = rest.rpartition("\r")[2][-8 * logline.LIMIT :]
        for line in lines:
            shown = line.rstrip("\r").rpartition("\r")[2]  # a progress bar paints over itself
            if shown.strip():
                self._logger.log(self._level, "%s", shown)
        return len(text)


def open_journal(*, quiet: bool = False) -> Journal:
    """Make everything that is said a record of it. If `quiet`, only what is wrong."""
    with contextlib.suppress(AttributeError, ValueError):  # not a real file, as in tests
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr] # see above
    journal = Journal()
    logging.basicConfig(level=logging.WARNING, handlers=[journal], force=True)
    for name in ("finetune_trainer", "stdout"):
        logging.getLogger(name).setLevel(logging.WARNING if quiet else logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels that nobody asked for
    logging.captureWarnings(True)
    warnings.simplefilter("ignore", FutureWarning)  # what a library's next version changes is for its callers' authors

    def last(*found: Any) -> None:
        _uncaught("an error that nothing caught", found)
        journal.drain()

    sys.excepthook = last
    threading.excepthook = lambda told: _uncaught(
        f"an error that ended the thread {told.thread.name if told.thread else 'unknown'}",
        (told.exc_type, told.exc_value, told.exc_traceback),
    )
    for name, level in (("stdout", logging.INFO), ("stderr", logging.WARNING)):
        setattr(sys, name, _Said(name, level, getattr(sys, name)))
    return journal


def keep(run_path: Path, *, attempt: int, rank: int) -> None:
    """Write the log to the run's volume too, if there is a journal. The folder must be known to be this run's."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Journal):
            handler.keep_in(run_path, attempt=attempt, rank=rank)


def adopt() -> None:
    """Take the logs of libraries that write to stderr by themselves. To be called once they are imported."""
    for logger in list(logging.root.manager.loggerDict.values()):
        if not isinstance(logger, logging.Logger):
            continue
        for handler in [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]:
            logger.removeHandler(handler)
            logger.propagate = True


def event(logger: logging.Logger, name: str, message: str, /, level: int = logging.INFO, **fields: object) -> None:
    """Log one event with its fields."""
    logger.log(level, message, extra={"event": name, "fields": fields})


def _uncaught(what: str, found: Any) -> None:
    logging.getLogger("uncaught").error("%s: %s", what, found[1], exc_info=found)


def _note(dropped: int) -> list[str]:
    """What tells of lines that were dropped."""
    return [json.dumps({"level": "warning", "event": "log_dropped", "lines": dropped})] if dropped else []
