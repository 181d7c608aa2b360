"""Answers are remembered for as long as they are of use."""

from datetime import timedelta

from finetune_operator.recent import Recent
from tests.worlds import at


def test_an_answer_is_kept_for_its_time() -> None:
    recent = Recent[str](keep=timedelta(seconds=10))
    assert recent.put("a", "yes", now=at(0)) == "yes"
    assert recent.get("a", now=at(9)) == "yes"
    assert recent.get("a", now=at(10)) is None
    assert recent.get("a", now=at(3), younger_than=timedelta(seconds=3)) is None
    assert recent.get("b", now=at(0)) is None


def test_old_answers_take_no_room() -> None:
    recent = Recent[str](keep=timedelta(seconds=10))
    for second in range(100):
        recent.put(str(second), "yes", now=at(second))
    assert len(recent._answers) == 10
