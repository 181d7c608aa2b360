"""What isn't built is refused by name, and nothing else is. The table follows GAPS: a new gap needs a row here."""

from typing import Any

import pytest

from finetune_operator import policy, support
from finetune_operator.policy import Action
from tests import worlds

ASKED: dict[str, list[Any]] = {
    "model.uri": ["s3://models/llama", "gs://models/llama", "run://other/ep1-ba5"],
    "task": ["ContinuedPretrain", "Preference", "Custom"],
    "dataset.train.uri": ["hf://org/data", "s3://data/train.jsonl", "gs://data/x.jsonl", "https://example.com/x.jsonl"],
    "dataset.eval": [{"uri": "pvc://datasets/eval.jsonl"}],
    "dataset.format": ["Parquet", "CSV", "Text", "Delta", "MDS"],
    "dataset.streaming": [True],
    "method.type": ["QLoRA"],
    "training.scaleLearningRateWithBatch": ["SquareRoot"],
    "training.earlyStopping": [{"patience": 2}],
    "storage.uploadUri": ["s3://models/support-bot"],
    "resources.nodes": [2],
    "resources.devicesPerNode": [8],
    "profile": ["a100-small"],
    "queue.name": ["team-a"],
    "queue.priority": [5, -5],
    "recovery.hangTimeoutSeconds": [1800],
    "recovery.onHang": ["Restart"],
    "activeDeadlineSeconds": [3600],
    "tracking.mlflow": [{"trackingUri": "http://mlflow:5000"}],
    "tracking.tensorBoard": [True],
    "suspend": [True],
    "cancel": [True],
    "ttlSecondsAfterFinished": [0, 60],
}
"""Each gap with what a user may ask of it."""
TOGETHER = {"training.earlyStopping": {"dataset.eval": {"uri": "pvc://datasets/eval.jsonl"}}}
"""What the API wants beside it."""

ROWS = [pytest.param(field, value, id=f"{field}: {value}") for field, values in ASKED.items() for value in values]


def fields(changes: dict[str, Any] | None = None) -> list[str]:
    spec = worlds.run(changes).spec
    assert spec is not None
    return [gap.field for gap in support.gaps(spec)]


def test_every_gap_has_a_row_and_every_row_a_gap() -> None:
    assert set(ASKED) == {gap.field for gap in support.GAPS}


def test_a_spec_of_defaults_asks_for_nothing_that_is_not_built() -> None:
    assert fields() == []


@pytest.mark.parametrize(("field", "value"), ROWS)
def test_what_is_not_built_is_refused_by_name_and_with_a_way_out(field: str, value: Any) -> None:
    run = worlds.run(TOGETHER.get(field, {}) | {field: value})
    decision = policy.decide(worlds.world(run))
    assert decision.action is Action.REFUSE
    assert decision.failure is not None
    assert decision.failure.reason == policy.NOT_SUPPORTED
    gap = next(gap for gap in support.GAPS if gap.field == field)
    assert f"spec.{field}: " in decision.failure.message
    assert gap.instead in decision.failure.message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model.uri", "hf://org/name@main"),
        ("model.uri", "pvc://models/llama"),
        ("task", "ChatCompletion"),
        ("task", "InstructionFineTune"),
        ("dataset.train.uri", "configmap://data/train.jsonl"),
        ("dataset.format", "JSONL"),
        ("method.type", "Full"),
        ("method.type", "LoRA"),
        ("dataset.columns.prompt", "question"),
        ("storage.retain", "Delete"),
        ("trainer.image", "registry.example.com/trainer:2"),
        ("queue.priority", 0),
        ("recovery.onHang", "Notify"),
    ],
)
def test_what_is_built_is_accepted(field: str, value: Any) -> None:
    assert fields({field: value}) == []


def test_all_that_is_missing_is_told_at_once() -> None:
    assert fields({"suspend": True, "profile": "a100", "method.type": "QLoRA"}) == [
        "spec.method.type",
        "spec.profile",
        "spec.suspend",
    ]


def test_a_long_value_is_cut_so_that_the_others_are_told_too() -> None:
    long = "x" * 490
    run = worlds.run({"model.uri": f"s3://m/{long}", "dataset.train.uri": f"s3://d/{long}", "suspend": True})
    failure = policy.decide(worlds.world(run)).failure
    assert failure is not None
    assert len(failure.message) <= 1024
    assert "spec.suspend" in failure.message


@pytest.mark.parametrize("field", support.VERBS)
def test_a_verb_turned_in_a_run_that_goes_on_does_not_end_it(field: str) -> None:
    run = worlds.run({field: ASKED[field][0]}, status=worlds.status(1, started=True))
    assert fields({field: ASKED[field][0]}) == [f"spec.{field}"]
    world = worlds.world(run, jobs=(worlds.job(),), pods=(worlds.running(),))
    assert policy.decide(world).action is Action.FOLLOW
