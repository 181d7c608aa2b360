"""Plans: a scenario, what is done to the operator in it, and what else happens meanwhile. Each has a name of its own.

Those of the form "every write of a scenario" are named after what they do, `succeed/crash-after/POST-jobs`, so that the
name alone makes the plan; which of them there are follows from reference runs. The others are YAML in `plans/`, where
`each` stands for one plan for each of its values.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml

from tests.faults import wire
from tests.faults.rules import CRASHES, Do, Rule
from tests.faults.scenario import Scenario

FOLDER = Path(__file__).parent / "plans"
CODES = (404, 409, 410, 422, 429, 500, 503)
REFUSALS = (403, 422)
RETRY_AFTER = {429: 1}
MOST_OF_A_LINE = 2
MOST_OF_A_NAME = 3
"""Of requests that are made again and again, so many are planned for."""
BOUND = 30.0
LATE_SECONDS = 3.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One plan. `meanwhile` happens while a crashed operator is down, see `meanwhile.py`."""

    name: str
    scenario: str
    rules: tuple[Rule, ...] = ()
    meanwhile: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    exits_allowed: int = 0
    errors_allowed: bool = False
    """Whether the operator may log an error of its own, as when an answer is one that no API server gives."""
    may_tell: tuple[str, ...] = ()
    """Types of entries that the history may have, or not: a refusal is told."""
    bound: float = BOUND
    """Seconds from the fault's end to each next step."""
    planted: str = ""
    """A defect of the operator, see `planted.py`."""
    image: str = ""
    """Another trainer than the scenario's."""

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> Self:
        """From YAML."""
        fields = {key.replace("-", "_"): value for key, value in found.items() if key != "faults"}
        return cls(**fields, rules=tuple(Rule.parse(rule) for rule in found.get("faults", ())))

    def with_defect(self, planted: str) -> Plan:
        """The same, carried out by an operator with a defect."""
        return dataclasses.replace(self, planted=planted, name=f"{self.name} with {planted}")

    def with_trainer(self, image: str) -> Plan:
        """The same with another trainer."""
        return dataclasses.replace(self, image=image, name=f"{self.name} with {image}")

    @property
    def crashes(self) -> bool:
        """Whether the operator is killed."""
        return any(rule.do in CRASHES for rule in self.rules)


def written() -> Sequence[Plan]:
    """Those in YAML."""
    return [
        Plan.parse(one)
        for path in sorted(FOLDER.glob("*.yaml"))
        for entry in yaml.safe_load(path.read_text())
        for one in _expanded(entry)
    ]


def _expanded(entry: Mapping[str, Any]) -> Iterator[Any]:
    """One for each combination of the values in `each`, written {name} where they belong."""
    each = entry.get("each", {})
    rest = {key: value for key, value in entry.items() if key != "each"}
    for values in itertools.product(*each.values()):
        yield _filled(rest, dict(zip(each, values, strict=True)))


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _filled(inner, values) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, values) for inner in value]
    if isinstance(value, str):
        alone = re.fullmatch(r"\{(\w+)\}", value)
        if alone and alone[1] in values:
            return values[alone[1]]
        return value.format_map(values) if values else value
    return value


def named(name: str) -> Plan:
    """The plan that a name of the generated kind stands for."""
    scenario, fault, label = name.split("/", 2)
    fault, _, meanwhile = fault.partition("+")
    do, code = fault, 500
    if fault.startswith("answer-"):
        do, code = "answer", int(fault.removeprefix("answer-"))
    on, _, count = label.partition("#")
    seconds = LATE_SECONDS if do == Do.LATE_REPLY else 0.0
    rule = Rule(do=Do(do), at=on, nth=int(count or 1), code=code, seconds=seconds, retry_after=RETRY_AFTER.get(code))
    odd = do == Do.ANSWER
    return Plan(
        name=name,
        scenario=scenario,
        rules=(rule,),
        meanwhile=meanwhile,
        exits_allowed=1 if odd else 0,
        errors_allowed=odd,
        may_tell=("QUEUED",) if odd and code in REFUSALS else (),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What a reference run's proxy has seen: requests and lines of watches, by their names."""

    writes: Sequence[str]
    reads: Sequence[str]
    lines: Sequence[str]

    @classmethod
    def in_all(cls, references: Sequence[Seen]) -> Seen:
        """What every reference run has, in the order of the first."""
        first, *others = references

        def common(of: str) -> Sequence[str]:
            return [label for label in getattr(first, of) if all(label in getattr(one, of) for one in others)]

        return cls(writes=common("writes"), reads=common("reads"), lines=common("lines"))

    def with_(self, other: Seen) -> Seen:
        """Both."""
        return Seen(
            writes=[*self.writes, *other.writes], reads=[*self.reads, *other.reads], lines=[*self.lines, *other.lines]
        )

    def but(self, other: Seen) -> Seen:
        """What another has not."""
        return Seen(
            writes=[label for label in self.writes if label not in other.writes],
            reads=[label for label in self.reads if label not in other.reads],
            lines=[label for label in self.lines if label not in other.lines],
        )


def seen(exchanges: Sequence[wire.Exchange], lines: Mapping[str, int]) -> Seen:
    """From a proxy's log."""
    kept = [one for one in exchanges if int(one.label.partition("#")[2] or 1) <= MOST_OF_A_NAME]
    return Seen(
        writes=[one.label for one in kept if one.request.is_write],
        reads=[one.label for one in kept if not one.request.is_write],
        lines=[
            wire.counted(line, n) for line, count in lines.items() for n in range(1, min(count, MOST_OF_A_LINE) + 1)
        ],
    )


def generated(scenario: Scenario, found: Seen, *, done: Seen) -> Sequence[Plan]:
    """Every plan that a scenario's writes, reads and watches give rise to.

    `done` was seen in an earlier scenario: crashes and lost replies are tried at every write all the same, since what
    follows is another; codes, dropped requests, late replies and hidden lines only once.
    """
    new, writes = found.but(done), [label for label in found.writes if scenario.stepwise or not _may_merge(label)]
    names = [
        f"{do}/{label}"
        for label in writes
        for do in (*CRASHES_AT_WRITES, Do.DROP_REPLY)
        if not (do == Do.CRASH_LATE and scenario.loses_the_run and label in CREATES)
    ]
    for meanwhile in scenario.meanwhile:
        after = writes if meanwhile == "delete" else writes[_first_job(writes) :]
        names += [f"{do}+{meanwhile}/{label}" for label in after for do in (Do.CRASH_BEFORE, Do.CRASH_AFTER)]
    asked = [label for label in (*new.reads, *new.writes) if scenario.stepwise or not _may_merge(label)]
    names += [f"answer-{code}/{label}" for label in asked for code in CODES]
    names += [f"{Do.DROP}/{label}" for label in asked]
    names += [f"{Do.LATE_REPLY}/{label}" for label in new.reads if not label.startswith("WATCH")]
    names += [f"{Do.HIDE}/{line}" for line in new.lines]
    return [named(f"{scenario.name}/{name}") for name in names]


def _may_merge(label: str) -> bool:
    """A second status of one name tells of progress alone, which polls may see in one or in two."""
    return label.startswith("PATCH-status-") and "#" in label


CREATES = ("POST-jobs", "POST-persistentvolumeclaims")
"""If one of them arrives when its run is gone, nothing can help: Kubernetes removes the Job for want of an owner."""
CRASHES_AT_WRITES = (Do.CRASH_BEFORE, Do.CRASH_AFTER, Do.CRASH_LATE)


def _first_job(writes: Sequence[str]) -> int:
    """Before it there is nothing that could end."""
    return writes.index("POST-jobs") if "POST-jobs" in writes else len(writes)


def find(name: str) -> Plan:
    """The plan of that name, from YAML or as the name says."""
    return next((plan for plan in written() if plan.name == name), None) or named(name)
