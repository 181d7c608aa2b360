"""Several pods of one attempt: what they are told of each other, and which of them speaks for all."""

from typing import Any

import pytest

from finetune_api.snapshot import PEER_LOST, ExitCode
from finetune_operator import failures, gang, jobs, manifests, names, policy, status
from finetune_operator.children import Pod
from finetune_operator.memory import JOB, POD, Memory, Ref
from finetune_operator.policy import Action
from finetune_operator.run import Run
from finetune_operator.settings import Settings
from finetune_operator.world import World
from tests import worlds

TWO: dict[str, Any] = {"resources.nodes": 2, "storage.claimTemplate.accessMode": "ReadWriteMany"}


def run(attempt: int = 1, **changes: Any) -> Run:
    return worlds.run({**TWO, **changes}, status=worlds.status(attempt))


def member(index: int, make: Any = worlds.running, *given: Any, **changes: Any) -> Pod:
    found: Pod = make(*given, **({"name": f"pod-{index}", "uid": f"uid-{index}", "index": index} | changes))
    return found


def world(*pods: Pod, **changes: Any) -> World:
    return worlds.world(run(), **({"jobs": (worlds.job(),), "pods": pods} | changes))


def word(reason: str, code: int) -> str:
    return worlds.last_word(code, reason=reason)


def variables(changes: dict[str, Any]) -> dict[str, Any]:
    job = manifests.job(worlds.run(changes), attempt=3, settings=Settings())
    entries = job["spec"]["template"]["spec"]["containers"][0]["env"]
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in entries if e["name"].startswith("PET_")}


def test_one_pod_with_one_device_is_told_nothing() -> None:
    assert variables({}) == {}


def test_one_pod_with_several_devices_starts_a_process_for_each() -> None:
    assert variables({"resources.devicesPerNode": 8}) == {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "8"}


def test_pods_on_several_nodes_find_the_first_by_name() -> None:
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    assert variables(TWO) == {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": index,
        "PET_MASTER_ADDR": f"support-bot-3-0.{names.service(worlds.UID)}",
        "PET_MASTER_PORT": "9402",
    }


def test_the_service_exposes_no_port_and_knows_the_pods_of_this_run_alone() -> None:
    service = manifests.service(run())
    assert service is not None
    assert service["spec"]["clusterIP"] == "None"
    assert "ports" not in service["spec"]
    labels = manifests.job(run(), attempt=1, settings=Settings())["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert worlds.UID[:8] in next(iter(service["spec"]["selector"].values()))
    assert manifests.service(worlds.run()) is None


@pytest.mark.parametrize("attempt", [1, 99_999])
def test_the_pods_of_the_longest_name_are_hosts_with_a_name_that_fits(attempt: int) -> None:
    assert len(f"{names.job('x' * 253, attempt)}-1023") <= 63


@pytest.mark.parametrize("mode", ["ReadWriteOnce", "ReadWriteOncePod"])
def test_a_volume_of_one_node_is_refused_for_several(mode: str) -> None:
    asked = worlds.run({**TWO, "storage.claimTemplate.accessMode": mode})
    decision = policy.decide(worlds.world(asked))
    assert decision.action is Action.REFUSE
    assert decision.failure is not None
    assert decision.failure.reason == failures.INVALID
    assert decision.failure.message.startswith("spec.storage.claimTemplate.accessMode: ")
    assert mode in decision.failure.message
    assert "use ReadWriteMany" in decision.failure.message


@pytest.mark.parametrize(
    "changes",
    [TWO, {"resources.nodes": 2, "storage": {"claimName": "shared", "claimTemplate": None}}, {"resources.nodes": 1}],
)
def test_a_volume_that_all_can_write_to_is_not(changes: dict[str, Any]) -> None:
    spec = worlds.run(changes).spec
    assert spec is not None
    assert list(gang.contradictions(spec)) == []


def test_an_attempt_has_started_once_all_its_pods_have() -> None:
    assert world(member(0)).started is None, "the other isn't there yet"
    waits = world(member(0), member(1, worlds.pod, unschedulable="no room"))
    assert waits.started is None
    assert waits.pod is not None
    assert waits.pod.name == "pod-1", "the one that isn't running says why"
    assert world(member(0), member(1, started=worlds.at(9))).started == worlds.at(9)


def test_the_first_pod_tells_the_progress() -> None:
    """Also where another one says more."""
    first, second = worlds.snapshot(7).last_word(), worlds.snapshot(9).last_word()
    known = world(member(1, worlds.ended, 0, last_word=second), member(0, worlds.ended, 0, last_word=first))
    assert known.first is not None
    assert known.first.name == "pod-0"
    assert known.pod == known.first
    assert known.newest_snapshot is not None
    assert known.newest_snapshot.progress is not None
    assert known.newest_snapshot.progress.batch == 7


FELL = worlds.at(70)
LOST = word(PEER_LOST, 1)


@pytest.mark.parametrize(
    ("pods", "blamed"),
    [
        pytest.param(
            (member(0, worlds.ended, 1, last_word=LOST), member(1, worlds.ended, 137, finished=FELL)),
            "pod-1",
            id="one that only followed isn't it, though it was first",
        ),
        pytest.param(
            (member(0, worlds.ended, 75, deletion=FELL), member(1, worlds.ended, 78, finished=FELL)),
            "pod-1",
            id="one that was ended for it isn't",
        ),
        pytest.param(
            (
                member(0, worlds.ended, 1, last_word=LOST),
                member(1, worlds.ended, 143, disrupted="EvictionByEvictionAPI", deletion=FELL, finished=FELL),
            ),
            "pod-1",
            id="one that was evicted is",
        ),
        pytest.param(
            (member(0, worlds.ended, 65, finished=FELL), member(1, worlds.ended, 66)), "pod-1", id="the first to fail"
        ),
        pytest.param((member(0), member(1, worlds.ended, 1)), "pod-1", id="the other still runs"),
    ],
)
def test_the_pod_that_failed_first_says_why(pods: tuple[Pod, ...], blamed: str) -> None:
    found = world(*pods, jobs=(worlds.job(failed=True),))
    assert failures.what_failed(found).pod == blamed


def test_a_failure_is_told_in_the_words_of_the_pod_that_failed() -> None:
    said = word("DataInvalid", 65)
    pods = (member(0, worlds.ended, 1, last_word=LOST), member(1, worlds.ended, 65, last_word=said))
    failure = failures.what_failed(world(*pods))
    assert (failure.reason, failure.exit_code, failure.pod) == ("DataInvalid", ExitCode.BAD_DATA, "pod-1")


def test_the_next_attempt_waits_for_the_last_pod() -> None:
    failed = worlds.job(failed=True)
    left = world(member(0, worlds.ended, 1), member(1, deletion=worlds.at(80)), jobs=(failed,))
    assert policy.decide(left).action is Action.FOLLOW
    gone = world(member(0, worlds.ended, 1), member(1, worlds.ended, 143), jobs=(failed,))
    assert policy.decide(gone).action is Action.BEGIN


def test_the_history_says_how_many_pods_were_started() -> None:
    known = world(member(0), member(1))
    new = status.compute(known, policy.decide(known), waiting=None, settings=Settings())
    (started,) = [event for event in new.events if event.type == "STARTED"]
    assert "pod pod-0 on node node-1 and 1 more" in started.message


def memory_with_job() -> tuple[Memory, Ref]:
    memory = Memory(clock=worlds.Clock())
    memory.add(manifests.job(run(), attempt=1, settings=Settings()))
    assert jobs.control(memory)
    return memory, Ref(JOB, "ml", "support-bot-1")


def test_an_indexed_job_makes_a_pod_for_each_node_and_ends_them_all_when_one_fails() -> None:
    memory, ref = memory_with_job()
    pods = [Pod.parse(body) for body in memory.all(POD)]
    assert [pod.index for pod in pods] == [0, 1]
    for pod in pods:
        jobs.start_pod(memory, Ref(POD, "ml", pod.name))
    assert not jobs.control(memory)
    jobs.end_pod(memory, Ref(POD, "ml", pods[1].name), exit_code=1)
    assert jobs.control(memory)
    job = memory.get(ref)
    assert job is not None
    assert job["status"]["conditions"][0]["type"] == "Failed"
    (other,) = [Pod.parse(body) for body in memory.all(POD) if Pod.parse(body).index == 0]
    assert other.deletion is not None


def test_an_indexed_job_is_complete_when_all_are() -> None:
    memory, ref = memory_with_job()
    for body in memory.all(POD):
        name = Ref.of(body)
        jobs.start_pod(memory, name)
        job = memory.get(ref)
        assert job is not None
        assert "conditions" not in job["status"]
        jobs.end_pod(memory, name, exit_code=0)
        jobs.control(memory)
    job = memory.get(ref)
    assert job is not None
    assert job["status"]["conditions"][0]["type"] == "Complete"
    assert job["status"]["succeeded"] == 2
