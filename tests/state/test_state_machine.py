"""The reconcile loop against a cluster in which everything may happen at any time, in any order, and fail half-way.

Hypothesis looks for a story that breaks a promise; what it prints is the story. STATE_PROFILE=thorough looks for long,
STATE_PROFILE=first stops at the first story without making it shorter.
"""

import logging
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from finetune_api.snapshot import EventType, LastError, Milestone, SavedOutput, Snapshot
from finetune_api.status import Phase
from finetune_operator import jobs, names
from finetune_operator.admission import Line
from finetune_operator.children import Job, Pod, owner_uid
from finetune_operator.errors import TransientError
from finetune_operator.memory import JOB, POD, RUN, Memory, Ref
from finetune_operator.names import Key
from finetune_operator.run import Run
from finetune_operator.settings import Limits
from tests import worlds
from tests.state.flaky import Crash, Fault, Flaky
from tests.state.promises import NEVER, Promises

SETTLED_WITHIN = 24
"""Passes without faults after which nothing more is written."""
STAYS_SO_FOR = 4
"""Passes, and as many half minutes, for which that is watched."""
TOTAL = 20
EXIT_CODES = (0, 1, 64, 65, 66, 73, 75, 77, 78, 137)
GPU = "nvidia.com/gpu"
KEYS = tuple(Key("ml", name) for name in ("first", "second", "third"))
LIMITS = Limits(runs_per_namespace=2, devices={GPU: 1, NEVER: 0})
SECONDS = (1, 11, 31, 70)

settings.register_profile("quick", max_examples=80, stateful_step_count=50)
settings.register_profile("thorough", max_examples=1000, stateful_step_count=80)
settings.register_profile(
    "first", max_examples=2000, stateful_step_count=50, phases=(hypothesis.Phase.generate, hypothesis.Phase.explicit)
)
PROFILE = settings.get_profile(os.environ.get("STATE_PROFILE", "quick"))


@pytest.fixture(autouse=True)
def only_errors_are_logged() -> Iterator[None]:
    """Or thousands of refusals are printed with a failure."""
    log = logging.getLogger("finetune_operator")
    level = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(level)


SPECS = st.fixed_dictionaries(
    {
        "resources.deviceResource": st.sampled_from((GPU, GPU, GPU, "", NEVER)),
        "recovery.maxRestartsWithoutProgress": st.integers(0, 4),
        "recovery.onHang": st.sampled_from(("Notify", "Restart")),
        "queue.priority": st.integers(0, 1),
        "suspend": st.sampled_from((False, False, True)),
    }
)
VERBS = st.one_of(
    st.just(("suspend", None)),
    st.just(("suspend", None)),
    st.just(("cancel", True)),
    st.tuples(st.just("activeDeadlineSeconds"), st.sampled_from((None, 20, 100, 3600))),
    st.tuples(st.just("ttlSecondsAfterFinished"), st.sampled_from((None, 0, 60))),
    st.tuples(st.just("priority"), st.integers(-1, 2)),
)
WHICH = st.sampled_from(KEYS)
PLANS = st.dictionaries(st.integers(0, 3), st.sampled_from(Fault), max_size=2)


class RunMachine(RuleBasedStateMachine):
    """Three names in one namespace: their runs, perhaps deleted and made again, and an operator that may crash."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = worlds.Clock()
        self.memory = Memory(clock=self.clock, limits=LIMITS)
        self.promises = Promises(self.memory, limits=LIMITS)
        self.memory.on_change = self.promises.note
        self.flaky = Flaky(self.memory)
        self.flaky.on_delete = self.promises.excuse
        self.batch: dict[str, int] = {}
        """Steps done by each pod's trainer."""
        self.start_operator()

    # The user.

    @initialize(specs=st.tuples(SPECS, SPECS, SPECS))
    def create_runs(self, specs: tuple[dict[str, Any], ...]) -> None:
        for key, spec in zip(KEYS, specs, strict=True):
            self.memory.add(worlds.body(spec, name=key.name, uid=None, creationTimestamp=None))

    @precondition(lambda self: len(self.memory.all(RUN)) < len(KEYS))
    @rule(spec=SPECS)
    def create_one_again(self, spec: dict[str, Any]) -> None:
        there = {body["metadata"]["name"] for body in self.memory.all(RUN)}
        name = next(key.name for key in KEYS if key.name not in there)
        self.memory.add(worlds.body(spec, name=name, uid=None, creationTimestamp=None))

    @rule(key=WHICH, verb=VERBS)
    def turn_a_verb(self, key: Key, verb: tuple[str, Any]) -> None:
        found = self.memory.get(Ref.run(key))
        if found is None:
            return
        name, value = verb
        spec = found["spec"]
        if name == "suspend":
            spec["suspend"] = not spec.get("suspend")
        elif name == "priority":
            spec.setdefault("queue", {})["priority"] = value
        elif value is None:
            spec.pop(name, None)
        else:
            spec[name] = value
        self.memory.update(found)

    @rule(key=WHICH, what=st.sampled_from(("quota", "room", "room", "delete")))
    def administrator(self, key: Key, what: str) -> None:
        match what:
            case "quota":
                self.memory.refuse = lambda body: "exceeded quota" if body["kind"] == JOB else None
            case "room":
                self.memory.refuse = lambda _: None
            case "delete" if self.memory.get(Ref.run(key)):
                self.memory.delete_object(Ref.run(key))

    @rule(seconds=st.sampled_from(SECONDS))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.tick(seconds)

    # Somebody else.

    @rule(key=WHICH, ahead=st.integers(0, 1))
    def squat_on_a_name(self, key: Key, ahead: int) -> None:
        """A Job of another one's has the name of an attempt."""
        found = self.memory.get(Ref.run(key))
        name = names.job(key.name, (found or {"status": {}})["status"].get("attempt", 0) + ahead)
        ref = Ref(JOB, key.namespace, name)
        if self.memory.get(ref) is None and self.memory.refuse({"kind": JOB}) is None:
            # as the API server has it: spec and status of a Job that somebody paused
            spec = {"suspend": True, "template": {"spec": {}}}
            self.memory.add({"kind": JOB, "metadata": {"name": name, "namespace": key.namespace}, "spec": spec})

    @precondition(lambda self: bool(self.squatters()))
    @rule(data=st.data())
    def the_name_becomes_free(self, data: st.DataObject) -> None:
        self.memory.delete_object(self.pick(data, self.squatters()))

    @rule(data=st.data(), kind=st.sampled_from((RUN, JOB, POD)))
    def edit_what_is_another_s(self, data: st.DataObject, kind: str) -> None:
        refs = [Ref.of(body) for body in self.memory.all(kind)]
        if refs:
            found = self.memory.get(self.pick(data, refs))
            assert found is not None
            notes = found["metadata"].setdefault("annotations", {})
            notes["example.com/seen"] = str(int(notes.get("example.com/seen", 0)) + 1)
            found["metadata"].setdefault("labels", {})["example.com/team"] = "other"
            self.memory.update(found)

    # The cluster.

    @rule(first=st.sampled_from((jobs.control, Memory.collect_garbage)))
    def controllers(self, first: Callable[[Memory], bool]) -> None:
        first(self.memory)

    @precondition(lambda self: bool(self.pods(started=False)))
    @rule(data=st.data(), seen=st.booleans())
    def start_pod(self, data: st.DataObject, seen: bool) -> None:
        ref = self.pick(data, self.pods(started=False))
        jobs.start_pod(self.memory, ref)
        if seen:
            self.look(self.key_of(ref))

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
            self.count(ref)
            jobs.evict_pod(self.memory, ref)
        elif kind == POD:
            self.memory.delete_object(ref)
        else:
            self.delete_job(ref)

    def delete_job(self, ref: Ref) -> None:
        """One whose pod wasn't known to run may be created again."""
        found = self.memory.get(ref)
        assert found is not None
        run = self.promises.runs.get(owner_uid(found) or "")
        if run is not None:
            self.promises.excuse(run, Job.parse(found))
        self.memory.delete_object(ref)

    # The trainer.

    @precondition(lambda self: bool(self.pods(started=True)))
    @rule(data=st.data(), steps=st.integers(0, 7), saves=st.booleans(), seconds=st.sampled_from(SECONDS))
    def report(self, data: st.DataObject, steps: int, saves: bool, seconds: float) -> None:
        ref = self.pick(data, self.pods(started=True))
        self.clock.tick(seconds)
        self.train(ref, steps=steps)
        self.memory.snapshots[self.key_of(ref)] = self.snapshot(ref, saves=saves)
        self.look(self.key_of(ref))

    @precondition(lambda self: bool(self.pods(started=True)))
    @rule(data=st.data())
    def hang(self, data: st.DataObject) -> None:
        ref = self.pick(data, self.pods(started=True))
        said = self.snapshot(ref, saves=True)
        if said.progress is not None:
            stuck = {"last_step_time": self.clock.now - timedelta(hours=1), "cpu_utilization": 0.0}
            said = said.model_copy(update={"progress": said.progress.model_copy(update=stuck)})
            self.memory.snapshots[self.key_of(ref)] = said
            self.look(self.key_of(ref))

    @rule(key=WHICH, steps=st.integers(1, 4))
    def old_answer_arrives_late(self, key: Key, steps: int) -> None:
        now = self.memory.snapshots.get(key)
        if now and now.progress and now.progress.batch >= steps:
            old = worlds.progress(now.progress.batch - steps)
            self.memory.snapshots[key] = now.model_copy(update={"progress": old, "checkpoints": ()})

    # The operator.

    @rule(key=WHICH, stale=st.integers(0, 6), plan=PLANS)
    def reconcile(self, key: Key, stale: int, plan: dict[int, Fault]) -> None:
        self.flaky.plan, self.flaky.stale, self.flaky.tried = plan, stale, 0
        try:
            self.look(key)
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
            self.look_at_all()

    def start_operator(self) -> None:
        """A new process: it knows what is recorded, and nothing else."""
        self.memory.line = Line(LIMITS)
        for body in self.memory.all(RUN):
            self.memory.line.see(Run.parse(body))
        self.reconciler = worlds.reconciler(self.flaky, line=self.memory.line, clock=self.clock)

    def look(self, key: Key) -> None:
        worlds.finish(self.reconciler(key))
        for deleted in self.flaky.deleted:
            assert deleted.status.is_finished, "a run is deleted only after its end"
            assert deleted.spec is not None
            assert deleted.spec.ttl_seconds_after_finished is not None, "and if that is asked for"
        self.flaky.deleted.clear()

    def look_at_all(self) -> None:
        for key in KEYS:
            self.look(key)

    # The end.

    def teardown(self) -> None:
        """With the faults off nothing more is written after some passes; and once all may run, all runs end."""
        self.settle()
        self.memory.refuse = lambda _: None
        for ref in self.squatters():
            self.memory.delete_object(ref)
        for key in KEYS:
            self.let_it_go_on(key)
        for _ in range(20):
            self.settle(stays_for=1)
            if all(run.status.is_finished for run in self.promises.all_runs()):
                break
            for ref in self.pods(started=False):
                jobs.start_pod(self.memory, ref)
            self.look_at_all()
            for ref in self.pods(started=True):
                self.train(ref, steps=TOTAL)
                self.end(ref, code=0, word=True, disrupted=False)
        self.settle()
        for run in self.promises.all_runs():
            assert run.status.is_finished, f"{run.key} ends"
            assert run.status.phase in (Phase.COMPLETED, Phase.FAILED, Phase.CANCELED)

    def let_it_go_on(self, key: Key) -> None:
        found = self.memory.get(Ref.run(key))
        if found is not None:
            found["spec"]["suspend"] = False
            self.memory.update(found)

    def settle(self, *, stays_for: int = STAYS_SO_FOR) -> None:
        quiet = 0
        for _ in range(SETTLED_WITHIN):
            quiet = 0 if self.busy_pass() else quiet + 1
            if quiet == stays_for:
                break
        assert quiet == stays_for, "something is written again and again"

    def busy_pass(self) -> int:
        """How much the operator changes in a pass over all runs, the controllers having done their part."""
        self.clock.tick(31)
        self.memory.collect_garbage()
        jobs.control(self.memory)
        before = self.promises.changes
        self.look_at_all()
        return self.promises.changes - before

    # What the rules need.

    def squatters(self) -> list[Ref]:
        return [Ref.of(body) for body in self.memory.all(JOB) if owner_uid(body) is None]

    def pods(self, *, started: bool | None = None) -> list[Ref]:
        """The pods that haven't ended."""
        bodies = [body for body in self.memory.all(POD) if not Pod.parse(body).ended]
        return [Ref.of(body) for body in bodies if started in (None, Pod.parse(body).started is not None)]

    @staticmethod
    def pick(data: st.DataObject, refs: list[Ref]) -> Ref:
        return data.draw(st.sampled_from(refs))

    def body(self, ref: Ref) -> Any:
        found = self.memory.get(ref)
        assert found is not None
        return found

    def key_of(self, ref: Ref) -> Key:
        return Key(ref.namespace, self.body(ref)["metadata"]["labels"][names.RUN_LABEL])

    def run_uid(self, ref: Ref) -> str:
        return str(self.body(ref)["metadata"]["annotations"][names.RUN_UID_ANNOTATION])

    def train(self, ref: Ref, *, steps: int) -> None:
        self.batch[ref.name] = min(TOTAL, self.batch.get(ref.name, 0) + steps)

    def count(self, ref: Ref) -> None:
        """A pod ends now."""
        started = Pod.parse(self.body(ref)).started
        if started is not None:
            self.promises.ran[self.run_uid(ref)] += round((self.clock.now - started).total_seconds())

    def end(self, ref: Ref, *, code: int, word: bool, disrupted: bool) -> None:
        error = LastError(reason="Told", message="It is told.", exit_code=code) if code else None
        said = self.snapshot(ref, saves=True).model_copy(update={"error": error}).last_word() if word else ""
        why = "EvictionByEvictionAPI" if disrupted else ""
        if code == 0:
            self.promises.succeeded.add((self.run_uid(ref), Pod.parse(self.body(ref)).attempt))
        self.count(ref)
        jobs.end_pod(self.memory, ref, exit_code=code, last_word=said, disrupted=why)

    def snapshot(self, ref: Ref, *, saves: bool) -> Snapshot:
        """What the pod's trainer says: milestones by its steps, a checkpoint every five."""
        batch, now = self.batch.get(ref.name, 0), self.clock.now
        kinds = [EventType.DATA_VALIDATED, EventType.MODEL_INITIALIZED] if batch else []
        kinds += [EventType.TRAIN_FINISHED] if batch == TOTAL else []
        told = range(5, batch + 1, 5) if saves else ()
        saved = tuple(worlds.saved(step, time=now - timedelta(seconds=1)) for step in told)
        return Snapshot(
            run_uid=self.run_uid(ref),
            attempt=Pod.parse(self.body(ref)).attempt,
            sequence=batch,
            time=now,
            milestones=tuple(Milestone(type=kind, time=now, message=kind) for kind in kinds),  # type: ignore[arg-type]
            progress=worlds.progress(batch, last_step_time=now, cpu_utilization=0.9) if batch else None,
            checkpoints=saved,
            output=SavedOutput(path="output") if batch == TOTAL else None,
        )


TestRun = RunMachine.TestCase
TestRun.settings = settings(PROFILE, deadline=None, suppress_health_check=list(HealthCheck))
