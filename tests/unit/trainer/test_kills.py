"""A seeded handful of the instants that `python -m tests.kills` plays 50 of."""

from collections import Counter
from pathlib import Path

import pytest

from tests import kills

INSTANTS = (
    kills.Instant(kind="LoRA packed", place="bytes", number=40_000),
    kills.Instant(kind="full padded", place="read back", number=12),
    kills.Instant(kind="LoRA padded", place="restore", number=1),
)


@pytest.mark.parametrize("instant", INSTANTS, ids=str)
def test_killed_at_an_instant_it_ends_as_if_nothing_had_happened(tmp_path: Path, instant: kills.Instant) -> None:
    whole = kills.undisturbed(instant.kind, tmp_path / "whole")
    outcome = kills.kill(instant, tmp_path / "killed", whole)
    assert outcome.good, outcome
    assert outcome.in_save == (instant.place in kills.IN_SAVES)
    assert outcome.repeated <= kills.INTERVAL + 2  # what was done while the save under way was written


def test_the_instants_are_drawn_from_all_kinds_and_mostly_from_saves(tmp_path: Path) -> None:
    passings = dict.fromkeys((*kills.IN_SAVES, *kills.ELSEWHERE), 20)
    whole = kills.Whole(weights="", passings=passings, records=Counter())
    drawn = list(kills.instants(0, 50, dict.fromkeys(kills.KINDS, whole)))
    assert {instant.kind for instant in drawn} == kills.KINDS.keys()
    assert {instant.place for instant in drawn} == passings.keys()
    assert sum(instant.place in kills.IN_SAVES for instant in drawn) > 30
    assert drawn == list(kills.instants(0, 50, dict.fromkeys(kills.KINDS, whole)))


def test_a_record_that_is_missed_or_seen_twice_is_noticed() -> None:
    steps = [["a", "b"], ["c", "d"]]
    assert kills._effective([steps, [["c", "d"]]], [0, 1]) == (steps, 1)
    with pytest.raises(AssertionError, match="steps are missing"):
        kills._effective([steps, [["e"]]], [0, 3])
    seen, _ = kills._effective([steps, [["a", "d"]]], [0, 1])
    assert seen == [["a", "b"], ["a", "d"]]  # which the count by digest then refuses
