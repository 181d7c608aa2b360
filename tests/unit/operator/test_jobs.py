"""What becomes of Jobs and pods, one step at a time."""

from collections.abc import Callable

import pytest

from finetune_operator import jobs, manifests
from finetune_operator.children import Job, Pod
from finetune_operator.memory import JOB, POD, Memory, Ref
from tests import worlds

Step = Callable[[Memory, Ref], None]


@pytest.fixture
def memory() -> Memory:
    """With the Job of a run's first attempt."""
    found = Memory(clock=worlds.Clock())
    found.add(worlds.body())
    found.add(manifests.job(worlds.run(), attempt=1, settings=worlds.SETTINGS))
    return found


def job(memory: Memory) -> Job:
    return Job.parse(memory.all(JOB)[0])


def pod(memory: Memory) -> Pod:
    return Pod.parse(memory.all(POD)[0])


def ref(memory: Memory) -> Ref:
    return Ref.of(memory.all(POD)[0])


def test_a_job_makes_one_pod_of_its_template(memory: Memory) -> None:
    assert jobs.control(memory)
    assert not jobs.control(memory)
    assert [Pod.parse(body).job_uid for body in memory.all(POD)] == [job(memory).uid]
    assert pod(memory).attempt == 1
    assert job(memory).active == 1


def test_a_suspended_job_makes_none(memory: Memory) -> None:
    body = memory.get(Ref(JOB, "ml", "support-bot-1"))
    assert body is not None
    memory.update(body | {"spec": body["spec"] | {"suspend": True}})
    assert not jobs.control(memory)
    assert memory.all(POD) == []


@pytest.mark.parametrize("code", [0, 1, 75, 137])
def test_a_job_ends_as_its_pod_does(memory: Memory, code: int) -> None:
    jobs.control(memory)
    jobs.start_pod(memory, ref(memory), ip="127.1.2.3", node="here")
    assert (pod(memory).phase, pod(memory).ip, pod(memory).node) == ("Running", "127.1.2.3", "here")
    jobs.end_pod(memory, ref(memory), exit_code=code, last_word="bye")
    assert (pod(memory).exit_code, pod(memory).last_word, pod(memory).started) == (code, "bye", worlds.NOW)
    assert not job(memory).ended
    assert jobs.control(memory)
    assert (job(memory).complete, job(memory).failed) == (code == 0, code != 0)
    assert not jobs.control(memory)


def evict(memory: Memory, found: Ref) -> None:
    jobs.evict_pod(memory, found)


def delete(memory: Memory, found: Ref) -> None:
    memory.delete_object(found)


@pytest.mark.parametrize("step", [evict, delete])
def test_a_job_whose_pod_never_ran_fails_and_makes_no_other(memory: Memory, step: Step) -> None:
    jobs.control(memory)
    step(memory, ref(memory))
    assert jobs.control(memory)
    assert job(memory).failed
    assert not jobs.control(memory)


def test_a_disruption_is_told(memory: Memory) -> None:
    jobs.control(memory)
    jobs.start_pod(memory, ref(memory))
    jobs.end_pod(memory, ref(memory), exit_code=143, disrupted="PreemptionByScheduler")
    assert pod(memory).disrupted == "PreemptionByScheduler"


def test_a_pod_that_could_not_start_has_no_start(memory: Memory) -> None:
    jobs.control(memory)
    jobs.end_pod(memory, ref(memory), exit_code=128, reason="StartError", last_word="no such folder")
    assert (pod(memory).started, pod(memory).exit_reason) == (None, "StartError")
