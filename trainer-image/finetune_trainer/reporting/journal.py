"""The log: one JSON object a line on stdout. A slow or closed stdout must never block or end a training.

Lines go through a bounded queue to a thread of their own; when it is full, they are dropped and counted.
"""

import json
import logging
import queue
import sys
import threading
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

QUEUED_LINES = 10_000


class Journal(logging.Handler):
    """A logging handler that never blocks."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__()
        self._stream = stream or sys.stdout
        self._lines: queue.Queue[str | None] = queue.Queue(QUEUED_LINES)
        self._dropped = 0
        self._writer = threading.Thread(target=self._write_all, name="journal", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record."""
        try:
            self._lines.put_nowait(_as_json(record))
        except queue.Full:
            self._dropped += 1

    def drain(self, timeout: float = 5.0) -> None:
        """Write what is queued, or give up after `timeout` seconds."""
        try:
            self._lines.put(None, timeout=timeout)
        except queue.Full:
            return
        self._writer.join(timeout)

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            dropped, self._dropped = self._dropped, 0
            note = json.dumps({"level": "warning", "event": "log_dropped", "lines": dropped}) + "\n" if dropped else ""
            try:
                self._stream.write(note + line + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # nobody reads any more: the training goes on without a log
                return


def open_journal(*, quiet: bool = False) -> Journal:
    """Send everything that is logged, by libraries too, to stdout as JSON. If `quiet`, only what is wrong."""
    journal = Journal()
    logging.basicConfig(level=logging.WARNING, handlers=[journal], force=True)
    logging.getLogger("finetune_trainer").setLevel(logging.WARNING if quiet else logging.INFO)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels that nobody asked for
    logging.captureWarnings(True)
    warnings.simplefilter("ignore", FutureWarning)  # what a library's next version changes is for its callers' authors
    return journal


def event(logger: logging.Logger, name: str, message: str, /, level: int = logging.INFO, **fields: object) -> None:
    """Log one event with its fields."""
    logger.log(level, message, extra={"event": name, "fields": fields})


def _as_json(record: logging.LogRecord) -> str:
    fields: Mapping[str, Any] = getattr(record, "fields", {})
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "event": getattr(record, "event", record.name),
        "message": record.getMessage(),
        **fields,
    }
    if record.exc_info:
        line["traceback"] = logging.Formatter().formatException(record.exc_info)
    return json.dumps(line, ensure_ascii=False, default=str)
