"""What a Lease's record means to one who wants it, and the times that follow from its length. Pure; see `lease`."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_LONGEST_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Times:
    """Everything that follows from how long the lease is, in seconds."""

    lease: float

    @property
    def deadline(self) -> float:
        """Without a renewal for so long, the holder stops."""
        return self.lease * 2 / 3

    @property
    def retry(self) -> float:
        """Between two renewals, and between two looks of one who waits."""
        return min(self.lease / 6, _LONGEST_SECONDS)

    @property
    def request(self) -> float:
        """Longest request about the lease: two fit into the deadline."""
        return min(self.lease / 4, _LONGEST_SECONDS)

    @property
    def delivery(self) -> float:
        """Longest way of a request to the API server."""
        return self.lease / 12

    @property
    def writes(self) -> float:
        """When the last write under the lease has to be over; the rest is for clocks that run unevenly."""
        return self.lease * 11 / 12


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the Lease says. `renewed` is compared and never read as a time."""

    holder: str
    seconds: float
    renewed: str
    transitions: int
    version: str

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> "Record":
        """From a Lease."""
        spec = body.get("spec") or {}
        return cls(
            holder=spec.get("holderIdentity") or "",
            seconds=float(spec.get("leaseDurationSeconds") or 0),
            renewed=spec.get("renewTime") or "",
            transitions=int(spec.get("leaseTransitions") or 0),
            version=body["metadata"]["resourceVersion"],
        )

    @property
    def is_released(self) -> bool:
        """Whether its last holder has left in order."""
        return not self.holder and not self.renewed


class Sight(enum.Enum):
    """What a look at the lease tells one who wants it."""

    MINE = "mine"
    """A write of ours went through after all."""
    FREE = "free"
    HELD = "held"


class Watcher:
    """When another's lease has run out, by our own clock. Pure: told what was seen, and when."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._record: Record | None = None
        self._since = 0.0
        self._written: set[str] = set()

    def wrote(self, renewed: str) -> None:
        """We are about to write this `renewTime`, and may never hear of it."""
        self._written.add(renewed)

    def see(self, record: Record | None, *, now: float) -> Sight:
        """The lease as it is, None if there is none."""
        if record is None:
            return Sight.FREE if self._ends() <= now else Sight.HELD
        if record.holder == self._identity and record.renewed in self._written:
            return Sight.MINE
        if record != self._record:
            self._record, self._since = record, now
        return Sight.FREE if record.is_released or self._ends() <= now else Sight.HELD

    def wait(self, *, now: float) -> float:
        """Seconds until it runs out, if nothing changes."""
        return max(self._ends() - now, 0.0)

    def _ends(self) -> float:
        return 0.0 if self._record is None else self._since + self._record.seconds
