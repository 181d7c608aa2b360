"""What the operator reads of Jobs, pods and claims: raw objects parsed at the border into frozen views."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_operator import names

Body = Mapping[str, Any]
"""An object as the API server sends it."""


def parse_time(value: str | None) -> datetime | None:
    """A Kubernetes time (RFC 3339, UTC). None for the epoch, which is a node's word for `never`."""
    return datetime.fromisoformat(value) if value and not value.startswith("1970-01-01") else None


def owner_uid(body: Body) -> str | None:
    """UID of the object that controls this one."""
    owners = body["metadata"].get("ownerReferences") or ()
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One attempt."""

    name: str
    uid: str
    attempt: int
    active: int
    terminating: int
    suspended: bool
    complete: bool
    failed: bool
    reason: str
    message: str
    created: datetime | None
    started: datetime | None = None
    """When it may run; anew after each suspension by another."""
    finished: datetime | None
    deleted: bool

    @classmethod
    def parse(cls, body: Body) -> "Job":
        status = body.get("status") or {}
        conditions = {c["type"]: c for c in status.get("conditions") or () if c.get("status") == "True"}
        end = conditions.get("Complete") or conditions.get("Failed")
        return cls(
            name=body["metadata"]["name"],
            uid=body["metadata"]["uid"],
            attempt=int((body["metadata"].get("labels") or {}).get(names.ATTEMPT_LABEL, "0")),
            active=status.get("active") or 0,
            terminating=status.get("terminating") or 0,
            suspended=bool((body.get("spec") or {}).get("suspend")),
            complete="Complete" in conditions,
            failed="Failed" in conditions,
            reason=(end or {}).get("reason") or "",
            message=(end or {}).get("message") or "",
            created=parse_time(body["metadata"].get("creationTimestamp")),
            started=parse_time(status.get("startTime")),
            finished=parse_time((end or {}).get("lastTransitionTime")),
            deleted=body["metadata"].get("deletionTimestamp") is not None,
        )

    @property
    def ended(self) -> bool:
        """Whether the Job has reached its end."""
        return self.complete or self.failed


@dataclass(frozen=True, kw_only=True)
class Pod:
    """The training process."""

    name: str
    uid: str
    job_uid: str | None
    attempt: int
    index: int = 0
    """Which of the attempt's pods; each has a node of its own."""
    phase: str
    ip: str
    node: str
    created: datetime | None
    started: datetime | None
    finished: datetime | None
    exit_code: int | None
    exit_reason: str
    last_word: str
    waiting_reason: str
    waiting_message: str
    unschedulable: str
    unschedulable_since: datetime | None
    disrupted: str
    deletion: datetime | None
    """When it is due to be gone, once it is being deleted."""

    @classmethod
    def parse(cls, body: Body) -> "Pod":
        status = body.get("status") or {}
        state = _trainer_state(status)
        terminated, running, waiting = (state.get(part) or {} for part in ("terminated", "running", "waiting"))
        conditions = {c["type"]: c for c in status.get("conditions") or ()}
        scheduled, disruption = conditions.get("PodScheduled") or {}, conditions.get("DisruptionTarget") or {}
        unschedulable = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
        return cls(
            name=body["metadata"]["name"],
            uid=body["metadata"]["uid"],
            job_uid=owner_uid(body),
            attempt=int((body["metadata"].get("labels") or {}).get(names.ATTEMPT_LABEL, "0")),
            index=int((body["metadata"].get("annotations") or {}).get(names.INDEX_ANNOTATION, "0")),
            phase=status.get("phase") or "Pending",
            ip=status.get("podIP") or "",
            node=(body.get("spec") or {}).get("nodeName") or "",
            created=parse_time(body["metadata"].get("creationTimestamp")),
            started=parse_time(running.get("startedAt") or terminated.get("startedAt")),
            finished=parse_time(terminated.get("finishedAt")),
            exit_code=terminated.get("exitCode"),
            exit_reason=terminated.get("reason") or status.get("reason") or "",
            last_word=terminated.get("message") or "",
            waiting_reason=waiting.get("reason") or "",
            waiting_message=waiting.get("message") or "",
            unschedulable=(scheduled.get("message") or "unschedulable") if unschedulable else "",
            unschedulable_since=parse_time(scheduled.get("lastTransitionTime")) if unschedulable else None,
            disrupted=disruption.get("reason") or "" if disruption.get("status") == "True" else "",
            deletion=parse_time(body["metadata"].get("deletionTimestamp")),
        )

    @property
    def ended(self) -> bool:
        """Whether its processes are gone."""
        return self.phase in ("Succeeded", "Failed")


def _trainer_state(status: Mapping[str, Any]) -> Mapping[str, Any]:
    containers = status.get("containerStatuses") or ()
    mine = [container for container in containers if container.get("name") == names.TRAINER_CONTAINER]
    return (mine[0].get("state") or {}) if mine else {}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Where checkpoints and output are kept."""

    name: str
    uid: str
    phase: str
    storage_class: str | None
    run_uid: str | None
    created: datetime | None

    @classmethod
    def parse(cls, body: Body) -> "Claim":
        return cls(
            name=body["metadata"]["name"],
            uid=body["metadata"]["uid"],
            phase=(body.get("status") or {}).get("phase") or "Pending",
            storage_class=(body.get("spec") or {}).get("storageClassName"),
            run_uid=(body["metadata"].get("annotations") or {}).get(names.RUN_UID_ANNOTATION),
            created=parse_time(body["metadata"].get("creationTimestamp")),
        )
