"""All that one reconcile pass knows, read once: the run, its children, and what its trainer last said."""

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Self

from finetune_api.snapshot import PEER_LOST, EventType, Snapshot
from finetune_api.status import ResolvedModel
from finetune_operator import kueue
from finetune_operator.children import Claim, Job, Pod
from finetune_operator.errors import UserError
from finetune_operator.run import Run, paused

_SKEW = timedelta(seconds=2)
"""By which the clocks within a control plane may differ, whole seconds included."""


def _later(pod: Pod, start: datetime | None) -> bool:
    """Whether a pod was made after a start of its Job."""
    return start is not None and pod.created is not None and pod.created >= start - _SKEW


@dataclass(frozen=True, kw_only=True)
class ChildWarning:
    """What Kubernetes says is wrong with a child."""

    kind: str
    name: str
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Turn:
    """Whether a run may be active, by the operator's own limits."""

    admitted: bool = True
    position: int | None = None
    """Place among the waiting runs of its namespace, counted from 1."""
    reason: str = ""
    message: str = ""
    """What it waits for."""
    never: str = ""
    """Why its turn can never come."""


@dataclass(frozen=True, kw_only=True)
class World:
    """One frozen snapshot."""

    run: Run
    now: datetime
    turn: Turn = Turn()
    model: ResolvedModel | UserError | None = None
    """What `spec.model.uri` stands for, or why it can't be had; None for a spec that can't be read."""
    jobs: tuple[Job, ...] = ()
    pods: tuple[Pod, ...] = ()
    claim: Claim | None = None
    snapshot: Snapshot | None = None
    """What the newest attempt's trainer last answered, if it did."""
    snapshot_pod: str | None = None
    """UID of the pod that answered so, where it is known."""
    workload: kueue.Workload | kueue.Silence | None = None
    """What Kueue says of the newest attempt's Job, if that was asked."""
    warnings: tuple[ChildWarning, ...] = field(default=())

    @property
    def attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        return self.run.status.attempt

    @property
    def job(self) -> Job | None:
        """The newest attempt's Job: its own, or under Kueue that of an earlier attempt which goes on in it."""
        own = next((job for job in self.jobs if job.attempt == self.attempt > 0), None)
        earlier = self.run.status.job_attempt
        return own or next((job for job in self.jobs if job.attempt == earlier > 0), None)

    @property
    def number(self) -> int:
        """The number that the newest attempt's Job and pods have, and their trainers tell."""
        return self.job.attempt if self.job is not None else self.run.status.job_attempt or self.attempt

    @property
    def evicted(self) -> bool:
        """Whether Kueue has taken back what the newest attempt ran on, perhaps to give it again since.

        Told by the Job alone: it is suspended, or was started anew.
        """
        if self.job is None or self.recorded_start is None or not kueue.concerns(self.run.spec):
            return False
        return self.begun_anew or (self.job.suspended and not self.job.ended)

    @property
    def members(self) -> tuple[Pod, ...]:
        """The newest attempt's pods, in order: for each node the one that runs, or else the last one made."""
        mine = [pod for pod in self.pods if pod.attempt == self.number > 0 and self._belongs(pod)]
        found = {pod.index: pod for pod in sorted(mine, key=lambda pod: (not pod.ended, str(pod.created), pod.name))}
        return tuple(found[index] for index in sorted(found))

    def _belongs(self, pod: Pod) -> bool:
        """Whether a pod of the Job is of the newest attempt: one Job may serve several, one after the other.

        By the clock of the control plane, which wrote both times.
        """
        if self.job is None or not kueue.concerns(self.run.spec):
            return True
        if self.begun_anew:
            return not _later(pod, self.job.started)
        first = self.run.status.job_attempt == 0
        return first or _later(pod, self._known_start if self.recorded_start else self.job.started)

    @property
    def _known_start(self) -> datetime | None:
        """When the Job was started for the newest attempt, as recorded."""
        return self.run.status.job_start_time

    @property
    def begun_anew(self) -> bool:
        """Whether Kueue has let the Job run again since the newest attempt began."""
        now, then = (self.job.started if self.job else None), self._known_start if self.recorded_start else None
        return None not in (now, then) and now != then

    @property
    def first(self) -> Pod | None:
        """The pod that tells how far the newest attempt is."""
        return next((pod for pod in self.members if pod.index == 0), None)

    @property
    def pod(self) -> Pod | None:
        """The pod that tells how the newest attempt is: the one that failed first, or doesn't run yet, or the first."""
        members = self.members
        failed = [pod for pod in members if pod.phase == "Failed"]
        if failed:
            return min(failed, key=self._blame)
        return next((pod for pod in members if pod.started is None), members[0] if members else None)

    def _blame(self, pod: Pod) -> tuple[bool, bool, str, int]:
        """What sorts pods that failed by themselves before those that only followed, or were ended for it."""
        word = self.word_of(pod)
        follows = word is not None and word.error is not None and word.error.reason == PEER_LOST
        return follows, pod.deletion is not None and not pod.disrupted, str(pod.finished), pod.index

    @property
    def all_started(self) -> datetime | None:
        """When the last of the newest attempt's pods began to run, if all do or did."""
        nodes = self.run.spec.resources.nodes if self.run.spec is not None else 1
        times = [pod.started for pod in self.members if pod.started is not None]
        return max(times) if len(times) >= nodes else None

    @property
    def started(self) -> datetime | None:
        """When the newest attempt's pods began to run: as recorded, or as seen if they have come and gone since."""
        return self.recorded_start or self.all_started

    @property
    def recorded_start(self) -> datetime | None:
        """The same, as recorded."""
        recorded = self.run.status.event(EventType.STARTED)
        mine = recorded is not None and recorded.attempt == self.attempt
        return recorded.time if recorded is not None and mine else None

    @property
    def strays(self) -> tuple[Job, ...]:
        """Jobs of earlier attempts that may still run: a create that was on its way when its operator died."""
        mine = self.job
        return tuple(job for job in self.jobs if 0 < job.attempt < self.attempt and not job.ended and job is not mine)

    @property
    def live_pods(self) -> tuple[Pod, ...]:
        """Pods of any attempt that may still run."""
        return tuple(pod for pod in self.pods if not pod.ended)

    @property
    def active_seconds(self) -> float:
        """For how long pods have run, over all attempts."""
        earlier = self.run.status.earlier_active_seconds
        if self.started is None or paused(self.run):
            return earlier
        return earlier + max(0.0, (self.last_sign_of_life - self.started).total_seconds())

    @property
    def last_sign_of_life(self) -> datetime:
        """When the newest attempt's pod ended; now while it runs; if its end isn't known, when it was last heard of."""
        if self.pod is not None and (self.pod.finished or not self.pod.ended):
            return self.pod.finished or self.now
        if self.started is None:
            return self.now
        heard, said = self.run.status.progress, self.live_snapshot
        told = heard.reported_time if heard and heard.attempt == self.attempt else None
        times = (self.started, told, said.time if said else None)
        return min(self.now, max(time for time in times if time is not None))

    @property
    def last_word(self) -> Snapshot | None:
        """What the trainer said at its end, if it could and if it speaks of this run and attempt."""
        return self.word_of(self.first) if self.first is not None else None

    def word_of(self, pod: Pod) -> Snapshot | None:
        """What a pod said at its end, on the same terms."""
        if not pod.last_word:
            return None
        try:
            return self.trusted(Snapshot.decode(pod.last_word))
        except ValueError:
            return None

    def trusted(self, snapshot: Snapshot | None) -> Snapshot | None:
        """The snapshot if it is about this run and attempt, under the attempt's own number."""
        if snapshot is None or snapshot.run_uid != self.run.metadata.uid or snapshot.attempt != self.number:
            return None
        if self.number == self.attempt:
            return snapshot
        return snapshot.model_copy(update={"attempt": self.attempt})

    @property
    def live_snapshot(self) -> Snapshot | None:
        """The newest answer to a poll, if it is about this run and attempt."""
        shared = self.run.status.job_attempt > 0  # the Job's earlier pods said so under the same number
        if shared and self.snapshot_pod not in {pod.uid for pod in self.members}:
            return None
        return self.trusted(self.snapshot)

    @property
    def newest_snapshot(self) -> Snapshot | None:
        """The last word, else the newest answer to a poll."""
        return self.last_word or self.live_snapshot

    def with_warnings(self, warnings: tuple[ChildWarning, ...]) -> Self:
        """The same with what Kubernetes says is wrong."""
        return replace(self, warnings=warnings)
