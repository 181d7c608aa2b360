"""Durations: `3ep`, `500ba`, `2000000tok`, `30min`, and nothing else."""

import pytest

from finetune_api.durations import Duration, Unit
from tests.constraint_rows import FORMATS, LENGTHS


@pytest.mark.parametrize(
    ("value", "parsed"),
    [
        ("3ep", Duration(3, Unit.EPOCHS)),
        ("500ba", Duration(500, Unit.BATCHES)),
        ("2000000tok", Duration(2_000_000, Unit.TOKENS)),
        ("30min", Duration(30, Unit.MINUTES)),
    ],
)
def test_each_unit_is_read_and_written(value: str, parsed: Duration) -> None:
    assert Duration.parse(value) == parsed
    assert str(parsed) == value


@pytest.mark.parametrize("value", LENGTHS, ids=repr)
def test_anything_else_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="is not a whole number followed by ep, ba, tok or min"):
        Duration.parse(value)


@pytest.mark.parametrize(
    "field", ["spec.training.maxDuration", "spec.training.evaluationInterval", "spec.checkpoint.interval"]
)
def test_what_the_formats_take_is_read(field: str) -> None:
    for value in FORMATS[field][0]:
        assert str(Duration.parse(value)) == value
