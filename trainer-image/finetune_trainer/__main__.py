"""The trainer as a program. Takes SIGTERM before it imports anything that takes time: a stop always ends in code 75."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

STOPPED, BAD_CONFIG = 75, 64
"""As ExitCode has them, which isn't imported yet."""


def main(arguments: Sequence[str] = ()) -> int:
    """Train as the configuration says; the exit code tells how it went."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(STOPPED))
    given = _configuration(arguments)
    if _starts_processes():
        from finetune_trainer import launcher

        return launcher.main(arguments)
    from finetune_trainer import attempt

    return attempt.main(given)


def _starts_processes() -> bool:
    """Whether there is to be a process for each of several devices here, and this is none of them yet."""
    return "RANK" not in os.environ and os.environ.get("PET_NPROC_PER_NODE", "1") not in ("", "1")


def _configuration(arguments: Sequence[str]) -> str | None:
    """The configuration from a file, if one is named."""
    parser = argparse.ArgumentParser(
        "python -m finetune_trainer",
        description="Fine-tunes a language model and writes checkpoints and the result to the run's folder."
        " Exit codes: 0 done, 64 bad configuration, 65 bad data, 66 model or data not found, 69 hub unreachable,"
        " 73 storage full, 75 stopped on request, 77 no permission, 78 diverged, 137 out of memory.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="JSON configuration; else FINETUNE_CONFIG holds it")
    file: Path | None = parser.parse_args(arguments).config
    try:
        return None if file is None else file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"--config {file} can't be read: {error}", file=sys.stderr)  # noqa: T201 - for a terminal
        sys.exit(BAD_CONFIG)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
