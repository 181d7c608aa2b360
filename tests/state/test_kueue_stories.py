"""A run in a queue while Kueue lets it run and takes that back at any moment, and the operator looks when it likes.

The Job controller, the node and Kueue are played step by step over the in-memory cluster; whatever happened, a Kueue
that lets the run run at last sees it end well, and its account is true.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.snapshot import ExitCode
from finetune_api.status import FineTuneRunStatus, Phase
from finetune_operator import jobs
from finetune_operator.children import Body, Job, Pod
from finetune_operator.memory import JOB, POD, Memory, Object, Ref, stamp
from finetune_operator.run import Run
from tests import worlds
from tests.worlds import KEY

STEPS = (
    "course",
    "course",
    "evict",
    "look",
    "admit",
    "evict",
    "control",
    "start",
    "saved",
    "crash",
    "tick",
    "new operator",
    "gone",
)


class Story:
    """One run. `alive` is the time in which a pod of it ran."""

    def __init__(self) -> None:
        self.clock = worlds.Clock()
        self.memory = Memory(clock=self.clock)
        self.memory.add(worlds.body({"queue.name": "team-a", "recovery.maxRestartsWithoutProgress": 100}))
        self.operate()
        self.alive = 0.0
        self.starts: list[str] = []
        self.attempts = [0]

    def operate(self) -> None:
        self.operator = worlds.reconciler(self.memory, line=self.memory.line, clock=self.clock)

    @property
    def status(self) -> FineTuneRunStatus:
        body = self.memory.get(Ref.run(KEY))
        assert body is not None
        return Run.parse(body).status

    def job(self) -> Object | None:
        """The one that hasn't ended."""
        going = [body for body in self.memory.all(JOB) if not Job.parse(body).ended]
        assert len(going) <= 1, "one attempt at a time"
        return self.memory.get(Ref.of(going[0])) if going else None

    def pods(self, *, started: bool) -> list[Body]:
        found = [body for body in self.memory.all(POD) if not Pod.parse(body).ended]
        assert len(found) <= 1, "one trainer at a time"
        return [body for body in found if (Pod.parse(body).started is not None) == started]

    # What can happen.

    def course(self) -> None:
        """What mostly happens: it is looked at, let in, and runs for a while."""
        for step in (self.saved, self.gone, self.look, self.look, self.admit, self.control, self.start):
            step()
            self.clock.tick(5)
        self.look()
        self.clock.tick(60)

    def look(self) -> None:
        worlds.finish(self.operator(KEY))
        assert self.status.attempt in (self.attempts[-1], self.attempts[-1] + 1)
        self.attempts.append(self.status.attempt)

    def admit(self) -> None:
        """Kueue lets the Job run; the Job controller notes since when."""
        job = self.job()
        if job is not None and job["spec"].get("suspend"):
            started = {"startTime": stamp(self.clock())}
            self.memory.update({**job, "spec": {**job["spec"], "suspend": False}, "status": started})

    def evict(self) -> None:
        """Kueue suspends the Job; the Job controller deletes its pod, and won't count how that ends."""
        job = self.job()
        if job is None or job["spec"].get("suspend"):
            return
        self.memory.update({**job, "spec": {**job["spec"], "suspend": True}, "status": {}})
        for pod in (*self.pods(started=False), *self.pods(started=True)):
            self.memory.delete_object(Ref.of(pod))

    def control(self) -> None:
        if any("deletionTimestamp" in body["metadata"] for body in self.memory.all(POD)):
            return  # podReplacementPolicy: Failed
        jobs.control(self.memory)

    def start(self) -> None:
        for pod in self.pods(started=False):
            jobs.start_pod(self.memory, Ref.of(pod))
            self.starts.append(pod["metadata"]["uid"])

    def end(self, code: int, *, deleted: bool) -> None:
        for pod in self.pods(started=True):
            if ("deletionTimestamp" in pod["metadata"]) is not deleted:
                continue
            found = Pod.parse(pod)
            assert found.started is not None
            self.alive += (self.clock() - found.started).total_seconds()
            self._end(pod, code)

    def _end(self, pod: Body, code: int) -> None:
        """As the node reports it, without the Job controller's counting."""
        done = {"exitCode": code, "startedAt": stamp_of(pod), "finishedAt": stamp(self.clock())}
        container = {"name": "trainer", "state": {"terminated": done}}
        status = {**pod["status"], "phase": "Failed" if code else "Succeeded", "containerStatuses": [container]}
        self.memory.update({**pod, "status": status})

    def saved(self) -> None:
        """A pod that was told to end has saved."""
        self.end(int(ExitCode.STOPPED), deleted=True)

    def crash(self) -> None:
        self.end(1, deleted=False)

    def gone(self) -> None:
        """The API server forgets pods that were deleted and have ended."""
        for body in self.memory.all(POD):
            if Pod.parse(body).ended and "deletionTimestamp" in body["metadata"]:
                self.memory.delete_object(Ref.of(body))

    def tick(self) -> None:
        self.clock.tick(30)

    def finish(self) -> None:
        """Nothing disturbs it any more."""
        for _ in range(30):
            for step in (self.saved, self.gone, self.look, self.admit, self.control, self.tick, self.start, self.look):
                step()
            self.clock.tick(20)
            self.end(0, deleted=False)
            self.control()
            self.look()
            if self.status.is_finished:
                return
        raise AssertionError(f"it doesn't end: {self.status}")


def stamp_of(pod: Body) -> str:
    started = Pod.parse(pod).started
    assert started is not None
    return stamp(started)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(st.sampled_from(STEPS), min_size=8, max_size=40))
def test_whatever_kueue_does_and_whenever_the_operator_looks_the_run_ends_well(steps: list[str]) -> None:
    story = Story()
    for step in steps:
        story.operate() if step == "new operator" else getattr(story, step)()
        if step in ("start", "saved", "gone", "evict", "admit"):
            story.clock.tick(5)  # times are in whole seconds
    story.finish()
    status = story.status
    assert status.phase is Phase.COMPLETED
    told = [event.attempt for event in status.events if event.type == "STARTED"]
    assert len(told) == len(set(told)) <= len(story.starts)
    assert status.active_seconds <= story.alive + 1, "waiting isn't active"
    assert len([event for event in status.events if event.type == "COMPLETED"]) == 1
