"""Each oracle by itself: a history that it has to accept, and the smallest one that it must not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from tests.faults import oracles
from tests.faults.endstate import Expected
from tests.faults.oracles import Case
from tests.faults.recorder import History, Version
from tests.faults.wire import Exchange, Request

RUN_UID = "11111111-run"
revisions = iter(range(1, 10**9))


def version(kind: str, uid: str, *, name: str = "r", deleted: bool = False, **body: Any) -> Version:
    metadata = {"name": name, "uid": uid, "resourceVersion": str(next(revisions)), **body.pop("metadata", {})}
    return Version(kind, {"metadata": metadata, **body}, deleted, 0.0)


def run(*, uid: str = RUN_UID, deleted: bool = False, **status: Any) -> Version:
    return version("run", uid, deleted=deleted, status=status)


def job(uid: str, *, attempt: int = 1, of: str = RUN_UID) -> Version:
    owner = [{"uid": of, "controller": True}]
    labels = {"finetune.dev/attempt": str(attempt)}
    return version("job", uid, name=f"r-{attempt}", metadata={"ownerReferences": owner, "labels": labels})


def pod(uid: str, phase: str, *, deleted: bool = False, of: str = RUN_UID) -> Version:
    metadata = {"annotations": {"finetune.dev/run-uid": of}}
    return version("pod", uid, name=uid, deleted=deleted, metadata=metadata, status={"phase": phase})


def claim(*, of: str = RUN_UID) -> Version:
    return version("claim", "c", name="r-c", metadata={"annotations": {"finetune.dev/run-uid": of}})


def told(uid: str, reason: str) -> Version:
    return version("event", uid, name=uid, involvedObject={"uid": RUN_UID}, reason=reason, message=reason)


def entries(*types: str, attempt: int = 1) -> Sequence[Mapping[str, Any]]:
    return [{"sequence": n, "type": kind, "attempt": attempt} for n, kind in enumerate(types, start=1)]


def write(verb: str, path: str, **body: Any) -> Exchange:
    request = Request(verb=verb, path=path, body=body)
    return Exchange(number=1, request=request, label=request.label, at=0.0, write=1, code=200)


RUNS = "/apis/finetune.dev/v1alpha1/namespaces/n/finetuneruns"

GOOD: Mapping[str, Sequence[Version]] = {
    "a retry": [job("a"), pod("p", "Running"), pod("p", "Failed"), job("b", attempt=2), pod("q", "Pending")],
    "a pod that is replaced when it is gone": [
        pod("p", "Running"),
        pod("p", "Running", deleted=True),
        pod("q", "Pending"),
    ],
    "two runs": [pod("p", "Running"), pod("q", "Running", of="another")],
    "phases of two attempts": [
        run(phase="Running", attempt=1),
        run(phase="Starting", attempt=2),
        run(phase="Running", attempt=2),
        run(phase="Completed", attempt=2),
    ],
    "a history that grows, and its progress in place": [
        run(events=entries("CREATED", "TRAIN_UPDATED"), progress={"attempt": 1, "batch": 1}),
        run(events=entries("CREATED", "TRAIN_UPDATED", "STARTED"), progress={"attempt": 1, "batch": 2}),
    ],
    "progress of the next attempt": [
        run(progress={"attempt": 1, "batch": 5}),
        run(progress={"attempt": 2, "batch": 1}),
    ],
    "a claim that outlives its run": [claim(), run(deleted=True)],
    "one Event for each entry": [told("e", "Created"), told("f", "Started")],
}
BAD: Mapping[str, tuple[str, Sequence[Version]]] = {
    "two Jobs of one attempt": ("one-job-per-attempt", [job("a"), job("b")]),
    "two pods at once": ("one-live-pod", [pod("p", "Running"), pod("q", "Pending")]),
    "an end that is taken back": ("history-goes-forward", [run(phase="Completed"), run(phase="Running")]),
    "another end": ("history-goes-forward", [run(phase="Failed"), run(phase="Completed")]),
    "an attempt back": ("history-goes-forward", [run(attempt=2), run(attempt=1)]),
    "Starting again in one attempt": (
        "history-goes-forward",
        [run(phase="Running", attempt=1), run(phase="Starting", attempt=1)],
    ),
    "an entry lost": (
        "history-goes-forward",
        [run(events=entries("CREATED", "STARTED")), run(events=entries("CREATED"))],
    ),
    "an entry rewritten": (
        "history-goes-forward",
        [run(events=entries("CREATED")), run(events=entries("CREATED", attempt=2))],
    ),
    "progress back": (
        "history-goes-forward",
        [run(progress={"attempt": 1, "batch": 2}), run(progress={"attempt": 1, "batch": 1})],
    ),
    "an entry twice": ("told-once", [run(events=entries("CREATED", "CREATED"))]),
    "an Event twice": ("told-once", [told("e", "Created"), told("f", "Created")]),
    "a claim for a run that is gone": ("nothing-for-the-dead", [run(deleted=True), claim()]),
    "a Job for a run that is gone": ("nothing-for-the-dead", [run(deleted=True), job("a")]),
}


def history(versions: Sequence[Version]) -> History:
    found = History()
    for number, one in enumerate(versions, start=1):
        metadata = {**one.body["metadata"], "resourceVersion": str(number)}
        found.add(Version(one.kind, {**one.body, "metadata": metadata}, one.deleted, one.at))
    return found


@pytest.mark.parametrize("versions", GOOD.values(), ids=GOOD.keys())
def test_nothing_is_found_in(versions: Sequence[Version]) -> None:
    assert oracles.judge(Case(history=history(versions), end={})) == []


@pytest.mark.parametrize(("oracle", "versions"), BAD.values(), ids=BAD.keys())
def test_one_oracle_alone_finds(oracle: str, versions: Sequence[Version]) -> None:
    found = oracles.judge(Case(history=history(versions), end={}))
    assert {finding.oracle for finding in found} == {oracle}


def cases() -> Iterator[tuple[str, Case]]:
    empty = History()
    yield "converges", Case(history=empty, end={}, late="step 2 not in time")
    yield (
        "end-state",
        Case(history=empty, end={"run.r.phase": "A"}, expected=Expected({"run.r.phase": "B"}, frozenset())),
    )
    yield "end-state", Case(history=empty, end={"job.r-2.kind": "Job"}, expected=Expected({}, frozenset()))
    yield "no-exit", Case(history=empty, end={}, exits=[1])
    yield "nothing-unhandled", Case(history=empty, end={}, log="x ERROR n/r can't be reconciled\n")
    yield "checkpoints-are-whole", Case(history=empty, end={}, damaged=["ep1-ba2: manifest.json is missing"])
    yield "fault-struck", Case(history=empty, end={}, never_struck=["drop at POST-jobs"])
    yield "fault-struck", Case(history=empty, end={}, crashes=(1, 0))
    yield "writes-are-safe", Case(history=empty, end={}, writes=[write("PATCH", f"{RUNS}/r/status", status={})])
    yield "writes-are-safe", Case(history=empty, end={}, writes=[write("DELETE", f"{RUNS}/r")])
    nameless = write("POST", "/apis/batch/v1/namespaces/n/jobs", metadata={"generateName": "r-"})
    yield "writes-are-safe", Case(history=empty, end={}, writes=[nameless])
    living = history([pod("p", "Running"), pod("q", "Running", of="another")])
    yield "within-the-limit", Case(history=living, end={}, most_active=1)


@pytest.mark.parametrize(("oracle", "case"), list(cases()))
def test_it_is_found_by(oracle: str, case: Case) -> None:
    assert {finding.oracle for finding in oracles.judge(case)} == {oracle}


def test_every_oracle_has_found_something_here() -> None:
    assert {oracle for oracle, _ in BAD.values()} | {oracle for oracle, _ in cases()} == set(oracles.ORACLES)


def test_what_differs_between_references_is_masked_and_the_rest_is_not() -> None:
    expected = Expected.of([{"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2}])
    assert expected.masked == {"b", "c"}
    assert expected.differences({"a": 1, "b": 3}) == []
    assert expected.differences({"b": 1, "d": 4}) == ["a: nothing instead of 1", "d: 4 instead of nothing"]
