"""Kueue's priority boost: of runs of the same priority, those that would lose little are preempted first. Pure.

Kueue (feature gate PriorityBoost) adds the annotation's number to a Workload's priority, in the order of the queue, in
who may preempt and in who is preempted first. So it is never negative: whoever waits with the same priority could
preempt the run. It is for a run that runs, and never for one that waits: that one could preempt others of its
priority. And it never comes near the next priority class: whatever may preempt the run without it still may.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from finetune_operator import kueue, names
from finetune_operator.world import World

ANNOTATION = f"{kueue.GROUP}/priority-boost"
"""Of a Workload."""
MOST = 6
"""The highest: each step stands for twice the work at stake of the one below it."""
CLASSES = (
    f"/apis/{kueue.GROUP}/{kueue.VERSION}/workloadpriorityclasses",
    "/apis/scheduling.k8s.io/v1/priorityclasses",
)
"""Where administrators say which priorities there are."""


@dataclass(frozen=True, kw_only=True)
class Boosted:
    """A Workload, as far as its priority goes."""

    name: str
    uid: str
    priority: int
    boost: str
    """What is annotated now, empty for nothing."""
    by_another: bool
    """Whether somebody else has annotated it so."""

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> "Boosted":
        """Read an object of the API server."""
        metadata = body["metadata"]
        boost = (metadata.get("annotations") or {}).get(ANNOTATION, "")
        managers = {entry.get("manager") for entry in metadata.get("managedFields") or () if _annotates(entry)}
        return cls(
            name=metadata["name"],
            uid=metadata["uid"],
            priority=int((body.get("spec") or {}).get("priority") or 0),
            boost=boost,
            by_another=boost != "" and names.MANAGER not in managers,
        )

    def patch(self, boost: int) -> Mapping[str, Any]:
        """What makes it so; 0 takes the annotation away. Refused if the Workload is another by now."""
        return {"metadata": {"uid": self.uid, "annotations": {ANNOTATION: str(boost) if boost else None}}}


def _annotates(entry: Mapping[str, Any]) -> bool:
    """Whether an entry of managedFields has the annotation in it."""
    metadata = (entry.get("fieldsV1") or {}).get("f:metadata") or {}
    return f"f:{ANNOTATION}" in (metadata.get("f:annotations") or {})


def concerns(world: World) -> bool:
    """Whether a Workload of the run may have a boost, or ought to have one: not before its Job has run."""
    run, job = world.run, world.job
    if not kueue.concerns(run.spec) or run.status.is_finished or job is None or job.ended or job.deleted:
        return False
    return world.recorded_start is not None or run.status.job_attempt > 0


def at_stake(world: World) -> timedelta | None:
    """The work that would be lost if the attempt ended now without a checkpoint. None if it doesn't run."""
    began, job = world.recorded_start, world.job
    if began is None or job is None or job.suspended or world.evicted:
        return None
    saved = [checkpoint.time for checkpoint in world.run.status.checkpoints if checkpoint.complete]
    return max(world.now - max([began, *saved]), timedelta())


def wanted(stake: timedelta | None, *, first: timedelta) -> int:
    """The boost for so much at stake: 1 from `first` on, one more each time it doubles."""
    boost = 0
    while stake is not None and boost < MOST and stake >= first * 2**boost:
        boost += 1
    return boost


def next_step(stake: timedelta | None, *, first: timedelta) -> timedelta | None:
    """After how long more is wanted, if nothing is saved until then."""
    boost = wanted(stake, first=first)
    return None if stake is None or boost == MOST else first * 2**boost - stake


def room(priority: int, classes: Iterable[int]) -> int:
    """The highest boost that leaves a Workload of this priority below every class that is above it."""
    above = min((value for value in classes if value > priority), default=None)
    return MOST if above is None else min(MOST, above - priority - 1)
