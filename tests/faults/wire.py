"""What goes over the wire between operator and API server, by names that stay the same from run to run. Pure.

A request is named after its verb, its kind of object and what it says, not after a number: `POST-jobs`,
`LIST-pods-fresh`, `PATCH-status-Running-STARTED`. The second of a name is `NAME#2`. A plan that names a request this
way still means the same one after an unrelated write was added before it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from finetune_api.types import PLURAL
from finetune_operator.names import RUN_LABEL
from tests.cluster.stage import IN_PLACE

WRITES = ("POST", "PUT", "PATCH", "DELETE")
PATH = re.compile(
    r"/(?:api/v1|apis/[^/]+/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)"
    r"(?:/(?P<name>[^/]+)(?:/(?P<subresource>.+))?)?"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One request as it was received."""

    verb: str
    path: str
    query: Mapping[str, str] = dataclasses.field(default_factory=dict)
    agent: str = ""
    body: Any = None

    @property
    def is_write(self) -> bool:
        """Whether it may change something."""
        return self.verb in WRITES

    @property
    def is_watch(self) -> bool:
        """Whether it asks for a stream."""
        return self.query.get("watch") in ("true", "1")

    @property
    def resource(self) -> str:
        """The kind of object, as in its path."""
        found = PATH.fullmatch(self.path)
        return found["resource"] if found else self.path.strip("/").replace("/", ".")

    @property
    def label(self) -> str:
        """What it is called."""
        found = PATH.fullmatch(self.path)
        if found is None:
            return f"{self.verb}-{self.path.strip('/').replace('/', '.')}"
        if found["subresource"] and found["subresource"].startswith("proxy"):
            return "GET-progress"
        if self.verb == "GET":
            return self._read(found)
        if self.verb == "POST" and found["resource"] == "events":
            return f"POST-events-{(self.body or {}).get('reason', '')}"
        if self.verb == "PATCH" and found["subresource"] == "status":
            return f"PATCH-status-{_status_name((self.body or {}).get('status', {}))}"
        return f"{self.verb}-{found['resource']}" + (f"-{found['subresource']}" if found["subresource"] else "")

    def _read(self, found: re.Match[str]) -> str:
        if self.is_watch:
            return f"WATCH-{found['resource']}"
        if found["name"]:
            return f"GET-{found['resource']}"
        if RUN_LABEL in self.query.get("labelSelector", ""):
            return f"LIST-{found['resource']}-fresh"
        if found["resource"] == "events":
            return "LIST-events"
        return f"LIST-{found['resource']}-{'kopf' if 'kopf' in self.agent.lower() else 'resync'}"


def _status_name(status: Mapping[str, Any]) -> str:
    """Phase, last milestone and attempt of what is written; the attempt only after the first."""
    milestones = [event["type"] for event in status.get("events") or () if event["type"] not in IN_PLACE]
    attempt = status.get("attempt") or 0
    last = milestones[-1] if milestones else "none"
    return f"{status.get('phase')}-{last}" + (f"-a{attempt}" if attempt > 1 else "")


@dataclasses.dataclass(kw_only=True)
class Exchange:
    """A request, and what became of it."""

    number: int
    request: Request
    label: str
    """The request's name with its count."""
    at: float
    write: int | None = None
    """Its number among the writes."""
    code: int | None = None
    """What the API server answered; None if it never got there or the operator went first."""
    fault: str = ""
    """What was done to it."""


def counted(label: str, count: int) -> str:
    """A name with its count: the first goes without."""
    return label if count == 1 else f"{label}#{count}"


def event_label(resource: str, kind: str) -> str:
    """The name of a line of a watch."""
    return f"EVENT-{resource}-{kind}"


def refusal(code: int, *, verb: str) -> bytes:
    """The API server's Status object for a code."""
    reasons = {
        403: "Forbidden",
        404: "NotFound",
        409: "AlreadyExists" if verb == "POST" else "Conflict",
        410: "Expired",
        422: "Invalid",
        429: "TooManyRequests",
        500: "InternalError",
        503: "ServiceUnavailable",
    }
    said = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code}
    return json.dumps(said | {"reason": reasons.get(code, ""), "message": f"injected {code}"}).encode()


def error_line(code: int) -> bytes:
    """The line with which a watch ends in an error."""
    return json.dumps({"type": "ERROR", "object": json.loads(refusal(code, verb="GET"))}).encode() + b"\n"


assert PLURAL.isalpha(), "PATH takes the plural for a path segment of letters"
