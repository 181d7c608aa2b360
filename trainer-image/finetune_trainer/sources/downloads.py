"""Files that are fetched once: kept in a cache folder, gone on with where a download broke off, whole or not there.

Which version a file is of, its ETag and size tell; another version is fetched anew.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from finetune_trainer.errors import StorageFailed

_GIB = 1 << 30


@dataclass(frozen=True)
class Version:
    """Which state of a remote file."""

    etag: str
    size: int | None


def folder_for(uri: str) -> Path:
    """The cache folder of what lies at a URI."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune-operator" / "downloads"
    return root / hashlib.sha256(uri.encode()).hexdigest()[:24]


class Download:
    """One file on its way. It appears under its name when it is whole."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self._part = target.with_name(f".{target.name}.part")
        self._state = target.with_name(f".{target.name}.version")
        self._file: IO[bytes] | None = None

    @property
    def kept(self) -> Version | None:
        """The version of what is here, whole or in part."""
        try:
            return Version(**json.loads(self._state.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def is_whole(self) -> bool:
        """Whether all of that version is here."""
        return self.target.is_file() and self.kept is not None

    @property
    def offset(self) -> int:
        """How much of it is here in part."""
        return self._part.stat().st_size if self._part.exists() and self.kept is not None else 0

    def begin(self, version: Version, *, resume: bool) -> int:
        """Start, or go on if it is the version begun; returns where. Raises StorageFailed where there is no room."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if not (resume and version.etag and self.kept == version):
            self.forget()
            self._state.write_text(json.dumps(asdict(version)), encoding="utf-8")
        start = self.offset
        free = shutil.disk_usage(self.target.parent).free
        if version.size is not None and version.size - start > free:
            raise StorageFailed(
                f"{self.target.name} has {version.size / _GIB:.1f} GiB and {self.target.parent} only"
                f" {free / _GIB:.1f} GiB left: mount the data from a claim, or give the cache more room"
            )
        self._file = self._part.open("ab")
        return start

    def forget(self) -> None:
        """Drop what is here."""
        for path in (self._state, self._part, self.target):
            path.unlink(missing_ok=True)

    def add(self, data: bytes) -> None:
        """Append what came. Raises StorageFailed where there is no room."""
        assert self._file is not None
        try:
            self._file.write(data)
        except OSError as error:
            raise StorageFailed(f"{self.target.name} can't be written to {self.target.parent}: {error}") from error

    def pause(self) -> None:
        """Keep what is here for the next time."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self, version: Version) -> bool:
        """Give the file its name, if it is as long as it should be."""
        self.pause()
        size = self._part.stat().st_size
        if version.size is not None and size < version.size:
            return False
        if version.size is not None and size > version.size:
            self.forget()
            return False
        self._part.replace(self.target)
        return True
