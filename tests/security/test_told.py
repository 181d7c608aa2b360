"""S7, S18: what a pod says of itself, however hostile, ends as a refusal or as short plain text in the status.

Every string that a snapshot can carry is tried with terminal sequences, markup, line ends and letters that hide or turn
others; every number with what isn't one. A pod can neither say that its run has succeeded nor speak of another run.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from finetune_api.snapshot import LAST_WORD_LIMIT, SNAPSHOT_LIMIT, EventType, LastError, SavedOutput, Snapshot, Trouble
from finetune_api.status import FineTuneRunStatus, Phase
from finetune_operator import manifests, policy, status
from finetune_operator.settings import Settings
from finetune_operator.world import World
from tests import worlds

HOSTILE = (
    "\x1b[2J\x1b[31mroot@node:~# \x1b[0m",
    "\x1b]0;title\x07\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "line\r\n2026-03-01 ERROR another record",
    "\x9b31mC1",
    "\u202egnp.exe\u2066\u2069",
    "zero\u200bwidth\ufeff",
    "nul\x00\x08\x08\x7f",
    "<script>alert(1)</script>[x](javascript:x)",
    "{{ template }} ${jndi:ldap://x} $(id) `id` %s %n",
)
CONTROLS = frozenset("\x1b\x9b\x00\x07\x08\r\x7f\x85\u202e\u2066\u2069\u200b\ufeff\u2028\u2029")


def everything(text: str) -> dict[str, Any]:
    """A snapshot in which all that is a string is this one, where the form lets it."""
    trouble = {"reason": "Slow", "message": text, "since": "2026-03-01T12:00:00Z"}
    body: dict[str, Any] = json.loads(
        worlds.snapshot(
            troubles=(Trouble(reason="Slow", message="", since=worlds.NOW),),
            output=SavedOutput(path="output", checkpoint="ep1-ba20"),
            checkpoints=(worlds.saved(),),
            error=LastError(reason="Broken", message="x", exit_code=1),
        ).encode()
    )
    body["troubles"] = [trouble]
    body["error"]["message"] = text
    body["output"] |= {"checkpoint": text[:64], "uploadUri": f"s3://{text}"}
    for milestone in body["milestones"]:
        milestone["message"] = text
    body["tracked"] = {"registeredModel": text, "problem": text}
    return body


def worlds_told(said: Snapshot) -> Iterator[World]:
    """While it runs, after it failed, after it succeeded: the word comes once from /progress, then as the last."""
    run = worlds.run(status=worlds.status())
    yield worlds.world(run, jobs=(worlds.job(),), pods=(worlds.running(),), snapshot=said)
    for code in (0, 1, 65):
        known: dict[str, Any] = {"complete": code == 0, "failed": code != 0, "active": 0, "finished": worlds.at(61)}
        pod = worlds.ended(code, last_word=said.last_word())
        yield worlds.world(run, jobs=(worlds.job(**known),), pods=(pod,))


def texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from texts(child)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_pod_says_is_plain_in_status_and_events(text: str) -> None:
    said = Snapshot.decode(json.dumps(everything(text)))
    seen = 0
    for world in worlds_told(said):
        decision = policy.decide(world)
        new = status.compute(world, decision, waiting=None, settings=Settings())
        wire = new.to_wire()
        FineTuneRunStatus.parse(wire)
        found = list(texts(wire)) + [event["message"] for event in _events(world, new)]
        seen += len(found)
        assert [each for each in found if CONTROLS & set(each)] == []
        assert max(map(len, found)) <= 1024
    assert seen > 40, "there are texts in it"


def _events(world: World, new: FineTuneRunStatus) -> Iterator[Mapping[str, Any]]:
    return (manifests.event(world.run, entry) for entry in new.events)


@pytest.mark.parametrize("code", [1, 137, 255])
def test_a_pod_cannot_say_that_its_run_has_succeeded(code: int) -> None:
    word = worlds.last_word(0)
    run = worlds.run(status=worlds.status())
    known: dict[str, Any] = {"failed": True, "active": 0, "finished": worlds.at(61)}
    world = worlds.world(run, jobs=(worlds.job(**known),), pods=(worlds.ended(code, last_word=word),))
    new = status.compute(world, policy.decide(world), waiting=None, settings=Settings())
    assert new.phase != Phase.COMPLETED
    assert EventType.COMPLETED not in [event.type for event in new.events]
    assert new.output is None


@pytest.mark.parametrize("change", [{"run_uid": "another"}, {"attempt": 2}, {"attempt": 99}])
def test_a_pod_cannot_speak_of_another_run_or_attempt(change: dict[str, Any]) -> None:
    run = worlds.run(status=worlds.status())
    mine = worlds.world(run, jobs=(worlds.job(),), pods=(worlds.running(),))
    other = worlds.world(run, jobs=(worlds.job(),), pods=(worlds.running(),), snapshot=worlds.snapshot(7, **change))
    a, b = (status.compute(world, policy.decide(world), waiting=None, settings=Settings()) for world in (mine, other))
    assert a == b


GOOD = json.loads(worlds.snapshot(5).encode())


def _with(path: str, value: Any) -> bytes:
    body = json.loads(json.dumps(GOOD))
    at = body
    *parents, last = path.split(".")
    for part in parents:
        at = at[part]
    at[last] = value
    return json.dumps(body).encode()


ANSWERS: Mapping[str, bytes] = {
    "10 MB": worlds.snapshot(5).encode().encode() + b" " * 10_000_000,
    "10 MB in a string": _with("runUid", "x" * 10_000_000),
    "deep lists": b"[" * 60_000 + b"]" * 5_000,
    "deep objects": b'{"a":' * 12_000,
    "a gzip bomb": gzip.compress(worlds.snapshot(5).encode().encode() + b" " * 50_000_000),
    "NaN": _with("progress.loss", float("nan")),
    "Infinity": _with("progress.learningRate", float("inf")),
    "a huge number": worlds.snapshot(5).encode().replace('"batch":5', '"batch":' + "9" * 4_000).encode(),
    "a number too large": _with("progress.tokens", 2**63),
    "a negative number": _with("progress.batch", -1),
    "1e400": worlds.snapshot(5).encode().replace('"loss":2.25', '"loss":1e400').encode(),
    "a string for a number": _with("progress.batch", "five"),
    "an unknown milestone": _with("milestones", [{"type": "COMPLETED", "time": "2026-03-01T12:00:00Z"}]),
    "an end as a milestone": _with("milestones", [{"type": "FAILED", "time": "2026-03-01T12:00:00Z"}]),
    "a thousand checkpoints": _with("checkpoints", [worlds.saved().model_dump(mode="json", by_alias=True)] * 1000),
    "a checkpoint elsewhere": _with(
        "checkpoints", [worlds.saved().model_dump(mode="json", by_alias=True) | {"path": "../../etc"}]
    ),
    "an output elsewhere": _with("output", {"path": "/etc"}),
    "an output above": _with("output", {"path": "a/../../b"}),
    "a reason with a line end": _with("error", {"reason": "A\nB", "message": "", "exitCode": 1}),
    "a message of a megabyte": _with("error", {"reason": "A", "message": "x" * 50_000, "exitCode": 1}),
    "no time zone": _with("time", "2026-03-01T12:00:00"),
    "another version": _with("version", 2),
    "not UTF-8": b"\xff\xfe" + worlds.snapshot(5).encode().encode("utf-16"),
    "a lone surrogate": _with("runUid", "\ud800"),
    "HTML": b"<html>",
    "null": b"null",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_no_snapshot_is_refused_in_a_few_words(answer: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Snapshot.decode(answer)
    assert len(str(caught.value)) <= 300
    assert not CONTROLS & set(str(caught.value))


def test_the_answer_that_all_these_are_made_of_is_a_snapshot() -> None:
    assert Snapshot.decode(json.dumps(GOOD)).progress is not None
    assert LAST_WORD_LIMIT < SNAPSHOT_LIMIT
