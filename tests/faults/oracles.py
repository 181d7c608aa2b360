"""What must hold of every history, whatever was done to the operator. Each oracle reads a case and says what is wrong.

None of them knows what fault there was, except `end_state` (what the undisturbed run came to) and `fault_struck`.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from finetune_operator.children import owner_uid
from finetune_operator.names import ATTEMPT_LABEL, RUN_UID_ANNOTATION
from tests.cluster.stage import IN_PLACE, condition
from tests.faults.endstate import Expected, Flat
from tests.faults.recorder import History, Object, Version
from tests.faults.wire import Exchange

FINAL = ("Completed", "Failed", "Canceled")
BEFORE_RUNNING = ("Pending", "Queued", "Starting")
PER_ATTEMPT = ("STARTED", "RESTARTED", "RESUMED", "QUEUED", "SUSPENDED")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and which oracle says so."""

    oracle: str
    what: str

    def __str__(self) -> str:
        return f"{self.oracle}: {self.what}"


@dataclasses.dataclass(kw_only=True)
class Case:
    """All that is known of one plan's run."""

    history: History
    end: Flat
    expected: Expected | None = None
    writes: Sequence[Exchange] = ()
    late: str = ""
    """What didn't come in time."""
    never_struck: Sequence[str] = ()
    crashes: tuple[int, int] = (0, 0)
    """How often the operator was to be killed, and how often it was."""
    exits: Sequence[int] = ()
    exits_allowed: int = 0
    log: str = ""
    most_active: int | None = None
    """So many runs may have a live pod at once."""
    job_may_come_late: bool = False
    """Whether the create of a Job arrives when the world has moved on."""
    damaged: Sequence[str] = ()
    """Checkpoints that were seen and weren't whole."""


Oracle = Callable[[Case], Iterator[str]]


def converges(case: Case) -> Iterator[str]:
    """Each step of the scenario was reached within its bound after the fault."""
    if case.late:
        yield case.late


def end_state(case: Case) -> Iterator[str]:
    """All objects are as after the undisturbed run."""
    if case.expected is not None and not case.late:
        yield from case.expected.differences(case.end)


def one_job_per_attempt(case: Case) -> Iterator[str]:
    """No second Job was ever created for an attempt of a run.

    A create that arrives after its operator's death may bring a Job back that was deleted meanwhile; never a second.
    """
    made: dict[tuple[str, str], set[str]] = defaultdict(set)
    there: dict[tuple[str, str], set[str]] = defaultdict(set)
    for version in case.history.of("job"):
        labels = version.body["metadata"].get("labels") or {}
        attempt = (owner_uid(version.body) or "", labels.get(ATTEMPT_LABEL, ""))
        again = made[attempt] - {version.uid}
        if version.uid not in made[attempt] and again and (there[attempt] or not case.job_may_come_late):
            yield f"{len(again) + 1} Jobs for attempt {attempt[1]}"
        made[attempt].add(version.uid)
        (there[attempt].discard if version.deleted else there[attempt].add)(version.uid)


def one_live_pod(case: Case) -> Iterator[str]:
    """At no moment did two pods of a run live."""
    for living in _living(case.history):
        for names in living.values():
            if len(names) > 1:
                yield f"at once: {', '.join(sorted(names))}"


def within_the_limit(case: Case) -> Iterator[str]:
    """At no moment did more runs have a live pod than may be active."""
    for living in _living(case.history):
        active = [name for names in living.values() for name in names]
        if case.most_active is not None and len(active) > case.most_active:
            yield f"at once: {', '.join(sorted(active))}"


def _living(history: History) -> Iterator[Mapping[str, Sequence[str]]]:
    """The names of live pods by their run's UID, after each change of a pod."""
    living: dict[str, tuple[str, str]] = {}
    for version in history.of("pod"):
        metadata = version.body["metadata"]
        if version.deleted or version.body.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            living.pop(version.uid, None)
        else:
            run = (metadata.get("annotations") or {}).get(RUN_UID_ANNOTATION, "")
            living[version.uid] = (run, metadata["name"])
        yield {run: [name for of, name in living.values() if of == run] for run, _ in living.values()}


def history_goes_forward(case: Case) -> Iterator[str]:
    """Phase, attempt, history, progress and conditions of a run never go back."""
    last: dict[str, Object] = {}
    for version in case.history.of("run"):
        status = version.body.get("status", {})
        before = last.get(version.uid)
        if before is not None:
            yield from _backwards(before, status)
        last[version.uid] = status


def _backwards(old: Object, new: Object) -> Iterator[str]:
    phases = (old.get("phase"), new.get("phase"))
    attempts = (old.get("attempt", 0), new.get("attempt", 0))
    if phases[0] in FINAL and phases[1] != phases[0]:
        yield f"phase {phases[0]} became {phases[1]}"
    if attempts[1] < attempts[0]:
        yield f"attempt {attempts[0]} became {attempts[1]}"
    if phases[0] == "Running" and phases[1] in BEFORE_RUNNING and attempts[1] == attempts[0]:
        yield f"phase Running became {phases[1]} in attempt {attempts[0]}"
    if condition(old, "Finished").get("status") == "True" != condition(new, "Finished").get("status"):
        yield "Finished is no longer True"
    yield from _entries_lost(old, new)
    ours, theirs = old.get("progress", {}), new.get("progress", {})
    if ours.get("attempt") == theirs.get("attempt") and theirs.get("batch", 0) < ours.get("batch", 0):
        yield f"batch {ours['batch']} became {theirs.get('batch', 0)} in attempt {ours.get('attempt')}"


def _entries_lost(old: Object, new: Object) -> Iterator[str]:
    known = {event["sequence"]: event for event in new.get("events", ())}
    sequences = [event["sequence"] for event in new.get("events", ())]
    if sequences != sorted(set(sequences)):
        yield f"sequences {sequences} aren't in order"
    for event in old.get("events", ()):
        kept = known.get(event["sequence"])
        if kept is None or kept["type"] != event["type"]:
            yield f"entry {event['sequence']} {event['type']} became {kept and kept['type']}"
        elif event["type"] not in IN_PLACE and kept != event:
            yield f"entry {event['sequence']} {event['type']} was rewritten"


def told_once(case: Case) -> Iterator[str]:
    """Each type of entry is in a run's history once, or once an attempt; each Kubernetes Event was posted once."""
    for body in case.history.there("run"):
        entries = Counter(_entry(event) for event in body.get("status", {}).get("events", ()))
        for entry, count in entries.items():
            if count > 1:
                yield f"{entry} is in the history {count} times"
    posted: Counter[tuple[str, str, str]] = Counter()
    for version in _firsts(case.history.of("event")):
        involved = version.body["involvedObject"]
        posted[involved["uid"], version.body["reason"], version.body["message"]] += 1
    for (_, reason, message), count in posted.items():
        if count > 1:
            yield f"Kubernetes Event {reason} was posted {count} times: {message}"


def _entry(event: Mapping[str, Any]) -> str:
    per_attempt = event["type"] in PER_ATTEMPT
    return f"{event['type']} of attempt {event.get('attempt')}" if per_attempt else str(event["type"])


def _firsts(versions: Sequence[Version]) -> Iterator[Version]:
    seen: set[str] = set()
    for version in versions:
        if version.uid not in seen:
            seen.add(version.uid)
            yield version


def nothing_for_the_dead(case: Case) -> Iterator[str]:
    """Nothing was created for a run that was gone by then; Kubernetes' one order of versions tells."""
    died = {version.uid: version.revision for version in case.history.of("run") if version.deleted}
    for kind in ("job", "claim"):
        for version in _firsts(case.history.of(kind)):
            annotations = version.body["metadata"].get("annotations") or {}
            owner = owner_uid(version.body) or annotations.get(RUN_UID_ANNOTATION, "")
            if owner in died and version.revision > died[owner]:
                yield f"{kind} {version.body['metadata']['name']} was created after its run was gone"


def writes_are_safe_to_repeat(case: Case) -> Iterator[str]:
    """On the wire: status with the version that was read, children with names of their own, deletes with a UID."""
    for write in case.writes:
        body, metadata = write.request.body or {}, (write.request.body or {}).get("metadata", {})
        of_status = write.request.verb == "PATCH" and write.request.path.endswith("/status")
        if of_status and not metadata.get("resourceVersion"):
            yield f"{write.label} has no resourceVersion"
        if write.request.verb == "POST" and write.request.resource != "events" and not metadata.get("name"):
            yield f"{write.label} leaves the name to the API server"
        if write.request.verb == "DELETE" and not body.get("preconditions", {}).get("uid"):
            yield f"{write.label} has no UID"


def no_exit(case: Case) -> Iterator[str]:
    """The operator ends only when it is killed, or as often as the plan allows."""
    if len(case.exits) > case.exits_allowed:
        yield f"it exited with {', '.join(map(str, case.exits))}; {case.exits_allowed} allowed"


def nothing_unhandled(case: Case) -> Iterator[str]:
    """No error of the operator's own that nobody expected."""
    for line in case.log.splitlines():
        if "can't be reconciled" in line:
            yield line.strip()[:300]


def checkpoints_are_whole(case: Case) -> Iterator[str]:
    """Whoever looks into the volume sees whole checkpoints or none."""
    yield from case.damaged


def fault_struck(case: Case) -> Iterator[str]:
    """The plan's own fault happened, or it has shown nothing."""
    for rule in case.never_struck:
        yield f"never came: {rule}"
    planned, seen = case.crashes
    if planned != seen:
        yield f"the operator was to be killed {planned} times, and was {seen} times"


ORACLES: Mapping[str, Oracle] = {
    "converges": converges,
    "end-state": end_state,
    "one-job-per-attempt": one_job_per_attempt,
    "one-live-pod": one_live_pod,
    "within-the-limit": within_the_limit,
    "history-goes-forward": history_goes_forward,
    "told-once": told_once,
    "nothing-for-the-dead": nothing_for_the_dead,
    "writes-are-safe": writes_are_safe_to_repeat,
    "no-exit": no_exit,
    "nothing-unhandled": nothing_unhandled,
    "checkpoints-are-whole": checkpoints_are_whole,
    "fault-struck": fault_struck,
}


def judge(case: Case) -> Sequence[Finding]:
    """What every oracle finds."""
    return [Finding(name, what) for name, oracle in ORACLES.items() for what in oracle(case)]


def lost_events(history: History) -> int:
    """Entries of the runs' histories that no Kubernetes Event tells of: those of a crash between the two writes."""
    posted = {version.body["metadata"]["name"] for version in history.of("event")}
    lost = 0
    for body in history.there("run"):
        name, uid = body["metadata"]["name"], body["metadata"]["uid"]
        entries = body.get("status", {}).get("events", ())
        lost += sum(f"{name}.{uid[:8]}.{entry['sequence']}" not in posted for entry in entries)
    return lost


def dump(history: History) -> str:
    """Every version in one line each, for whoever looks into a failure."""
    lines = []
    for version in history.versions:
        metadata, status = version.body["metadata"], version.body.get("status", {})
        told = [event["type"] for event in status.get("events", ())] if version.kind == "run" else ""
        shown = {"phase": status.get("phase"), "attempt": status.get("attempt"), "told": told}
        said = version.body.get("reason") or json.dumps({key: value for key, value in shown.items() if value})
        lines.append(f"{version.at:.3f} {'-' if version.deleted else '+'} {version.kind} {metadata['name']} {said}")
    return "\n".join(lines)
