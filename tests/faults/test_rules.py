"""When a rule strikes: counted from when it is armed, as often or as long as it says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.faults.rules import Do, Rule, RuleBook


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def struck(book: RuleBook, labels: Sequence[str], *, watch: bool = False) -> Sequence[bool]:
    return [book.strike(label, watch=watch) is not None for label in labels]


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        (Rule(do=Do.DROP, at="POST-jobs"), [False, True, False, False]),
        (Rule(do=Do.DROP, at="POST-jobs", nth=2), [False, False, True, False]),
        (Rule(do=Do.DROP, at="*", nth=2, times=2), [False, True, True, False]),
        (Rule(do=Do.DROP, at="PUT-*"), [False, False, False, False]),
        (Rule(do=Do.DROP, at="*", nth=2, every=2), [False, True, False, True]),
        (Rule(do=Do.DROP, at="*", every=1), [True, True, True, True]),
    ],
    ids=["the first that matches", "the second", "twice", "nothing", "every other one", "each"],
)
def test_a_rule_strikes(rule: Rule, found: Sequence[bool]) -> None:
    labels = ["LIST-jobs-fresh", "POST-jobs", "POST-jobs", "POST-jobs"]
    assert struck(RuleBook([rule], clock=Clock()), labels) == found


def test_one_that_lasts_strikes_until_its_time_is_over() -> None:
    clock = Clock()
    book = RuleBook([Rule(do=Do.ANSWER, at="*", seconds=10)], clock=clock)
    assert struck(book, ["a", "b"]) == [True, True]
    assert not book.over()
    clock.now += 10.1
    assert struck(book, ["c"]) == [False]
    assert book.over()
    assert book.last_end() == 110.0


def test_a_mark_arms_it_and_what_came_before_does_not_count() -> None:
    book = RuleBook([Rule(do=Do.DROP, at="a", nth=2, armed="training")], clock=Clock())
    assert struck(book, ["a", "a", "a"]) == [False, False, False]
    book.mark("training")
    assert struck(book, ["a", "a"]) == [False, True]


def test_the_rule_before_it_arms_a_chained_one() -> None:
    book = RuleBook([Rule(do=Do.DROP, at="a"), Rule(do=Do.DROP, at="b", chained=True)], clock=Clock())
    assert struck(book, ["b", "a", "b"]) == [False, True, True]
    assert book.waiting == []


def test_lines_of_a_watch_and_requests_have_their_own_rules() -> None:
    book = RuleBook([Rule(do=Do.CUT, at="*"), Rule(do=Do.DROP, at="*")], clock=Clock())
    assert book.strike("EVENT-jobs-ADDED", watch=True) == Rule(do=Do.CUT, at="*")
    assert book.strike("LIST-jobs-kopf") == Rule(do=Do.DROP, at="*")


def test_one_that_never_struck_is_named() -> None:
    book = RuleBook([Rule(do=Do.ANSWER, at="POST-jobs", code=409, nth=3)], clock=Clock())
    assert [str(rule) for rule in book.waiting] == ["answer 409 at POST-jobs#3"]
