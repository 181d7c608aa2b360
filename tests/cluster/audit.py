"""The API server's audit log as a test reads it: every request since a mark, who made it and what came of it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_CHUNK = 65536
WRITES = ("create", "update", "patch", "delete", "deletecollection")


@dataclasses.dataclass(frozen=True)
class AuditLog:
    """An audit log that grows while it is read."""

    path: Path

    def mark(self) -> int:
        """The place where its last whole record ends now: the API server may be in the middle of the next."""
        with self.path.open("rb") as file:
            place = file.seek(0, os.SEEK_END)
            while place > 0:
                start = max(0, place - _CHUNK)
                file.seek(start)
                newline = file.read(place - start).rfind(b"\n")
                if newline >= 0:
                    return start + newline + 1
                place = start
        return 0

    def since(self, mark: int = 0) -> Sequence[Mapping[str, Any]]:
        """Every whole record after the mark, oldest first."""
        with self.path.open("rb") as file:
            file.seek(mark)
            lines = file.read().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]

    def writes(self, mark: int = 0, *, user: str, namespace: str | None = None) -> Sequence[Mapping[str, Any]]:
        """What a user has written; Kubernetes' own readers and heartbeats aren't in the log at all."""
        records = (record for record in self.since(mark) if record["verb"] in WRITES)
        return [
            record
            for record in records
            if record["user"]["username"] == user
            and (namespace is None or record.get("objectRef", {}).get("namespace") == namespace)
        ]
