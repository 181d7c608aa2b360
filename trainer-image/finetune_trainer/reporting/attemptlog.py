"""The log in the run's volume: a file an attempt, so that what an earlier one said is there when its pod is gone.

Bounded: a file that is full becomes `.older`, in place of the one before; of attempts only the newest stay.
"""

import contextlib
import re
from pathlib import Path

from finetune_trainer.reporting.appending import Appending

FOLDER = "logs"
LARGEST = 8 * 1024 * 1024
"""Bytes of a file."""
KEPT = 20
"""Attempts of which there are files."""
_NAME = re.compile(r"attempt-(\d+)(-rank-\d+)?\.(older\.)?log")


class AttemptLog:
    """The file of one process of an attempt."""

    def __init__(self, run_path: Path, *, attempt: int, rank: int = 0, largest: int = LARGEST) -> None:
        self.folder = run_path / FOLDER
        self._largest = largest
        self._name = f"attempt-{attempt}" + (f"-rank-{rank}" if rank else "")
        self._file = Appending(self.folder / f"{self._name}.log", what="the log in the run's volume")
        if rank == 0:
            _forget(self.folder, up_to=attempt - KEPT)

    @property
    def path(self) -> Path:
        """Where the newest lines are."""
        return self._file.path

    def add(self, line: str) -> None:
        """Append a line."""
        try:
            if self.path.stat().st_size > self._largest:
                self.path.replace(self.folder / f"{self._name}.older.log")
        except FileNotFoundError:
            pass
        except OSError as error:
            self._file.failed(error)
            return
        self._file.add(line.encode() + b"\n")


def _forget(folder: Path, *, up_to: int) -> None:
    """Remove the files of attempts up to this one."""
    with contextlib.suppress(OSError):  # what can't be removed stays: there is room for it
        for path in list(folder.iterdir()):
            found = _NAME.fullmatch(path.name)
            if found is not None and int(found[1]) <= up_to:
                path.unlink()
