"""What must hold at every moment, whatever happens: watched from outside, by what is kept in the cluster alone.

It knows nothing of how the operator decides. A promise that is broken raises an AssertionError where that happens.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api.snapshot import EventType
from finetune_api.status import FineTuneRunStatus, Phase, RunEvent
from finetune_operator import names, progress
from finetune_operator.children import Job, Pod, owner_uid
from finetune_operator.memory import JOB, POD, RUN, Memory, Ref
from finetune_operator.run import Run, paused
from finetune_operator.settings import Limits


class Promises:
    """Of one cluster. Told of each change by `Memory.on_change`."""

    def __init__(self, memory: Memory, *, limits: Limits) -> None:
        self._memory = memory
        self._limits = limits
        self._parsed: dict[tuple[str, str], Any] = {}
        self.changes = 0
        """Of any object."""
        self.runs: dict[str, Run] = {}
        """As they are, by UID."""
        self.jobs_made: dict[tuple[str, int], set[str]] = {}
        self.jobs_excused: Counter[tuple[str, int]] = Counter()
        """Jobs that were deleted before their pod was known to run: they may be created again."""
        self.succeeded: set[tuple[str, int]] = set()
        """Attempts whose trainer ended with 0."""
        self.ran: Counter[str] = Counter()
        """Seconds for which pods of a run have run."""
        self._entries: dict[tuple[str, EventType, int | None], int] = {}
        self._attempts: Counter[str] = Counter()

    # What is there.

    def all_runs(self) -> Iterator[Run]:
        yield from (self._parse(body, Run) for body in self._memory.all(RUN))

    def live_pods(self) -> Iterator[tuple[str, Pod]]:
        """Pods that may still run, each with the UID of its run."""
        for body in self._memory.all(POD):
            pod = self._parse(body, Pod)
            if not pod.ended:
                yield (body["metadata"].get("annotations") or {}).get(names.RUN_UID_ANNOTATION) or "", pod

    def live_jobs(self) -> Iterator[tuple[str, Job]]:
        """Jobs that haven't ended, each with the UID of its run."""
        for body in self._memory.all(JOB):
            job = self._parse(body, Job)
            if not job.ended:
                yield owner_uid(body) or "", job

    def _parse(self, body: Any, kind: Any) -> Any:
        key = body["metadata"]["uid"], body["metadata"]["resourceVersion"]
        if key not in self._parsed:
            self._parsed[key] = kind.parse(body)
        return self._parsed[key]

    # What is told.

    def note(self, ref: Ref) -> None:
        """Something has changed."""
        self.changes += 1
        body = self._memory.get(ref)
        if ref.kind == JOB and body is not None:
            self._one_job_an_attempt(body)
        if ref.kind == RUN:
            self._status_goes_on(Run.parse(body) if body else None)
        if ref.kind in (RUN, POD, JOB):
            self._nothing_is_over_a_limit()
            self._one_live_pod_a_run()
            self._what_is_over_is_quiet()

    def excuse(self, run: Run, child: Job | Pod) -> None:
        """A child is about to be deleted, by whomever: a user may take a pause back before it is recorded."""
        started = run.status.event(EventType.STARTED)
        if isinstance(child, Job) and (started is None or started.attempt != child.attempt):
            self.jobs_excused[run.metadata.uid, child.attempt] += 1

    def _one_job_an_attempt(self, body: Mapping[str, Any]) -> None:
        """A number is never used again, but for a Job that was removed before it was known to run."""
        uid, attempt = owner_uid(body), Job.parse(body).attempt
        if uid is None or attempt == 0:
            return
        made = self.jobs_made.setdefault((uid, attempt), set())
        if body["metadata"]["uid"] in made:
            return
        made.add(body["metadata"]["uid"])
        assert len(made) <= 1 + self.jobs_excused[uid, attempt], f"attempt {attempt} had {len(made)} Jobs"
        assert attempt >= self._attempts[uid], f"attempt {attempt} comes after {self._attempts[uid]}"
        self._attempts[uid] = attempt

    def _nothing_is_over_a_limit(self) -> None:
        """By what is recorded, and by what runs. A run that is deleted lets its pods end by themselves."""
        there = {run.metadata.uid: run for run in self.all_runs()}
        recorded = [run for run in there.values() if is_active(run)]
        alive = {uid for uid, _ in self.live_pods()} & set(there)
        for counted in (recorded, [there[uid] for uid in alive]):
            in_namespace = Counter(run.key.namespace for run in counted)
            most = self._limits.runs_per_namespace
            assert most is None or all(number <= most for number in in_namespace.values()), "too many runs are active"
            for resource, limit in self._limits.devices.items():
                used = sum(devices(run) for run in counted if resource_of(run) == resource)
                assert used <= limit, f"{used} of {limit} {resource} are used"

    def _one_live_pod_a_run(self) -> None:
        pods = Counter(uid for uid, _ in self.live_pods() if uid)
        assert all(number == 1 for number in pods.values()), "a run has two live pods"
        jobs = Counter(uid for uid, _ in self.live_jobs() if uid)
        assert all(number == 1 for number in jobs.values()), "a run has two live Jobs"

    def _what_is_over_is_quiet(self) -> None:
        """Nothing of a run lives once it is recorded that it is paused or has ended."""
        rests = {run.metadata.uid for run in self.all_runs() if run.status.is_finished or paused(run)}
        alive = {uid for uid, _ in self.live_pods()} | {uid for uid, _ in self.live_jobs()}
        assert not rests & alive, "something lives of a run that is over or paused"

    def _status_goes_on(self, run: Run | None) -> None:
        now = {found.metadata.uid: found for found in self.all_runs()}
        if run is not None:
            before = self.runs.get(run.metadata.uid)
            self._check_events(run)
            most = self.ran[run.metadata.uid] + run.status.attempt + self._running(run)
            assert run.status.active_seconds <= most, "each attempt's seconds count once"
            if run.status.phase is Phase.COMPLETED:
                assert (run.metadata.uid, run.status.attempt) in self.succeeded, "it completes only if its trainer did"
            if before is not None:
                check_step(before.status, run.status)
            if is_active(run) and (before is None or not is_active(before)):
                self._its_turn_has_come(run)
        self.runs = now

    def _running(self, run: Run) -> float:
        """Seconds for which its live pods have run."""
        pods = [pod for uid, pod in self.live_pods() if uid == run.metadata.uid and pod.started]
        return sum((self._memory.clock() - pod.started).total_seconds() for pod in pods if pod.started)

    def _check_events(self, run: Run) -> None:
        sequences = [event.sequence for event in run.status.events]
        assert sequences == sorted(set(sequences)), "events are in order, each number once"
        for event in run.status.events:
            attempt = event.attempt if event.type in progress.PER_ATTEMPT else None
            known = self._entries.setdefault((run.metadata.uid, event.type, attempt), event.sequence)
            assert known == event.sequence, f"{event.type} of attempt {attempt} is entered twice"

    def _its_turn_has_come(self, begun: Run) -> None:
        """Let all who come before it have their turn first: then there is still room for it."""
        others = [run for run in self.all_runs() if run.metadata.uid != begun.metadata.uid]
        active = [run for run in others if is_active(run)]
        ahead = [run for run in others if waits(run) and order(run) < order(begun)]
        short: set[str] = set()
        for run in [*sorted(ahead, key=order), begun]:
            if not self._has_place(run, active):
                assert run is not begun, "more begin than there are places, or one passes another"
                continue
            fits = resource_of(run) not in short and self._has_devices(run, active)
            assert fits or run is not begun, "it passes one that waits for the same devices"
            if fits:
                active.append(run)
            else:
                short.add(resource_of(run))

    def _has_place(self, run: Run, active: list[Run]) -> bool:
        most = self._limits.runs_per_namespace
        return most is None or sum(other.key.namespace == run.key.namespace for other in active) < most

    def _has_devices(self, run: Run, active: list[Run]) -> bool:
        limit = self._limits.devices.get(resource_of(run))
        used = sum(devices(other) for other in active if resource_of(other) == resource_of(run))
        return limit is None or used + devices(run) <= limit


def is_active(run: Run) -> bool:
    """By what is recorded."""
    return run.status.attempt > 0 and not paused(run) and not run.status.is_finished


def waits(run: Run) -> bool:
    """Whether it would begin if its turn came, and that can come."""
    if run.spec is None or run.spec.suspend or run.spec.cancel or resource_of(run) == NEVER:
        return False
    return not is_active(run) and not run.status.is_finished


def order(run: Run) -> tuple[int, Any, str]:
    """Lower goes first."""
    priority = run.spec.queue.priority if run.spec else 0
    return -priority, run.metadata.creation_timestamp, run.metadata.name


NEVER = "example.com/npu"
"""None of these may be used."""


def resource_of(run: Run) -> str:
    return run.spec.resources.device_resource if run.spec else ""


def devices(run: Run) -> int:
    return run.spec.resources.nodes * run.spec.resources.devices_per_node if run.spec and resource_of(run) else 0


def check_step(before: FineTuneRunStatus, now: FineTuneRunStatus) -> None:
    """From one status to the next."""
    assert now.attempt >= before.attempt, "an attempt's number never goes back"
    assert now.active_seconds >= before.active_seconds, "active seconds never fall"
    assert now.earlier_active_seconds >= before.earlier_active_seconds, "nor do those of earlier attempts"
    assert before.start_time in (None, now.start_time), "the start stays"
    assert before.model in (None, now.model), "what it starts from is settled once"
    if before.is_finished:
        assert unseen(now) == unseen(before), "finished stays finished"
    if before.progress and now.progress and before.progress.attempt == now.progress.attempt:
        assert now.progress.batch >= before.progress.batch, "progress never goes back in an attempt"
    old, new = before.event(EventType.TRAIN_UPDATED), now.event(EventType.TRAIN_UPDATED)
    if old and new and old.attempt == new.attempt:
        assert batch(new) >= batch(old), "nor does the history"
    for condition in now.conditions:
        known = before.condition(condition.type)
        if known is not None and known.status == condition.status:
            assert condition.last_transition_time == known.last_transition_time, f"{condition.type} did not change"


def batch(event: RunEvent) -> int:
    found = re.search(r"batch=(\d+)/", event.message)
    assert found is not None
    return int(found[1])


def unseen(status: FineTuneRunStatus) -> FineTuneRunStatus:
    """Without which generation was seen, which goes on after the end."""
    conditions = tuple(c.model_copy(update={"observed_generation": 0}) for c in status.conditions)
    return status.model_copy(update={"observed_generation": 0, "conditions": conditions})
