"""The cluster in memory behaves as the API server does, where the operator can tell."""

import pytest

from finetune_api.status import FineTuneRunStatus
from finetune_operator import jobs, manifests
from finetune_operator.errors import ConflictError, ExistsError, GoneError, RefusedError, TakenError, UserError
from finetune_operator.memory import CLAIM, EVENT, JOB, POD, Memory, Ref
from finetune_operator.run import Run
from finetune_operator.settings import Limits
from finetune_operator.world import World
from tests import worlds
from tests.worlds import KEY

JOB_REF = Ref(JOB, KEY.namespace, "support-bot-1")


@pytest.fixture
def memory() -> Memory:
    """With one run in it."""
    found = Memory(clock=worlds.Clock())
    found.add(worlds.body())
    return found


def observe(memory: Memory) -> World:
    world = worlds.finish(memory.observe(KEY, fresh=True, now=worlds.NOW))
    assert world is not None
    return world


def create_children(memory: Memory) -> Run:
    run = observe(memory).run
    for manifest in (manifests.claim(run), manifests.job(run, attempt=1, settings=worlds.SETTINGS)):
        worlds.finish(memory.create(run, manifest))
    return run


def test_an_object_gets_a_uid_a_version_and_a_time(memory: Memory) -> None:
    body = worlds.body(name="other", uid=None, creationTimestamp=None, resourceVersion=None)
    found = memory.add(body)["metadata"]
    assert len(found["uid"]) == 36
    assert found["creationTimestamp"] == "2026-03-01T12:00:00Z"
    assert int(found["resourceVersion"]) > 1


def test_a_name_is_taken_once(memory: Memory) -> None:
    with pytest.raises(ExistsError):
        memory.add(worlds.body())


def test_what_admission_refuses_is_not_there(memory: Memory) -> None:
    memory.refuse = lambda body: "exceeded quota" if body["kind"] == CLAIM else None
    with pytest.raises(RefusedError, match="exceeded quota"):
        create_children(memory)
    assert memory.all(CLAIM) == []


def test_only_the_version_that_was_read_can_be_replaced(memory: Memory) -> None:
    old = memory.get(Ref.run(KEY))
    assert old is not None
    new = memory.update(old | {"status": {"attempt": 1}})
    assert new["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"]
    with pytest.raises(ConflictError):
        memory.update(old | {"status": {"attempt": 2}})


def test_a_write_that_changes_nothing_is_no_new_version(memory: Memory) -> None:
    old = memory.get(Ref.run(KEY))
    assert old is not None
    assert memory.update(old) == old


def test_the_generation_counts_changes_of_the_spec_alone(memory: Memory) -> None:
    old = memory.get(Ref.run(KEY))
    assert old is not None
    told = memory.update(old | {"status": {"attempt": 1}})
    assert told["metadata"]["generation"] == 1
    assert memory.update(told | {"spec": told["spec"] | {"suspend": True}})["metadata"]["generation"] == 2


def test_what_was_handed_out_can_be_changed_without_harm(memory: Memory) -> None:
    found = memory.get(Ref.run(KEY))
    assert found is not None
    found["spec"]["model"]["uri"] = "changed"
    assert memory.get(Ref.run(KEY)) != found


def test_what_is_gone_is_told(memory: Memory) -> None:
    old = memory.get(Ref.run(KEY))
    assert old is not None
    memory.delete_object(Ref.run(KEY))
    with pytest.raises(GoneError):
        memory.update(old)
    with pytest.raises(GoneError):
        memory.delete_object(Ref.run(KEY))
    assert worlds.finish(memory.observe(KEY, fresh=True, now=worlds.NOW)) is None


def test_a_status_is_written_to_the_version_and_the_run_that_was_read(memory: Memory) -> None:
    run = observe(memory).run
    written = worlds.finish(memory.write_status(run, FineTuneRunStatus(attempt=1)))
    assert written.status.attempt == 1
    with pytest.raises(ConflictError):
        worlds.finish(memory.write_status(run, FineTuneRunStatus(attempt=2)))
    memory.delete_object(Ref.run(KEY))
    memory.add(worlds.body(uid="another"))
    with pytest.raises(GoneError):
        worlds.finish(memory.write_status(written, FineTuneRunStatus(attempt=2)))


def test_a_child_is_created_once_and_another_run_s_is_left_alone(memory: Memory) -> None:
    run = create_children(memory)
    before = memory.get(JOB_REF)
    create_children(memory)
    assert memory.get(JOB_REF) == before
    memory.delete_object(Ref.run(KEY))
    memory.add(worlds.body(uid="another"))
    other = observe(memory).run
    with pytest.raises(TakenError, match="support-bot-1"):
        worlds.finish(memory.create(other, manifests.job(other, attempt=1, settings=worlds.SETTINGS)))
    assert run.metadata.uid != other.metadata.uid
    assert observe(memory).jobs == ()


def test_the_world_has_the_run_s_children_and_nobody_else_s(memory: Memory) -> None:
    create_children(memory)
    jobs.control(memory)
    memory.snapshots[KEY] = worlds.snapshot()
    world = observe(memory)
    assert [job.name for job in world.jobs] == ["support-bot-1"]
    assert [pod.job_uid for pod in world.pods] == [world.jobs[0].uid]
    assert world.claim is not None
    assert world.snapshot == worlds.snapshot()


def test_garbage_goes_from_owner_to_owned_and_the_claim_stays(memory: Memory) -> None:
    create_children(memory)
    jobs.control(memory)
    assert not memory.collect_garbage()
    memory.delete_object(Ref.run(KEY))
    assert memory.collect_garbage()
    assert (memory.all(JOB), len(memory.all(POD))) == ([], 1)
    assert memory.collect_garbage()
    assert memory.all(POD) == []
    assert not memory.collect_garbage()
    assert len(memory.all(CLAIM)) == 1


def test_a_running_pod_is_deleted_when_it_has_ended(memory: Memory) -> None:
    create_children(memory)
    jobs.control(memory)
    pod = Ref.of(memory.all(POD)[0])
    jobs.start_pod(memory, pod)
    memory.delete_object(pod)
    memory.delete_object(pod)
    assert observe(memory).pods[0].deletion
    jobs.end_pod(memory, pod, exit_code=75)
    assert memory.all(POD) == []
    assert observe(memory).jobs[0].failed


def test_an_event_is_posted_once(memory: Memory) -> None:
    event = {"kind": EVENT, "metadata": {"name": "e", "namespace": "ml"}, "type": "Normal", "reason": "Created"}
    worlds.finish(memory.post_event(event))
    worlds.finish(memory.post_event(event | {"reason": "Else"}))
    assert [body["reason"] for body in memory.all(EVENT)] == ["Created"]


def test_warnings_are_those_about_the_run_s_children(memory: Memory) -> None:
    create_children(memory)
    world = worlds.world(worlds.run(status=worlds.status()), jobs=observe(memory).jobs)
    for number, uid in enumerate((world.jobs[0].uid, "another")):
        involved = {"kind": JOB, "name": "x", "uid": uid}
        metadata = {"name": f"e{number}", "namespace": "ml"}
        for kind in ("Warning", "Normal"):
            event = {"kind": EVENT, "metadata": metadata | {"name": f"{kind}{number}"}, "involvedObject": involved}
            memory.add(event | {"type": kind, "reason": kind, "message": "m"})
    assert [warning.reason for warning in worlds.finish(memory.warnings(world))] == ["Warning"]


def test_whose_turn_it_is_follows_what_is_kept() -> None:
    memory = Memory(clock=worlds.Clock(), limits=Limits(1))
    for number, name in enumerate(("first", "second")):
        memory.add(worlds.body(name=name, uid=name, creationTimestamp=f"2026-03-01T12:00:0{number}Z"))
    assert memory.line.called() == {"first"}
    memory.delete_object(Ref.run(KEY._replace(name="first")))
    assert memory.line.called() == {"second"}


def test_exactly_the_child_that_was_seen_is_deleted(memory: Memory) -> None:
    run = create_children(memory)
    (job,) = observe(memory).jobs
    memory.delete_object(JOB_REF)
    create_children(memory)
    worlds.finish(memory.delete(run, job))
    assert len(memory.all(JOB)) == 1, "another one of the same name"
    worlds.finish(memory.delete(run, observe(memory).jobs[0]))
    worlds.finish(memory.delete(run, job))
    assert memory.all(JOB) == []


def test_exactly_the_version_of_a_run_that_was_seen_is_deleted(memory: Memory) -> None:
    old = observe(memory).run
    written = worlds.finish(memory.write_status(old, FineTuneRunStatus(attempt=1)))
    with pytest.raises(ConflictError):
        worlds.finish(memory.delete_run(old))
    worlds.finish(memory.delete_run(written))
    worlds.finish(memory.delete_run(written))
    assert memory.get(Ref.run(KEY)) is None
    memory.add(worlds.body(uid="another"))
    worlds.finish(memory.delete_run(written))
    assert memory.get(Ref.run(KEY)) is not None


def test_the_model_of_another_run_is_found_in_the_same_namespace(memory: Memory) -> None:
    memory.add(worlds.body({"model.uri": f"run://{KEY.name}"}, name="child", uid="child"))
    world = worlds.finish(memory.observe(KEY._replace(name="child"), fresh=True, now=worlds.NOW))
    assert world is not None
    assert isinstance(world.model, UserError)
    assert "hasn't finished" in str(world.model)
