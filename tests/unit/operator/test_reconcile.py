"""The loop over the in-memory cluster: what is written, in which order, how often, and when it looks again."""

from collections.abc import Mapping
from typing import Any

import pytest

from finetune_api.snapshot import EventType, Snapshot
from finetune_api.status import ConditionType, FineTuneRunStatus, Phase
from finetune_operator import jobs
from finetune_operator.errors import ConflictError, TransientError
from finetune_operator.memory import CLAIM, EVENT, JOB, POD, RUN, Memory, Object, Ref
from finetune_operator.run import Run
from finetune_operator.settings import Limits
from tests import worlds
from tests.state.flaky import Crash, Fault, Flaky
from tests.worlds import KEY


class Story:
    """A cluster with one run, and an operator."""

    def __init__(self, changes: Mapping[str, Any] | None = None) -> None:
        self.clock = worlds.Clock()
        self.memory = Memory(clock=self.clock)
        self.cluster = Flaky(self.memory)
        self.memory.add(worlds.body(changes))
        self.start_operator()

    def start_operator(self) -> None:
        """A new process, which remembers nothing."""
        self.reconcile = worlds.reconciler(self.cluster, line=self.memory.line, clock=self.clock)

    def look(self, times: int = 1) -> float | None:
        delay = None
        for _ in range(times):
            delay = worlds.finish(self.reconcile(KEY))
        return delay

    def job_controller(self) -> None:
        jobs.control(self.memory)

    def status(self) -> FineTuneRunStatus:
        """As it was last written."""
        return Run.parse(self.memory.all(RUN)[0]).status

    @property
    def pod(self) -> Ref:
        """The newest pod."""
        return Ref.of(self.memory.all(POD)[-1])

    @property
    def version(self) -> str:
        version: str = self.memory.all(RUN)[0]["metadata"]["resourceVersion"]
        return version

    def start(self) -> None:
        """Up to a running pod that was seen."""
        self.look(2)
        self.job_controller()
        jobs.start_pod(self.memory, self.pod)
        self.look()

    def answer(self, snapshot: Snapshot) -> None:
        self.memory.snapshots[KEY] = snapshot


def names(memory: Memory, kind: str) -> list[str]:
    return [body["metadata"]["name"] for body in memory.all(kind)]


def test_an_attempt_is_recorded_before_its_job_is_created() -> None:
    story = Story()
    assert story.look() == 0, "its own write wakes nobody"
    assert (story.status().attempt, names(story.memory, JOB)) == (1, [])
    assert story.look() == worlds.SETTINGS.queued_seconds
    assert names(story.memory, JOB) == ["support-bot-1"]
    assert names(story.memory, CLAIM) == ["support-bot-6c3f2a1e"]


def test_a_claim_that_was_named_is_not_created() -> None:
    story = Story({"storage.claimName": "shared"})
    story.look(2)
    assert names(story.memory, CLAIM) == []
    assert names(story.memory, JOB) == ["support-bot-1"]


def test_a_run_takes_three_writes_besides_its_progress() -> None:
    """One to begin, one when it runs, one at the end; claim and Job are two more."""
    story = Story()
    versions = [story.version]
    for step in (story.look, story.look, story.job_controller, story.look, story.look):
        step()
        versions.append(story.version)
    jobs.start_pod(story.memory, story.pod)
    story.look(3)
    versions.append(story.version)
    jobs.end_pod(story.memory, story.pod, exit_code=0, last_word=worlds.last_word())
    story.look()
    story.job_controller()
    story.look(3)
    versions.append(story.version)
    assert story.status().phase is Phase.COMPLETED
    assert len(set(versions)) - 1 == 3


def test_each_entry_of_the_history_is_posted_once_as_an_event() -> None:
    story = Story()
    story.start()
    story.answer(worlds.snapshot(5))
    story.look(2)
    posted = [body["reason"] for body in story.memory.all(EVENT)]
    assert posted == ["Created", "Started", "DataValidated", "ModelInitialized", "TrainUpdated"]
    story.clock.tick(60)
    story.answer(worlds.snapshot(9))
    story.look(2)
    assert [body["reason"] for body in story.memory.all(EVENT)] == posted, (
        "progress is replaced in place, and not posted"
    )


def test_progress_alone_waits_its_turn_and_a_transition_does_not() -> None:
    story = Story()
    story.start()
    story.clock.tick(3)
    story.answer(worlds.snapshot(5, milestones=()))
    assert story.look() == pytest.approx(7)
    assert not story.status().progress
    story.clock.tick(7)
    assert story.look() is None
    assert story.status().progress
    story.clock.tick(1)
    story.answer(worlds.snapshot(6))
    story.look()
    progress = story.status().progress
    assert progress is not None
    assert progress.batch == 6, "data and model are ready, and so the progress is told too"


def test_what_lacks_a_child_is_told_and_tried_again() -> None:
    story = Story()
    story.look()
    story.memory.refuse = lambda body: "exceeded quota" if body["kind"] == CLAIM else None
    assert story.look() == 15
    assert story.status().phase is Phase.QUEUED
    queue = story.status().queue
    assert queue is not None
    assert "exceeded quota" in queue.message
    version = story.version
    story.look()
    assert story.version == version, "told once"
    story.memory.refuse = lambda _: None
    story.look()
    assert names(story.memory, JOB) == ["support-bot-1"]
    assert story.status().phase is Phase.STARTING
    assert [event.type for event in story.status().events] == [EventType.CREATED, EventType.QUEUED]


def test_the_job_of_a_deleted_run_of_the_same_name_is_left_alone() -> None:
    story = Story()
    story.look(2)
    story.memory.delete_object(Ref.run(KEY))
    story.memory.add(worlds.body(uid="another-run-altogether"))
    story.look(2)
    assert story.status().phase is Phase.QUEUED
    assert story.status().conditions[1].reason == "NameTaken"
    story.memory.collect_garbage()
    story.look()
    assert names(story.memory, JOB) == ["support-bot-1"]
    assert story.status().phase is Phase.STARTING


def test_a_stale_read_creates_nothing_again() -> None:
    """The Job is there and its pod has run, but the operator's cache still shows the run as it was recorded."""
    story = Story()
    story.start()
    story.cluster.stale = 1
    uid = story.memory.all(JOB)[0]["metadata"]["uid"]
    with pytest.raises(ConflictError):
        story.look()
    assert [body["metadata"]["uid"] for body in story.memory.all(JOB)] == [uid]


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.LOST_REQUEST, Fault.LOST_REPLY])
@pytest.mark.parametrize("write", range(8))
def test_an_operator_that_falls_at_any_write_comes_to_the_same_end(fault: Fault, write: int) -> None:
    story = Story()
    story.cluster.plan = {write: fault}
    for step in (None, story.job_controller, "start", None, "end", story.job_controller, None):
        if step == "start":
            jobs.start_pod(story.memory, story.pod)
        elif step == "end":
            jobs.end_pod(story.memory, story.pod, exit_code=0, last_word=worlds.last_word())
        elif callable(step):
            step()
        for _ in range(3):
            try:
                story.look()
            except TransientError:
                pass
            except Crash:
                story.start_operator()
    assert story.status().phase is Phase.COMPLETED
    assert [event.type.value for event in story.status().events] == [
        "CREATED",
        "STARTED",
        "DATA_VALIDATED",
        "MODEL_INITIALIZED",
        "TRAIN_UPDATED",
        "COMPLETED",
    ]
    assert len(story.memory.all(JOB)) == 1


def test_a_late_run_is_looked_at_again_and_says_what_it_waits_for() -> None:
    story = Story()
    story.look(2)
    assert story.look() == worlds.SETTINGS.queued_seconds
    story.clock.tick(6)
    job = story.memory.all(JOB)[0]
    involved: Object = {"kind": JOB, "name": "support-bot-1", "uid": job["metadata"]["uid"]}
    warning = {"kind": EVENT, "metadata": {"name": "w", "namespace": "ml"}, "type": "Warning"}
    story.memory.add(warning | {"involvedObject": involved, "reason": "FailedCreate", "message": "exceeded quota"})
    assert story.look() == 15
    assert story.status().phase is Phase.QUEUED
    queue = story.status().queue
    assert queue is not None
    assert "exceeded quota" in queue.message


def test_a_run_that_is_gone_is_nothing_to_do() -> None:
    story = Story()
    story.memory.delete_object(Ref.run(KEY))
    assert story.look() is None
    assert story.cluster.done == 0


def test_a_finished_run_is_left_alone_even_without_its_job() -> None:
    story = Story()
    story.start()
    jobs.end_pod(story.memory, story.pod, exit_code=65)
    story.job_controller()
    story.look()
    assert story.status().phase is Phase.FAILED
    done = story.cluster.done
    story.memory.delete_object(Ref(JOB, KEY.namespace, "support-bot-1"))
    story.memory.collect_garbage()
    story.clock.tick(86_400)
    assert story.look() is None
    assert story.cluster.done == done
    assert names(story.memory, JOB) == []


def test_the_next_attempt_waits_for_the_old_pod_to_be_gone() -> None:
    story = Story()
    story.start()
    old = story.pod
    story.memory.delete_object(Ref(JOB, KEY.namespace, "support-bot-1"))
    story.memory.collect_garbage()
    story.look(3)
    assert story.status().attempt == 1
    assert names(story.memory, JOB) == []
    jobs.end_pod(story.memory, old, exit_code=75)
    story.look(2)
    assert story.status().attempt == 2
    assert names(story.memory, JOB) == ["support-bot-2"]


def change(story: Story, **spec: Any) -> None:
    body = story.memory.get(Ref.run(KEY))
    assert body is not None
    body["spec"] |= spec
    story.memory.update(body)


def events(story: Story) -> list[str]:
    return [event.type.value for event in story.status().events]


def test_a_run_is_paused_and_goes_on_from_its_checkpoint() -> None:
    story = Story()
    story.start()
    story.clock.tick(20)
    story.answer(worlds.snapshot(5, checkpoints=(worlds.saved(),)))
    story.look()
    change(story, suspend=True)
    assert story.look() == worlds.SETTINGS.queued_seconds
    assert names(story.memory, JOB) == []
    stopping = story.status().condition(ConditionType.RECONCILING)
    assert stopping is not None
    assert stopping.reason == "Stopping"
    pod = story.pod
    story.memory.collect_garbage()
    story.look()
    assert story.status().phase is Phase.RUNNING, "not paused before its pod has ended"
    story.clock.tick(5)
    jobs.end_pod(story.memory, pod, exit_code=75)
    assert story.look() is None
    assert story.status().phase is Phase.SUSPENDED
    done = story.cluster.done
    story.look(3)
    assert story.cluster.done == done, "told once"
    change(story, suspend=False)
    story.look(2)
    assert (story.status().attempt, names(story.memory, JOB)) == (2, ["support-bot-2"])
    assert events(story)[-2:] == ["SUSPENDED", "RESUMED"]


def test_a_run_is_canceled_at_once_and_once() -> None:
    story = Story()
    story.start()
    change(story, cancel=True)
    story.look()
    story.memory.collect_garbage()
    jobs.end_pod(story.memory, story.pod, exit_code=75)
    story.look()
    assert (story.status().phase, events(story)[-1]) == (Phase.CANCELED, "CANCELED")
    done = story.cluster.done
    story.look(3)
    assert (story.cluster.done, names(story.memory, JOB)) == (done, [])


def test_a_run_is_deleted_when_its_time_after_the_end_is_over() -> None:
    story = Story({"ttlSecondsAfterFinished": 60, "resources.nodes": 2})
    assert story.look() == 0, "to learn when"
    assert story.look() == pytest.approx(60, abs=1)
    story.clock.tick(59)
    assert story.look() == pytest.approx(1, abs=0.2)
    story.clock.tick(1.1)
    assert story.look() == 15, "to see that it is gone"
    assert story.memory.all(RUN) == []
    assert story.look() is None


def test_a_run_that_its_user_keeps_at_the_last_moment_is_kept() -> None:
    """It was asked for between the look and the deletion."""
    story = Story({"ttlSecondsAfterFinished": 0, "resources.nodes": 2})
    story.look()
    story.cluster.plan, story.cluster.tried = {0: Fault.CONFLICT}, 0
    with pytest.raises(ConflictError):
        story.look()
    change(story, ttlSecondsAfterFinished=10_000)
    story.look(2)
    assert len(story.memory.all(RUN)) == 1


def test_a_deadline_is_recorded_before_anything_is_ended() -> None:
    story = Story({"activeDeadlineSeconds": 60})
    story.start()
    story.clock.tick(61)
    assert story.look() == 0
    failure = story.status().failure
    assert failure is not None
    assert (failure.reason, names(story.memory, JOB)) == ("DeadlineExceeded", ["support-bot-1"])
    story.start_operator()
    story.look()
    assert names(story.memory, JOB) == []
    story.memory.collect_garbage()
    jobs.end_pod(story.memory, story.pod, exit_code=75)
    story.look(2)
    assert (story.status().phase, story.status().attempt) == (Phase.FAILED, 1)


def test_nobody_begins_while_it_is_not_known_whether_another_was_recorded() -> None:
    """The reply to the first one's record is lost: it counts, until the next version of it is seen."""
    memory = Memory(clock=worlds.Clock(), limits=Limits(1))
    for number, name in enumerate(("first", "second")):
        memory.add(worlds.body(name=name, uid=name, creationTimestamp=f"2026-03-01T12:00:0{number}Z"))
    cluster = Flaky(memory)
    reconcile = worlds.reconciler(cluster, line=memory.line, clock=memory.clock)
    first, second = (KEY._replace(name=name) for name in ("first", "second"))
    cluster.plan = {0: Fault.LOST_REQUEST}
    with pytest.raises(TransientError):
        worlds.finish(reconcile(first))
    assert worlds.finish(reconcile(second)) == 10
    told = {body["metadata"]["name"]: Run.parse(body).status for body in memory.all(RUN)}
    assert (told["first"].attempt, told["second"].attempt) == (0, 0)
    assert told["second"].queue is not None
    assert told["second"].queue.position == 1
    worlds.finish(reconcile(first))
    assert Run.parse(memory.all(RUN)[0]).status.attempt == 1


def test_a_job_of_an_earlier_attempt_is_ended_and_the_newest_one_is_left_alone() -> None:
    story = Story()
    story.start()
    first = story.memory.all(JOB)[0]
    jobs.end_pod(story.memory, story.pod, exit_code=1)
    story.job_controller()
    story.look(3)
    stray = {**first, "metadata": {**first["metadata"], "uid": "stray", "name": "support-bot-1"}, "status": {}}
    story.memory.delete_object(Ref.of(first))
    story.memory.add(stray)
    story.look()
    assert [job["metadata"]["name"] for job in story.memory.all(JOB)] == ["support-bot-2"]
    assert story.status().attempt == 2
