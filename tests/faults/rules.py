"""Rules of a fault: what is done to which request or to which line of a watch, and when. Pure but for the counting.

A rule counts what matches `at` from the moment it is armed: at once, or when the scenario reaches the mark `armed`, or
when the rule before it has struck (`chained`). From the `nth` match on it strikes, `times` times, or for `seconds`;
with `every` it strikes the `nth` match and each so many after it, to the end.
"""

from __future__ import annotations

import dataclasses
import enum
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self


class Do(enum.StrEnum):
    """What can be done."""

    CRASH_BEFORE = "crash-before"  # kill -9 the operator; the request never arrives
    CRASH_AFTER = "crash-after"  # the request is carried out, then kill -9 before the answer
    CRASH_LATE = "crash-late"  # kill -9; the request is on its way and arrives when the world has moved on
    ANSWER = "answer"  # a code in place of carrying it out
    DROP = "drop"  # the connection ends, the request never arrives
    DROP_REPLY = "drop-reply"  # carried out, then the connection ends
    DELAY = "delay"  # arrives `seconds` later
    LATE_REPLY = "late-reply"  # carried out now, answered `seconds` later: what was read is old by then
    AWAY = "away"  # from this request on the API server refuses connections for `seconds`
    CUT = "cut"  # of a watch: the connection ends in the middle of this line
    SILENCE = "silence"  # of a watch: nothing more ever comes, and the connection stays
    ERROR = "error"  # of a watch: an ERROR with `code` in place of this line
    HIDE = "hide"  # of a watch: this line is held back until the next of the same object, and then dropped
    LAG = "lag"  # of a watch: this line and all after it come `seconds` later


OF_A_WATCH = frozenset({Do.CUT, Do.SILENCE, Do.ERROR, Do.HIDE, Do.LAG})
CRASHES = frozenset({Do.CRASH_BEFORE, Do.CRASH_AFTER, Do.CRASH_LATE})
AT_ONCE = -1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule. `at` is a pattern of shell style for names as `wire` gives them, without their counts."""

    do: Do
    at: str
    nth: int = 1
    times: int = 1
    every: int = 0
    seconds: float = 0.0
    code: int = 500
    retry_after: int | None = None
    armed: str = ""
    chained: bool = False

    @classmethod
    def parse(cls, found: Mapping[str, Any]) -> Self:
        """From YAML."""
        fields = {key.replace("-", "_"): value for key, value in found.items()}
        return cls(**{**fields, "do": Do(fields["do"])})

    @property
    def ends_watches(self) -> bool:
        """Whether a reader has to open its watch again, or hear nothing any more."""
        lasting = self.seconds > 0 and self.do in (Do.ANSWER, Do.AWAY)
        return lasting or self.do in (Do.CUT, Do.SILENCE, Do.ERROR)

    def __str__(self) -> str:
        what = f"{self.do} {self.code}" if self.do in (Do.ANSWER, Do.ERROR) else str(self.do)
        return f"{what} at {self.at}" + (f"#{self.nth}" if self.nth > 1 else "")


@dataclasses.dataclass
class _Count:
    rule: Rule
    armed: bool
    seen: int = 0
    struck: int = 0
    first: float = AT_ONCE


class RuleBook:
    """The rules of one plan, and how often each has struck."""

    def __init__(self, rules: Sequence[Rule], *, clock: Callable[[], float]) -> None:
        self._counts = [_Count(rule, armed=not rule.armed and not rule.chained) for rule in rules]
        self._clock = clock

    def mark(self, name: str) -> None:
        """The scenario has come to a mark."""
        for count in self._counts:
            count.armed = count.armed or count.rule.armed == name

    def strike(self, label: str, *, watch: bool = False) -> Rule | None:
        """The rule for a request, or for a line of a watch, if there is one; it counts as having struck."""
        for place, count in enumerate(self._counts):
            rule = count.rule
            if not count.armed or (rule.do in OF_A_WATCH) is not watch or not fnmatch.fnmatchcase(label, rule.at):
                continue
            count.seen += 1
            if self._holds(count):
                self._note(count, place)
                return rule
        return None

    def _holds(self, count: _Count) -> bool:
        rule = count.rule
        if count.seen < rule.nth:
            return False
        lasting = rule.seconds > 0 and rule.do == Do.ANSWER
        if lasting and count.struck:
            return self._clock() < count.first + rule.seconds
        if rule.every:
            return (count.seen - rule.nth) % rule.every == 0
        return count.struck < rule.times

    def _note(self, count: _Count, place: int) -> None:
        if not count.struck:
            count.first = self._clock()
        count.struck += 1
        if place + 1 < len(self._counts) and self._counts[place + 1].rule.chained:
            self._counts[place + 1].armed = True

    @property
    def waiting(self) -> Sequence[Rule]:
        """Those that never struck."""
        return [count.rule for count in self._counts if not count.struck]

    def over(self) -> bool:
        """Whether all have struck, and nothing lasting is going on."""
        return not self.waiting and self.last_end() <= self._clock()

    @staticmethod
    def ends(count: _Count) -> float:
        """When what has begun is over."""
        return count.first + count.rule.seconds if count.struck else AT_ONCE

    def watches_since(self) -> float:
        """Since when every watch has to have been opened anew: the end of what no watch survives."""
        ends = [self.ends(count) for count in self._counts if count.rule.ends_watches]
        return max(ends, default=AT_ONCE)

    def last_end(self) -> float:
        """When the last of what has begun is over."""
        return max((self.ends(count) for count in self._counts), default=AT_ONCE)
