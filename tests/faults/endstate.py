"""The end state of a namespace as flat paths and values that can be compared between runs. Pure.

Names and identifiers that Kubernetes makes up are replaced by what they stand for, times by `<time>`; what still
differs between undisturbed runs of one scenario is masked.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from finetune_operator.names import ATTEMPT_LABEL, RUN_LABEL
from tests.faults.recorder import History

Flat = Mapping[str, Any]
COMPARED = ("run", "job", "pod", "claim")
VOLATILE = ("managedFields", "resourceVersion", "containerID", "imageID", "activeSeconds", "earlierActiveSeconds")
"""What tells of time, of the store or of a process, wherever it is."""
PLACEHOLDERS = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)"), "<time>"),
    (re.compile(r"\b198\.1[89]\.\d+\.\d+\b"), "<address>"),
    (re.compile(r"/[^\" ]*/gates-[^\" ]*"), "<gates>"),
    (re.compile(r"/[^\" ]*/volumes/[^\" ]*"), "<volume>"),
)


def of(history: History, *, namespace: str) -> Flat:
    """Every field of every object that there is."""
    text = json.dumps({kind: _by_name(history, kind) for kind in COMPARED})
    for found, stands_for in _made_up(history, namespace):
        text = text.replace(found, stands_for)
    for pattern, stands_for in PLACEHOLDERS:
        text = pattern.sub(stands_for, text)
    return dict(_flat(json.loads(text), ""))


def _by_name(history: History, kind: str) -> Mapping[str, Any]:
    return {_place(kind, body): body for body in history.there(kind)}


def _place(kind: str, body: Mapping[str, Any]) -> str:
    """What an object is called in a comparison: a pod has a random name."""
    metadata = body["metadata"]
    labels = metadata.get("labels") or {}
    return f"{labels.get(RUN_LABEL)}-{labels.get(ATTEMPT_LABEL)}" if kind == "pod" else str(metadata["name"])


def _made_up(history: History, namespace: str) -> Iterator[tuple[str, str]]:
    """Random names and identifiers, the longer ones first."""
    last = {version.uid: version for version in history.versions if version.kind in COMPARED}
    for version in last.values():
        place = _place(version.kind, version.body)
        if version.kind == "pod":
            yield version.body["metadata"]["name"], f"<pod of {place}>"
        yield version.uid, f"<uid of {version.kind}>"
        if version.kind == "run":
            yield version.uid[:8], "<run>"
    yield namespace, "<namespace>"


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key not in VOLATILE:
                yield from _flat(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for place, inner in _places(value, path):
            yield from _flat(inner, f"{path}[{place}]")
    else:
        yield path, value


def _places(items: Sequence[Any], path: str) -> Iterator[tuple[str, Any]]:
    """Entries of the history by type and attempt, conditions by type; anything else by its place."""
    for number, item in enumerate(items):
        if path.endswith("status.events"):
            known = {key: value for key, value in item.items() if key != "sequence"}
            yield f"{item['type']} of {item.get('attempt', 0)}", known
        elif path.endswith("conditions"):
            yield item["type"], item
        else:
            yield str(number), item


@dataclasses.dataclass(frozen=True)
class Expected:
    """What the undisturbed runs of a scenario have in common, and the paths at which they differ."""

    common: Flat
    masked: frozenset[str]

    @classmethod
    def of(cls, references: Sequence[Flat]) -> Expected:
        """From the end states of some runs."""
        paths = {path for one in references for path in one}
        absent = object()
        same = {path for path in paths if len({str(one.get(path, absent)) for one in references}) == 1}
        return cls({path: references[0][path] for path in same}, frozenset(paths - same))

    def differences(self, found: Flat) -> Sequence[str]:
        """Each path at which an end state is another."""
        paths = sorted((set(self.common) | set(found)) - self.masked)
        return [
            f"{path}: {_shown(found, path)} instead of {_shown(self.common, path)}"
            for path in paths
            if found.get(path, _ABSENT) != self.common.get(path, _ABSENT)
        ]


_ABSENT = object()


def _shown(flat: Flat, path: str) -> str:
    return json.dumps(flat[path])[:200] if path in flat else "nothing"
