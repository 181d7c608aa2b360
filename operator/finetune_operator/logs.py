"""How log records are written: text on a terminal, one JSON object a line elsewhere. Called once, by __main__."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

from finetune_operator.settings import LogFormat

_QUIET = {"kopf": logging.WARNING, "asyncio": logging.WARNING, "aiohttp": logging.WARNING, "kubernetes": logging.ERROR}
"""Libraries, and from which level on they are heard."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure(format: LogFormat, *, stream: TextIO = sys.stderr) -> None:  # noqa: A002 - the setting's own name
    """Send every record to `stream`."""
    text = format == LogFormat.TEXT or (format == LogFormat.AUTO and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s") if text else JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
