"""Whose turn it is: never over a limit, strictly in order, and quick with many."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.types import Metadata
from finetune_operator import admission
from finetune_operator.admission import Line
from finetune_operator.run import Run
from finetune_operator.settings import Limits
from finetune_operator.world import Turn
from tests import worlds
from tests.unit.operator.test_policy import FINISHED, PAUSED

GPU, NPU = "nvidia.com/gpu", "example.com/npu"
ACTIVE, ENDED = worlds.status(1, started=True), worlds.status(1, conditions=[FINISHED])
RESTS = worlds.status(1, started=True, conditions=[PAUSED])


def run(name: str, *, at: float = 0, status: Any = None, namespace: str = "ml", **spec: Any) -> Run:
    """Created so many seconds after NOW; its UID is its name."""
    named = {
        "gpus": "resources.devicesPerNode",
        "on": "resources.deviceResource",
        "nodes": "resources.nodes",
        "priority": "queue.priority",
        "lasts": "training.maxDuration",
    }
    changes = {named.get(key, key): value for key, value in spec.items()}
    created = worlds.at(at).strftime("%Y-%m-%dT%H:%M:%SZ")
    return worlds.run(changes, status=status, name=name, uid=name, namespace=namespace, creationTimestamp=created)


def line(*runs: Run, per_namespace: int | None = None, devices: Mapping[str, int] | None = None) -> Line:
    found = Line(Limits(per_namespace, devices or {}))
    for one in runs:
        found.see(one)
    return found


def called(found: Line) -> str:
    return "".join(sorted(found.called()))


@pytest.mark.parametrize(
    ("found", "names"),
    [
        pytest.param(line(run("a"), run("b")), "ab", id="no limit"),
        pytest.param(line(run("a", at=1), run("b"), per_namespace=1), "b", id="the older first"),
        pytest.param(line(run("b"), run("a"), per_namespace=1), "a", id="of the same second, the first by name"),
        pytest.param(line(run("a"), run("b", at=1, priority=1), per_namespace=1), "b", id="priority before age"),
        pytest.param(line(run("a", priority=-1), run("b", at=1), per_namespace=1), "b", id="a priority below 0"),
        pytest.param(line(run("a", status=ACTIVE), run("b"), per_namespace=1), "", id="an active one takes the place"),
        pytest.param(line(run("a", status=ENDED), run("b"), per_namespace=1), "b", id="an ended one doesn't"),
        pytest.param(line(run("a", status=RESTS, suspend=True), run("b"), per_namespace=1), "b", id="nor a paused one"),
        pytest.param(
            line(run("a", status=RESTS), run("b", at=1), per_namespace=1), "a", id="one that goes on waits too"
        ),
        pytest.param(
            line(run("a", status=ACTIVE, suspend=True), run("b"), per_namespace=1),
            "",
            id="one being paused still counts",
        ),
        pytest.param(
            line(run("a", status=ACTIVE, cancel=True), run("b"), per_namespace=1),
            "",
            id="one being canceled still counts",
        ),
        pytest.param(
            line(run("a", suspend=True), run("b", at=1), per_namespace=1), "b", id="who is paused doesn't wait"
        ),
        pytest.param(
            line(run("a", cancel=True), run("b", at=1), per_namespace=1), "b", id="who is canceled doesn't wait"
        ),
        pytest.param(
            line(run("a", lasts="3 epochs"), run("b", at=1), per_namespace=1),
            "b",
            id="who can't be read doesn't wait",
        ),
        pytest.param(
            line(run("a", status=ACTIVE), run("b", namespace="other"), per_namespace=1),
            "b",
            id="each namespace for itself",
        ),
        pytest.param(
            line(run("a", gpus=4), run("b", at=1, gpus=4), run("c", at=2, gpus=1), devices={GPU: 8}), "ab", id="devices"
        ),
        pytest.param(
            line(run("a", gpus=4), run("b", at=1, gpus=8), run("c", at=2, gpus=1), devices={GPU: 8}),
            "a",
            id="a small one doesn't pass a large one that waits for the same kind",
        ),
        pytest.param(
            line(run("a", gpus=4), run("b", at=1, gpus=8), run("c", at=2, on=NPU), devices={GPU: 8, NPU: 8}),
            "ac",
            id="one that waits for another kind does",
        ),
        pytest.param(
            line(run("a", gpus=4), run("b", at=1, gpus=8), run("c", at=2, on=""), devices={GPU: 8}),
            "ac",
            id="and so does one without devices",
        ),
        pytest.param(line(run("a", gpus=2, nodes=4), run("b", at=1), devices={GPU: 8}), "a", id="over all nodes"),
        pytest.param(
            line(run("a", gpus=8, status=ACTIVE), run("b", at=1), devices={GPU: 8}), "", id="those in use are taken"
        ),
        pytest.param(
            line(run("a", gpus=9, status=ACTIVE), run("b", at=1), devices={GPU: 8}), "", id="the limit was lowered"
        ),
        pytest.param(
            line(run("a", gpus=1, namespace="x", status=ACTIVE), run("b", gpus=8, namespace="y"), devices={GPU: 8}),
            "",
            id="the devices are those of all namespaces",
        ),
        pytest.param(
            line(
                run("a", status=ACTIVE),
                run("b", gpus=8),
                run("c", at=1, gpus=7, namespace="other"),
                per_namespace=1,
                devices={GPU: 8},
            ),
            "c",
            id="who waits for its namespace keeps back nobody in another",
        ),
        pytest.param(
            line(run("a", status=ACTIVE), run("b", gpus=8), run("c", at=1, on=""), per_namespace=2, devices={GPU: 8}),
            "c",
            id="who waits for devices takes no place in its namespace",
        ),
        pytest.param(
            line(run("a", gpus=9), run("b", at=1, gpus=8), per_namespace=1, devices={GPU: 8}),
            "ab",
            id="who never fits keeps back nobody",
        ),
        pytest.param(line(run("a"), devices={GPU: 0}), "a", id="none are allowed, and so it is told"),
    ],
)
def test_who_is_called(found: Line, names: str) -> None:
    assert called(found) == names


def test_what_is_waited_for_and_at_which_place() -> None:
    found = line(
        run("a", status=ACTIVE, gpus=2), run("b", at=2), run("c", at=1), run("d", at=3, priority=5), per_namespace=2
    )
    assert found.turn("a") == Turn()
    assert found.turn("d") == Turn()
    assert [found.turn(name).position for name in "cb"] == [2, 3]
    assert found.turn("b") == Turn(
        admitted=False,
        position=3,
        reason=admission.NAMESPACE_LIMIT,
        message="2 runs of namespace ml are active, no more may be.",
    )
    assert [found.is_waiting(name) for name in "abcd"] == [False, True, True, False]


def test_devices_that_are_waited_for_are_named() -> None:
    found = line(run("a", status=ACTIVE, gpus=8), run("b"), run("c", at=1), devices={GPU: 8})
    assert found.turn("c") == Turn(
        admitted=False,
        position=2,
        reason=admission.DEVICE_LIMIT,
        message="All 8 nvidia.com/gpu that runs may use are taken or spoken for.",
    )


def test_one_that_never_fits_is_told_the_limit() -> None:
    turn = line(run("a", gpus=9), devices={GPU: 8}).turn("a")
    assert turn == Turn(
        admitted=False, never="asks for 9 nvidia.com/gpu, and all runs together may use 8: ask for fewer"
    )


def test_an_unknown_run_is_admitted_since_nobody_counts_it() -> None:
    """Such is one that was deleted meanwhile: what it begins is refused by the API server."""
    assert line().turn("nobody") == Turn()
    line().reserve("nobody")


def test_what_is_reserved_counts_until_it_is_settled() -> None:
    found = line(run("a"), run("b", at=1), per_namespace=1)
    found.reserve("a")
    assert (found.turn("a"), called(found)) == (Turn(), "")
    found.see(run("a", status=ACTIVE))
    assert called(found) == ""
    found.see(run("a", status=ENDED))
    assert called(found) == "b"


def test_a_reservation_whose_record_was_refused_is_settled_by_the_next_version() -> None:
    """Its user has paused it between decision and record."""
    found = line(run("a"), run("b", at=1), per_namespace=1)
    found.reserve("a")
    found.see(run("a", suspend=True))
    assert called(found) == "b"


def test_reserved_twice_is_reserved_once() -> None:
    found = line(run("a"), run("b", at=1), per_namespace=2)
    found.reserve("a")
    found.reserve("a")
    assert called(found) == "b"
    found.leave("a")
    found.leave("a")
    assert called(found) == "b"
    found.reserve("b")
    found.see(run("c", at=2))
    assert called(found) == "c", "one of two places is free"


def test_nobody_reserves_before_its_turn() -> None:
    found = line(run("a"), run("b", at=1), per_namespace=1)
    with pytest.raises(AssertionError):
        found.reserve("b")


def test_a_priority_that_is_raised_changes_the_order() -> None:
    found = line(run("a"), run("b", at=1), run("c", at=2), per_namespace=1)
    assert (called(found), found.turn("c").position) == ("a", 3)
    found.see(run("c", at=2, priority=10))
    assert (called(found), found.turn("a").position) == ("c", 2)


def test_each_is_named_once_when_its_turn_comes() -> None:
    found = line(run("a", status=ACTIVE), run("b", at=1), run("c", at=2), per_namespace=1)
    assert list(found.newly_called()) == []
    found.see(run("a", status=ENDED))
    assert [key.name for key in found.newly_called()] == ["b"]
    assert list(found.newly_called()) == []
    found.reserve("b")
    found.leave("b")
    assert [key.name for key in found.newly_called()] == ["c"]


def test_one_that_lost_its_turn_is_named_again_when_it_comes_back() -> None:
    found = line(run("a"), per_namespace=1)
    assert [key.name for key in found.newly_called()] == ["a"]
    found.see(run("b", priority=1))
    assert [key.name for key in found.newly_called()] == ["b"]
    found.leave("b")
    assert [key.name for key in found.newly_called()] == ["a"]


STATES = st.sampled_from(("waits", "active", "paused", "ended", "gone"))
RUNS = st.tuples(st.sampled_from("abcdefgh"), STATES, st.integers(-1, 1), st.integers(0, 3), st.booleans())


def seen(name: str, state: str, priority: int, gpus: int) -> Run:
    known = {"waits": None, "active": ACTIVE, "paused": RESTS, "ended": ENDED}[state]
    on = {"on": GPU, "gpus": gpus} if gpus else {"on": ""}
    return run(name, at=ord(name), status=known, namespace=name[0] if name < "e" else "z", priority=priority, **on)


@given(st.lists(RUNS, max_size=25))
def test_no_limit_is_ever_passed_and_nobody_passes_one_that_would_fit(steps: list[Any]) -> None:
    """Against the same promise computed from scratch: all the runs, in order, none begun over a limit."""
    most, limits = {GPU: 4}, Limits(2, {GPU: 4})
    found, runs, reserved = Line(limits), dict[str, Run](), set[str]()
    for name, state, priority, gpus, reserves in steps:
        reserved.discard(name)
        if state == "gone":
            runs.pop(name, None)
            found.leave(name)
        else:
            runs[name] = seen(name, state, priority, gpus)
            found.see(runs[name])
        assert found.called() == expected(runs, reserved, most)
        if reserves and found.called():
            chosen = min(found.called())
            found.reserve(chosen)
            reserved.add(chosen)
            assert found.called() == expected(runs, reserved, most)


def expected(runs: Mapping[str, Run], reserved: set[str], most: Mapping[str, int]) -> frozenset[str]:
    def devices(one: Run) -> int:
        assert one.spec is not None
        return one.spec.resources.devices_per_node if one.spec.resources.device_resource else 0

    def is_active(one: Run) -> bool:
        rests = one.status == worlds.run(status=RESTS).status
        return not rests and one.status.attempt > 0

    going = [one for one in runs.values() if not one.status.is_finished]
    active = [one for one in going if is_active(one) or one.metadata.uid in reserved]
    places = Counter(one.key.namespace for one in active)
    left = most[GPU] - sum(devices(one) for one in active)
    names = set()
    waiting = [one for one in going if one not in active]
    for one in sorted(waiting, key=lambda one: (-one.spec.queue.priority if one.spec else 0, one.metadata.name)):
        if places[one.key.namespace] >= 2:
            continue
        wants = devices(one)
        if wants > left and wants:
            left = -1  # nobody passes it
            continue
        left -= wants
        places[one.key.namespace] += 1
        names.add(one.metadata.uid)
    return frozenset(names)


def test_fifteen_thousand_runs_of_thirty_namespaces_go_through() -> None:
    """As the operator has them: each seen, told its turn, reserved, seen active and then ended."""
    model = run("x", gpus=1)

    def numbered(number: int, status: Any) -> Run:
        name = f"run-{number}"
        created = worlds.at(number % 977)
        metadata = Metadata(name=name, namespace=f"team-{number % 30}", uid=name, creation_timestamp=created)
        return Run(metadata=metadata, spec=model.spec, problem=None, status=status)

    waits, count = model.status, 15_000
    found = line(*(numbered(number, waits) for number in range(count)), per_namespace=10, devices={GPU: 200})
    active: list[int] = []
    done = 0
    while done < count:
        for key in list(found.newly_called()):
            number = int(key.name.rpartition("-")[2])
            assert found.turn(key.name).admitted
            found.reserve(key.name)
            found.see(numbered(number, ACTIVE))
            active.append(number)
        assert len(active) <= 200
        for number in active[:50]:
            found.see(numbered(number, ENDED))
            found.leave(f"run-{number}")
        done += len(active[:50])
        del active[:50]
    assert done == count
