"""What a person is told of a configuration that can't be used."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api import mistakes
from finetune_api.trainer_config import TrainerConfig

GOOD: dict[str, Any] = {"model": {"path": "/m"}, "dataset": {"train": {"path": "/d"}}}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a typing mistake": (
        {"training": {"learningrate": 0.1}},
        "training.learningrate: unknown field; did you mean learningRate?",
    ),
    "Python's way to write it": (
        {"training": {"max_sequence_lenght": 9}},
        "training.max_sequence_lenght: unknown field; did you mean maxSequenceLength?",
    ),
    "at the top": ({"trainning": {}}, "trainning: unknown field; did you mean training?"),
    "in a model that may be missing": (
        {"method": {"lora": {"ranks": 8}}},
        "method.lora.ranks: unknown field; did you mean rank?",
    ),
    "nothing like it": (
        {"checkpoint": {"zzz": 1}},
        "checkpoint.zzz: unknown field; known are interval, keep, resume",
    ),
    "another type": (
        {"training": {"learningRate": "fast"}},
        "training.learningRate: Input should be a valid number, unable to parse string as a number, not 'fast'",
    ),
    "not one of a choice": ({"device": "TPU"}, "device: Input should be 'Auto', 'CPU' or 'CUDA', not 'TPU'"),
    "missing": ({"model": None}, "model: "),
}


@pytest.mark.parametrize(("changes", "said"), WRONG.values(), ids=WRONG)
def test_a_mistake_is_told_with_its_field_and_a_remedy(changes: dict[str, Any], said: str) -> None:
    assert said in _told(GOOD | changes)


def test_what_is_missing_is_named() -> None:
    assert _told({"model": {"path": "/m"}}) == "dataset: is required"


def test_of_many_mistakes_the_first_are_told() -> None:
    told = _told(GOOD | {f"unknown{number}": 1 for number in range(9)})
    assert told.count("unknown field") == mistakes.MOST
    assert told.endswith("; and 4 more")


def test_a_long_value_is_not_shown_whole() -> None:
    assert len(_told(GOOD | {"device": "x" * 10_000})) < 300


def _told(given: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        TrainerConfig.decode(json.dumps(given))
    return mistakes.told(caught.value, TrainerConfig)
