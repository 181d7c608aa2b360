"""What a run without a cluster shows: its events as they come, a line of progress, in the end what `kubectl get` would.

It must never be read by a program: that is what the record and the output's files are for.
"""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TextIO

from finetune_api import crd
from finetune_api.snapshot import EventType
from finetune_api.status import RunEvent
from finetune_operator import progress
from finetune_operator.children import parse_time
from finetune_operator.run import Run

_BAR = 24
_PLAIN_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""


class Console:
    """Writes to one stream; rewrites the last line if that is a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._told: dict[int, str] = {}
        self._drawn = False
        self._progress_time = -_PLAIN_SECONDS

    def say(self, text: str) -> None:
        """A line."""
        self._clear()
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def show(self, run: Run) -> None:
        """What of the run's history wasn't shown yet."""
        for event in run.status.events:
            if self._told.get(event.sequence) == event.message:
                continue
            self._told[event.sequence] = event.message
            if event.type != EventType.TRAIN_UPDATED:
                self.say(line(event))
            else:
                self._draw(run, event)

    def _draw(self, run: Run, event: RunEvent) -> None:
        if not self._stream.isatty():
            if time.monotonic() - self._progress_time >= _PLAIN_SECONDS:
                self._progress_time = time.monotonic()
                self.say(line(event))
            return
        percent = run.status.progress.percent if run.status.progress else 0
        done = "#" * (percent * _BAR // 100)
        self._clear()
        self._stream.write(f"[{done:.<{_BAR}}] {percent:3}% {event.message}")
        self._stream.flush()
        self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            self._stream.write("\r\033[K")
            self._drawn = False


def line(event: RunEvent) -> str:
    """An event as it is shown."""
    return f"{event.time.astimezone():%H:%M:%S}  {event.type:<17} {event.message}"


def table(body: Mapping[str, Any], *, now: datetime) -> str:
    """The run as `kubectl get ftr` prints it."""
    columns = [column for column in crd.COLUMNS if not column.get("priority")]
    heads = ["NAME", *(column["name"].upper() for column in columns)]
    cells = [body["metadata"]["name"], *(_cell(body, column, now) for column in columns)]
    widths = [max(len(head), len(cell)) + 3 for head, cell in zip(heads, cells, strict=True)]
    rows = ("".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in (heads, cells))
    return "\n".join(row.rstrip() for row in rows)


def _cell(body: Mapping[str, Any], column: Mapping[str, Any], now: datetime) -> str:
    value: Any = body
    for part in column["jsonPath"].strip(".").split("."):
        value = (value or {}).get(part)
    if column["type"] == "date":
        then = parse_time(value)
        return progress.eta_text(round((now - then).total_seconds())) if then else ""
    return "" if value is None else str(value)
