"""Kueue, as far as the operator has to do with it: the labels that put a Job in a queue, and what its Workload says.

Kueue owns `spec.suspend` of such a Job: the operator creates it suspended and never changes that, nor anything of
Kueue's. What Kueue says is told to people and decides nothing; whether a Job may run is read from the Job alone. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from typing import Any

from finetune_api.fields import cut
from finetune_api.spec import FineTuneRunSpec

GROUP = "kueue.x-k8s.io"
VERSION = "v1beta2"
QUEUE_LABEL = f"{GROUP}/queue-name"
PRIORITY_LABEL = f"{GROUP}/priority-class"
JOB_UID_LABEL = f"{GROUP}/job-uid"
"""Of a Workload: whose it is."""

NOT_INSTALLED = "KueueNotInstalled"
"""The API server doesn't know Workloads: nobody takes the Job out of its suspension."""
UNREADABLE = "KueueUnreadable"
"""The operator may not read Workloads, so it can't tell what Kueue says."""
NO_ANSWER = "KueueSilent"
"""The API server doesn't answer for Workloads, as while Kueue is being installed."""
NO_WORKLOAD = "NoWorkload"
"""Kueue is installed and hasn't taken notice of the Job."""
NO_QUOTA = "WaitingForQuota"
"""Kueue holds the Job back."""
CHECKS = "WaitingForAdmissionChecks"
"""Quota is reserved; a check that the queue asks for isn't done."""
EVICTED = "Evicted"
"""Kueue took the quota back: preempted, the queue was stopped, pods weren't ready in time."""
DEACTIVATED = "Deactivated"
"""Kueue doesn't consider the Workload any more (its spec.active is false)."""
STARTS = "QuotaReserved"
"""Kueue lets the Job run now."""

_PAUSE = (timedelta(seconds=5), timedelta(seconds=120))
_SHARE = 20


class Silence(Enum):
    """Why there is no Workload to read."""

    NOT_INSTALLED = auto()
    UNREADABLE = auto()
    NO_WORKLOAD = auto()
    NO_ANSWER = auto()


@dataclass(frozen=True, kw_only=True)
class Said:
    """One condition of a Workload."""

    true: bool
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What stands for a Job in Kueue's queues."""

    name: str
    active: bool
    conditions: Mapping[str, Said]

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> "Workload":
        """Read an object of the API server."""
        conditions = (body.get("status") or {}).get("conditions") or ()
        return cls(
            name=body["metadata"]["name"],
            active=bool((body.get("spec") or {}).get("active", True)),
            conditions={
                str(found["type"]): Said(
                    true=found.get("status") == "True",
                    reason=str(found.get("reason") or ""),
                    message=str(found.get("message") or ""),
                )
                for found in conditions
            },
        )

    def is_true(self, kind: str) -> bool:
        """Whether a condition holds."""
        return kind in self.conditions and self.conditions[kind].true


def concerns(spec: FineTuneRunSpec | None) -> bool:
    """Whether Kueue decides when the run may run."""
    return spec is not None and spec.queue.name is not None


def labels(spec: FineTuneRunSpec, *, retried: bool) -> dict[str, str]:
    """Of a Job, for Kueue; `retried` if the attempt before it failed."""
    queue = spec.queue
    if queue.name is None:
        return {}
    priority = (queue.retry_priority_class if retried else None) or queue.priority_class
    return {QUEUE_LABEL: queue.name} | ({PRIORITY_LABEL: priority} if priority else {})


def suspension(spec: FineTuneRunSpec) -> dict[str, bool]:
    """Of a Job's spec: it waits for Kueue, also where Kueue's webhook doesn't see it."""
    return {"suspend": True} if concerns(spec) else {}


def pause(*, waited: timedelta) -> timedelta:
    """Between two looks at what Kueue says of a Job that has waited so long: thousands may wait for days."""
    shortest, longest = _PAUSE
    return min(max(waited / _SHARE, shortest), longest)


def waits(found: Workload | Silence | None, *, queue: str, job: str) -> tuple[str, str]:
    """Reason and message: why a Job is suspended, in Kueue's own words where it has some."""
    match found:
        case Silence.NOT_INSTALLED:
            return NOT_INSTALLED, (
                f"spec.queue.name is {queue}, and this cluster has no Kueue ({GROUP}/{VERSION}): install it, and the"
                " run goes on; or create the run without queue.name"
            )
        case Silence.UNREADABLE:
            return UNREADABLE, (
                f"Job {job} waits in queue {queue}; what for can't be told: the operator may not list"
                f" workloads.{GROUP} (the chart's value kueue.enabled)"
            )
        case Silence.NO_ANSWER:
            return NO_ANSWER, f"Job {job} waits in queue {queue}; what for can't be read from the API server now."
        case Workload():
            return _said(found, queue=queue)
        case _:
            return NO_WORKLOAD, (
                f"Kueue has no Workload for Job {job} yet. If it stays so: does Kueue run, and does it manage Jobs"
                " (integrations) in this namespace (managedJobsNamespaceSelector)?"
            )


def evicted(found: Workload | Silence | None) -> str:
    """Why Kueue took the quota back, in its own words."""
    conditions = found.conditions if isinstance(found, Workload) else {}
    preempted = conditions.get("Preempted")
    said = preempted if preempted is not None and preempted.true else conditions.get("Evicted")
    return _words("Kueue took the quota back", said)


def _said(workload: Workload, *, queue: str) -> tuple[str, str]:
    conditions = workload.conditions
    where = f"queue {queue}, Workload {workload.name}"
    if not workload.active:
        return DEACTIVATED, _words(f"Kueue has deactivated the run ({where})", conditions.get("Evicted"))
    if workload.is_true("Evicted") and not workload.is_true("QuotaReserved"):
        again = conditions.get("QuotaReserved")
        return EVICTED, f"{evicted(workload)} {_words(f'It waits for quota again ({where})', again)}"
    if workload.is_true("Evicted"):
        return EVICTED, evicted(workload)
    if workload.is_true("Admitted"):
        return STARTS, f"Kueue lets the run start ({where})."
    if workload.is_true("QuotaReserved"):
        return CHECKS, f"Quota is reserved; the queue's admission checks aren't done ({where})."
    return NO_QUOTA, _words(f"Waits for quota ({where})", conditions.get("QuotaReserved"))


def _words(what: str, said: Said | None) -> str:
    """A sentence of ours, and Kueue's own after it."""
    if said is None or not (said.reason or said.message):
        return f"{what}."
    quoted = ": ".join(part for part in (said.reason, said.message.rstrip(".")) if part)
    return cut(f"{what}. {quoted}.", 1000)
