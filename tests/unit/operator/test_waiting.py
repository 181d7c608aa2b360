"""Why a run isn't training yet: each reason, the field it names, and when nothing is said."""

from typing import Any

import pytest

from finetune_operator import waiting
from finetune_operator.errors import RefusedError, TakenError
from finetune_operator.waiting import Waiting
from finetune_operator.world import ChildWarning, Turn
from tests import worlds

LATE = worlds.at(60)
PENDING = worlds.claim(phase="Pending", storage_class="fast")


def warning(kind: str, reason: str, message: str = "it is so") -> ChildWarning:
    return ChildWarning(kind=kind, name="x", reason=reason, message=message)


def why(*, now: Any = LATE, changes: dict[str, Any] | None = None, **world: Any) -> Waiting | None:
    run = worlds.run(changes, status=worlds.status(1))
    found = worlds.world(run, **({"now": now, "jobs": (worlds.job(),)} | world))
    return waiting.why(found, settings=worlds.SETTINGS)


UNSCHEDULABLE = worlds.pod(unschedulable="0/1 nodes are available", unschedulable_since=worlds.at(3))


@pytest.mark.parametrize(
    ("world", "reason", "for_room", "says"),
    [
        pytest.param(
            {"warnings": (warning("Job", "FailedCreate", "exceeded quota: gpus"),)},
            waiting.POD_REFUSED,
            True,
            ["FailedCreate", "exceeded quota: gpus"],
            id="a quota keeps the job from making its pod",
        ),
        pytest.param(
            {"claim": PENDING, "pods": (UNSCHEDULABLE,), "warnings": (warning("PersistentVolumeClaim", "Failed"),)},
            waiting.CLAIM_PENDING,
            True,
            ["spec.storage", 'storage class "fast"', "it is so"],
            id="the storage class doesn't exist",
        ),
        pytest.param(
            {
                "claim": worlds.claim(phase="Pending"),
                "pods": (worlds.pod(),),
                "warnings": (warning("PersistentVolumeClaim", "Failed"),),
            },
            waiting.CLAIM_PENDING,
            True,
            ["the default storage class"],
            id="there is no default storage class",
        ),
        pytest.param(
            {"pods": (UNSCHEDULABLE,)},
            waiting.UNSCHEDULABLE,
            True,
            ["1 nvidia.com/gpu", "cpu 4", "memory 16Gi", "spec.resources", "0/1 nodes"],
            id="no node has what is asked for",
        ),
        pytest.param(
            {
                "pods": (worlds.pod(unschedulable='persistentvolumeclaim "datasets" not found. not found'),),
                "changes": {"dataset.train.uri": "pvc://datasets/train.jsonl"},
            },
            waiting.CLAIM_PENDING,
            True,
            ["no claim datasets (spec.dataset.train.uri)", "create it"],
            id="the data's claim isn't in the namespace",
        ),
        pytest.param(
            {
                "pods": (worlds.pod(waiting_reason="ContainerCreating"),),
                "changes": {"dataset.train.uri": "configmap://words/train.jsonl"},
                "warnings": (warning("Pod", "FailedMount", 'configmap "words" not found'),),
            },
            waiting.CONTAINER_WAITING,
            False,
            ['configmap "words" not found (spec.dataset.train.uri)'],
            id="the data's ConfigMap isn't in the namespace",
        ),
        pytest.param(
            {"pods": (UNSCHEDULABLE,), "changes": {"resources.deviceResource": "", "resources.cpu": "64"}},
            waiting.UNSCHEDULABLE,
            True,
            ["No node has room for cpu 64"],
            id="no node has so much cpu",
        ),
        *(
            pytest.param(
                {"pods": (worlds.pod(waiting_reason=reason, waiting_message="not found"),)},
                waiting.IMAGE_UNAVAILABLE,
                False,
                ["spec.trainer.image", reason, "not found"],
                id=f"the image can't be pulled: {reason}",
            )
            for reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
        ),
        pytest.param(
            {"pods": (worlds.pod(waiting_reason="CreateContainerConfigError", waiting_message="no secret"),)},
            waiting.CONTAINER_WAITING,
            False,
            ["CreateContainerConfigError", "no secret"],
            id="the token's secret isn't there",
        ),
        pytest.param(
            {
                "pods": (worlds.pod(waiting_reason="ContainerCreating"),),
                "warnings": (warning("Pod", "FailedMount", "claim datasets not found"),),
            },
            waiting.CONTAINER_WAITING,
            False,
            ["FailedMount", "claim datasets not found"],
            id="the data's claim isn't there",
        ),
    ],
)
def test_what_is_waited_for(world: dict[str, Any], reason: str, for_room: bool, says: list[str]) -> None:
    found = why(**world)
    assert found is not None
    assert (found.reason, found.for_room) == (reason, for_room)
    assert [part for part in says if part not in found.message] == []


def test_a_run_whose_turn_has_not_come_waits_for_that() -> None:
    found = why(jobs=(), turn=Turn(admitted=False, position=3, reason="NamespaceLimit", message="10 are active."))
    assert found == Waiting(reason="NamespaceLimit", message="10 are active.", for_room=True)


@pytest.mark.parametrize(
    ("seconds", "told"), [pytest.param(89, False, id="its time isn't over"), pytest.param(91, True, id="a minute late")]
)
@pytest.mark.parametrize(
    "jobs", [pytest.param((), id="its job is gone"), pytest.param((worlds.job(),), id="its job is there")]
)
def test_a_pod_that_should_have_ended_names_its_node(seconds: float, told: bool, jobs: Any) -> None:
    lost = worlds.running(deletion=worlds.at(30))
    found = why(now=worlds.at(seconds), jobs=jobs, pods=(lost,))
    assert (found is not None) is told
    if found is not None:
        assert (found.reason, found.for_room) == (waiting.NODE_UNREACHABLE, False)
        assert "node node-1" in found.message
        assert "node.kubernetes.io/out-of-service" in found.message


@pytest.mark.parametrize(
    "world",
    [
        pytest.param({"pods": (UNSCHEDULABLE,), "now": worlds.at(6)}, id="it is early yet"),
        pytest.param({"pods": (worlds.running(unschedulable="once"),)}, id="the pod runs"),
        pytest.param({"pods": (worlds.ended(1),)}, id="the pod has ended"),
        pytest.param({"jobs": (), "warnings": (warning("Job", "FailedCreate"),)}, id="there is no job"),
        pytest.param({"jobs": (worlds.job(failed=True),), "pods": (UNSCHEDULABLE,)}, id="the job has ended"),
        pytest.param({"pods": (worlds.pod(waiting_reason="ContainerCreating"),)}, id="the image is being pulled"),
        pytest.param(
            {
                "pods": (worlds.pod(waiting_reason="ContainerCreating"),),
                "warnings": (warning("Pod", "FailedScheduling", "0/1 nodes"),),
            },
            id="the pod was scheduled at last",
        ),
        pytest.param({"warnings": (warning("Job", "BackoffLimitExceeded"),)}, id="the job's pod is gone"),
        pytest.param({"claim": PENDING}, id="the claim waits for its first consumer"),
        pytest.param(
            {"claim": worlds.claim(), "warnings": (warning("PersistentVolumeClaim", "Old"),)}, id="the claim is bound"
        ),
    ],
)
def test_nothing_is_said_where_nothing_is_wrong(world: dict[str, Any]) -> None:
    assert why(**world) is None


@pytest.mark.parametrize(
    ("world", "late"),
    [
        pytest.param({"jobs": (), "pods": ()}, False, id="no job"),
        pytest.param({"jobs": (worlds.job(),), "pods": ()}, True, id="a job without a pod"),
        pytest.param({"jobs": (worlds.job(),), "pods": (worlds.pod(),)}, True, id="a pod that waits"),
        pytest.param({"jobs": (worlds.job(),), "pods": (worlds.running(),)}, False, id="a pod that runs"),
        pytest.param({"jobs": (worlds.job(created=None),), "pods": ()}, False, id="a job of unknown age"),
    ],
)
def test_a_run_is_late_if_it_should_be_running(world: dict[str, Any], late: bool) -> None:
    for now, expected in ((LATE, late), (worlds.at(6.9), False)):
        found = worlds.world(worlds.run(status=worlds.status(1)), now=now, **world)
        assert waiting.is_late(found, settings=worlds.SETTINGS) is expected


def test_an_attempt_whose_pod_ran_and_is_gone_is_not_late() -> None:
    found = worlds.world(worlds.run(status=worlds.status(1, started=True)), now=LATE, jobs=(worlds.job(),))
    assert not waiting.is_late(found, settings=worlds.SETTINGS)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(RefusedError("exceeded quota"), waiting.CHILD_REFUSED), (TakenError("is another's"), waiting.NAME_TAKEN)],
)
def test_a_refused_child_is_waited_for(error: Exception, reason: str) -> None:
    assert waiting.refused(error) == Waiting(reason=reason, message=str(error), for_room=True)


def test_messages_are_cut() -> None:
    found = why(pods=(worlds.pod(unschedulable="x" * 5000),))
    assert found is not None
    assert len(found.message) <= 1024
    assert len(waiting.refused(RefusedError("x" * 5000)).message) <= 1024
