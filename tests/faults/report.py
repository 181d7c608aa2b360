"""The report of many plans: a table by kind of fault, each bad plan with its finds, and the last line that counts."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence

from tests.faults.performance import Outcome

SHOWN = 12
"""Finds of one plan."""


def kind(outcome: Outcome) -> str:
    """What the second part of a plan's name says was done."""
    parts = outcome.plan.name.split("/")
    return parts[1] if len(parts) > 1 else outcome.plan.name


def lines(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The whole report."""
    yield f"{'fault':32}{'plans':>7}{'bad':>5}{'exits':>7}{'events lost':>13}{'seconds':>9}"
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_kind[kind(outcome)].append(outcome)
    for name, group in sorted(by_kind.items(), key=lambda item: natural(item[0])):
        yield row(name, group)
    yield row("all", outcomes)
    for outcome in outcomes:
        if outcome.bad:
            yield ""
            yield from failure(outcome)
    yield ""
    yield f"{len(outcomes)} plans, {sum(outcome.bad for outcome in outcomes)} bad"


def row(name: str, group: Sequence[Outcome]) -> str:
    """One line of the table."""
    if not group:
        return f"{name:32}{0:>7}"
    bad, exits = sum(one.bad for one in group), sum(len(one.exits) for one in group)
    lost, middle = sum(one.lost_events for one in group), statistics.median(one.seconds for one in group)
    return f"{name:32}{len(group):>7}{bad:>5}{exits:>7}{lost:>13}{middle:>9.1f}"


def failure(outcome: Outcome) -> Iterator[str]:
    """A bad plan: its name, what is wrong, where to look, and how to see it again."""
    yield f"BAD {outcome.plan.name}"
    yield f"    faults: {'; '.join(map(str, outcome.plan.rules)) or 'none'}; meanwhile: {outcome.plan.meanwhile or '-'}"
    for finding in outcome.findings[:SHOWN]:
        yield f"    {finding}"
    if len(outcome.findings) > SHOWN:
        yield f"    and {len(outcome.findings) - SHOWN} more"
    yield f"    kept in {outcome.folder}; again: make faults ARGS=\"-k '{outcome.plan.name}'\""


def natural(text: str) -> list[tuple[int, str]]:
    """Numbers within names are ordered as numbers."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", text)]
