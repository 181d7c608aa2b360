"""The reconcile loop against a cluster in which everything may happen at any time, in any order, and fail half-way.

Hypothesis looks for a story that breaks a promise; what it prints is the story. STATE_PROFILE=thorough looks for long.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from finetune_api.snapshot import EventType, LastError, Milestone, SavedOutput, Snapshot
from finetune_api.status import FineTuneRunStatus, Phase, RunEvent
from finetune_operator import jobs, names, progress
from finetune_operator.children import Job, Pod, owner_uid
from finetune_operator.errors import TransientError
from finetune_operator.memory import JOB, POD, RUN, Memory, Ref
from finetune_operator.reconcile import Reconciler
from finetune_operator.settings import Settings
from finetune_operator.world import Run
from tests import worlds
from tests.state.flaky import Crash, Fault, Flaky
from tests.worlds import KEY

SETTLED_WITHIN = 16
"""Passes without faults after which nothing more is written."""
STAYS_SO_FOR = 4
"""Passes, and as many half minutes, for which that is watched."""
TOTAL = 20
EXIT_CODES = (0, 1, 64, 65, 66, 73, 75, 77, 78, 137)

settings.register_profile("quick", max_examples=250, stateful_step_count=40)
settings.register_profile("thorough", max_examples=5000, stateful_step_count=80)
PROFILE = settings.get_profile(os.environ.get("STATE_PROFILE", "quick"))


@pytest.fixture(autouse=True)
def only_errors_are_logged() -> Iterator[None]:
    """Or thousands of refusals are printed with a failure."""
    log = logging.getLogger("finetune_operator")
    level = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(level)


class RunMachine(RuleBasedStateMachine):
    """One name in one namespace: a run, perhaps deleted and made again, its children, an operator that may crash."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = worlds.Clock()
        self.memory = Memory(clock=self.clock)
        self.memory.on_change = self._note
        self.flaky = Flaky(self.memory)
        self.batch: dict[str, int] = {}
        """Steps done by each pod's trainer."""
        self.jobs_made: dict[tuple[str, int], set[str]] = {}
        self.jobs_excused: dict[tuple[str, int], int] = {}
        self.succeeded: set[tuple[str, int]] = set()
        """Attempts whose trainer ended with 0."""
        self.seen: dict[str, FineTuneRunStatus] = {}
        """The last status of each run."""
        self.entries: dict[tuple[str, EventType, int | None], int] = {}
        """Sequence of each once-only event."""
        self.start_operator()

    # The user.

    @initialize(limit=st.integers(0, 2))
    def create_run(self, limit: int) -> None:
        changes = {"recovery.maxRestartsWithoutProgress": limit}
        self.memory.add(worlds.body(changes, uid=None, creationTimestamp=None))

    @precondition(lambda self: self.run is None)
    @rule()
    def create_it_again(self) -> None:
        self.create_run(1)

    @precondition(lambda self: self.run is not None)
    @rule(what=st.sampled_from(("nothing", "verb", "verb", "quota", "room", "room", "delete")))
    def user_or_administrator(self, what: str) -> None:
        """In one rule, so that most of a story is about the run and its children."""
        match what:
            case "verb":
                self.turn_a_verb()
            case "quota":
                self.memory.refuse = lambda body: "exceeded quota" if body["kind"] == JOB else None
            case "room":
                self.memory.refuse = lambda _: None
            case "delete":
                self.memory.delete(Ref.run(KEY))

    def turn_a_verb(self) -> None:
        found = self.memory.get(Ref.run(KEY))
        assert found is not None
        if found["status"].get("attempt"):  # before that it would be refused, which is another story
            found["spec"]["suspend"] = not found["spec"].get("suspend")
            self.memory.update(found)

    # The cluster.

    @rule(first=st.sampled_from((jobs.control, Memory.collect_garbage)))
    def controllers(self, first: Callable[[Memory], bool]) -> None:
        first(self.memory)

    @precondition(lambda self: bool(self.pods(started=False)))
    @rule(data=st.data(), seen=st.booleans())
    def start_pod(self, data: st.DataObject, seen: bool) -> None:
        jobs.start_pod(self.memory, self.pick(data, self.pods(started=False)))
        if seen:
            worlds.finish(self.reconciler(KEY))

    @precondition(lambda self: bool(self.pods(started=True)))
    @rule(data=st.data(), code=st.sampled_from(EXIT_CODES), word=st.booleans(), disrupted=st.booleans())
    def end_pod(self, data: st.DataObject, code: int, word: bool, disrupted: bool) -> None:
        ref = self.pick(data, self.pods(started=True))
        self.end(ref, code=code, word=word, disrupted=disrupted and code != 0)

    @precondition(lambda self: bool(self.memory.all(POD) or self.memory.all(JOB)))
    @rule(data=st.data(), kind=st.sampled_from(("evict", POD, JOB, JOB)))
    def misfortune(self, data: st.DataObject, kind: str) -> None:
        refs = self.pods() if kind == "evict" else [Ref.of(body) for body in self.memory.all(kind)]
        if not refs:
            return
        ref = self.pick(data, refs)
        if kind == "evict":
            jobs.evict_pod(self.memory, ref)
        elif kind == POD:
            self.memory.delete(ref)
        else:
            self.delete_job(ref)

    def delete_job(self, ref: Ref) -> None:
        """One whose pod wasn't known to run may be created again."""
        found = self.memory.get(ref)
        assert found is not None
        uid, attempt = owner_uid(found) or "", Job.parse(found).attempt
        started = self.run.status.event(EventType.STARTED) if self.run and self.run.metadata.uid == uid else None
        if started is None or started.attempt != attempt:
            self.jobs_excused[uid, attempt] = self.jobs_excused.get((uid, attempt), 0) + 1
        self.memory.delete(ref)

    # The trainer.

    @precondition(lambda self: bool(self.pods(started=True)))
    @rule(data=st.data(), steps=st.integers(0, 7), saves=st.booleans(), seconds=st.sampled_from((1, 11, 70)))
    def report(self, data: st.DataObject, steps: int, saves: bool, seconds: float) -> None:
        ref = self.pick(data, self.pods(started=True))
        self.clock.tick(seconds)
        self.train(ref, steps=steps)
        self.memory.snapshots[KEY] = self.snapshot(ref, saves=saves)
        worlds.finish(self.reconciler(KEY))

    @precondition(lambda self: KEY in self.memory.snapshots)
    @rule(steps=st.integers(1, 4))
    def old_answer_arrives_late(self, steps: int) -> None:
        now = self.memory.snapshots[KEY]
        self.clock.tick(11)
        if now.progress and now.progress.batch >= steps:
            old = worlds.progress(now.progress.batch - steps)
            self.memory.snapshots[KEY] = now.model_copy(update={"progress": old, "checkpoints": ()})

    # The operator.

    @rule(stale=st.integers(0, 6), plan=st.dictionaries(st.integers(0, 3), st.sampled_from(Fault), max_size=2))
    def reconcile(self, stale: int, plan: dict[int, Fault]) -> None:
        self.flaky.plan, self.flaky.stale, self.flaky.tried = plan, stale, 0
        try:
            worlds.finish(self.reconciler(KEY))
        except TransientError:
            return  # the queue calls again
        except Crash:
            self.start_operator()
        finally:
            self.flaky.plan, self.flaky.stale = {}, 0

    @rule(times=st.integers(1, 3))
    def usual_course(self, times: int) -> None:
        for _ in range(times):
            self.memory.collect_garbage()
            jobs.control(self.memory)
            worlds.finish(self.reconciler(KEY))

    def start_operator(self) -> None:
        self.reconciler = Reconciler(self.flaky, settings=Settings(), clock=self.clock)

    # The promises.

    @invariant()
    def one_pod_and_one_job_live(self) -> None:
        run = self.run
        if run is None:
            return
        mine = [job for job in map(Job.parse, filter(self.of(run), self.memory.all(JOB))) if not job.ended]
        assert len(mine) <= 1, f"{len(mine)} live Jobs"
        uids = {uid for (owner, _), made in self.jobs_made.items() if owner == run.metadata.uid for uid in made}
        pods = [pod for pod in map(Pod.parse, self.memory.all(POD)) if pod.job_uid in uids and not pod.ended]
        assert len(pods) <= 1, f"{len(pods)} live pods"

    @invariant()
    def one_job_an_attempt(self) -> None:
        for (uid, attempt), made in self.jobs_made.items():
            assert len(made) <= 1 + self.jobs_excused.get((uid, attempt), 0), f"attempt {attempt} had {len(made)} Jobs"

    @invariant()
    def status_only_goes_on(self) -> None:
        run = self.run
        if run is None:
            return
        before, now = self.seen.get(run.metadata.uid), run.status
        self.seen[run.metadata.uid] = now
        self.check_events(run)
        if now.phase is Phase.COMPLETED:
            assert (run.metadata.uid, now.attempt) in self.succeeded, "a run completes only if its trainer did"
        if before is not None:
            check_step(before, now)

    def check_events(self, run: Run) -> None:
        sequences = [event.sequence for event in run.status.events]
        assert sequences == sorted(set(sequences)), "events are in order, each number once"
        for event in run.status.events:
            attempt = event.attempt if event.type in progress.PER_ATTEMPT else None
            known = self.entries.setdefault((run.metadata.uid, event.type, attempt), event.sequence)
            assert known == event.sequence, f"{event.type} of attempt {attempt} is entered twice"

    def teardown(self) -> None:
        """With the faults off nothing more is written after some passes; and once the pods may run, the run ends."""
        if self.run is None:
            return
        self.settle()
        self.memory.refuse = lambda _: None
        for _ in range(8):
            if self.run.status.is_finished:
                break
            for ref in self.pods(started=False):
                jobs.start_pod(self.memory, ref)
            self.settle()
            for ref in self.pods(started=True):
                self.train(ref, steps=TOTAL)
                self.end(ref, code=0, word=True, disrupted=False)
        self.settle()
        assert self.run.status.is_finished, "it ends"
        assert self.run.status.phase in (Phase.COMPLETED, Phase.FAILED)

    def settle(self) -> None:
        quiet = 0
        for _ in range(SETTLED_WITHIN):
            quiet = 0 if self.quiet_pass() else quiet + 1
            if quiet == STAYS_SO_FOR:
                break
        assert quiet == STAYS_SO_FOR, "something is written again and again"
        self.status_only_goes_on()
        self.one_pod_and_one_job_live()
        self.one_job_an_attempt()

    def quiet_pass(self) -> int:
        self.clock.tick(31)
        self.memory.collect_garbage()
        jobs.control(self.memory)
        before = self.flaky.done
        worlds.finish(self.reconciler(KEY))
        return self.flaky.done - before

    # What the rules need.

    @property
    def run(self) -> Run | None:
        return next((Run.parse(body) for body in self.memory.all(RUN)), None)

    def _note(self, ref: Ref) -> None:
        body = self.memory.get(ref)
        if ref.kind == JOB and body is not None:
            attempt = Job.parse(body).attempt
            self.jobs_made.setdefault((owner_uid(body) or "", attempt), set()).add(body["metadata"]["uid"])

    @staticmethod
    def of(run: Run) -> Callable[[Any], bool]:
        return lambda body: owner_uid(body) == run.metadata.uid

    def pods(self, *, started: bool | None = None) -> list[Ref]:
        """The pods that haven't ended."""
        bodies = [body for body in self.memory.all(POD) if not Pod.parse(body).ended]
        return [Ref.of(body) for body in bodies if started in (None, Pod.parse(body).started is not None)]

    @staticmethod
    def pick(data: st.DataObject, refs: list[Ref]) -> Ref:
        return data.draw(st.sampled_from(refs))

    def train(self, ref: Ref, *, steps: int) -> None:
        self.batch[self.uid(ref)] = min(TOTAL, self.batch.get(self.uid(ref), 0) + steps)

    def end(self, ref: Ref, *, code: int, word: bool, disrupted: bool) -> None:
        error = LastError(reason="Told", message="It is told.", exit_code=code) if code else None
        said = self.snapshot(ref, saves=True).model_copy(update={"error": error}).last_word() if word else ""
        why = "EvictionByEvictionAPI" if disrupted else ""
        pod = self.memory.get(ref)
        if code == 0 and pod is not None:
            self.succeeded.add((pod["metadata"]["annotations"][names.RUN_UID_ANNOTATION], Pod.parse(pod).attempt))
        jobs.end_pod(self.memory, ref, exit_code=code, last_word=said, disrupted=why)

    def snapshot(self, ref: Ref, *, saves: bool) -> Snapshot:
        """What the pod's trainer says: milestones by its steps, a checkpoint every five."""
        pod = self.memory.get(ref)
        assert pod is not None
        batch, now = self.batch.get(self.uid(ref), 0), self.clock.now
        kinds = [EventType.DATA_VALIDATED, EventType.MODEL_INITIALIZED] if batch else []
        kinds += [EventType.TRAIN_FINISHED] if batch == TOTAL else []
        told = range(5, batch + 1, 5) if saves else ()
        saved = tuple(worlds.saved(step, time=now - timedelta(seconds=1)) for step in told)
        return Snapshot(
            run_uid=pod["metadata"]["annotations"][names.RUN_UID_ANNOTATION],
            attempt=Pod.parse(pod).attempt,
            sequence=batch,
            time=now,
            milestones=tuple(Milestone(type=kind, time=now, message=kind) for kind in kinds),  # type: ignore[arg-type]
            progress=worlds.progress(batch) if batch else None,
            checkpoints=saved,
            output=SavedOutput(path="output") if batch == TOTAL else None,
        )

    def uid(self, ref: Ref) -> str:
        pod = self.memory.get(ref)
        assert pod is not None
        return str(pod["metadata"]["uid"])


def check_step(before: FineTuneRunStatus, now: FineTuneRunStatus) -> None:
    """From one status to the next."""
    assert now.attempt >= before.attempt, "an attempt's number never goes back"
    assert now.active_seconds >= before.active_seconds
    assert before.start_time in (None, now.start_time), "the start stays"
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


TestRun = RunMachine.TestCase
TestRun.settings = settings(PROFILE, deadline=None, suppress_health_check=list(HealthCheck))
