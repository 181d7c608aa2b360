"""Names: the same every time, within 63 characters, never the same for two things."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator import names
from finetune_operator.names import Key

UID = "6c3f2a1e-5d7b-4c89-9e01-23456789abcd"
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
RUN_NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(names.job("support-bot", 3), "support-bot-3", id="a job is named after run and attempt"),
        pytest.param(names.claim("support-bot", UID), "support-bot-6c3f2a1e", id="a claim is of one run alone"),
        pytest.param(names.event("support-bot", UID, 4), "support-bot.6c3f2a1e.4", id="an event is of one entry"),
        pytest.param(str(Key("ml", "support-bot")), "ml/support-bot", id="a key reads as namespace and name"),
    ],
)
def test_names(found: str, expected: str) -> None:
    assert found == expected


@given(RUN_NAMES, st.integers(1, 100_000))
def test_names_of_jobs_and_claims_fit_a_label_and_are_the_same_every_time(run: str, attempt: int) -> None:
    for name in (names.job(run, attempt), names.claim(run, UID)):
        assert LABEL.fullmatch(name), name
    assert names.job(run, attempt) == names.job(run, attempt)


@given(RUN_NAMES, RUN_NAMES, st.integers(1, 100_000), st.integers(1, 100_000))
def test_two_attempts_never_share_a_name(one: str, other: str, first: int, second: int) -> None:
    assert (names.job(one, first) == names.job(other, second)) == ((one, first) == (other, second))


def test_long_names_that_begin_alike_stay_apart() -> None:
    alike = "a" * 62
    assert names.job(alike + "b", 1) != names.job(alike + "c", 1)


def test_labels_say_whose_child_it_is() -> None:
    assert names.labels("support-bot") == {
        "app.kubernetes.io/managed-by": "finetune-operator",
        "finetune.dev/run": "support-bot",
    }
    assert names.labels("support-bot", attempt=2)["finetune.dev/attempt"] == "2"
