"""What isn't built is refused by name, and nothing else is. The table follows GAPS: a new gap needs a row here."""

from typing import Any

import pytest

from finetune_operator import failures, policy, support
from finetune_operator.policy import Action
from tests import worlds

ASKED: dict[str, list[Any]] = {
    "profile": ["a100-small"],
    "queue.name": ["team-a"],
    "tracking.mlflow": [{"trackingUri": "http://mlflow:5000"}],
    "tracking.tensorBoard": [True],
}
"""Each gap with what a user may ask of it."""
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
    run = worlds.run({field: value})
    decision = policy.decide(worlds.world(run))
    assert decision.action is Action.REFUSE
    assert decision.failure is not None
    assert decision.failure.reason == failures.NOT_SUPPORTED
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
        ("dataset.format", "Parquet"),
        ("dataset.streaming", True),
        ("dataset.credentials", {"secretName": "data-keys"}),
        ("dataset.train.uri", "s3://data/train.jsonl"),
        ("dataset.train.uri", "https://example.com/x.jsonl"),
        ("model.uri", "gs://models/llama"),
        ("task", "Preference"),
        ("method.type", "Full"),
        ("method.type", "LoRA"),
        ("dataset.columns.prompt", "question"),
        ("resources.nodes", 2),
        ("resources.devicesPerNode", 8),
        ("storage.retain", "Delete"),
        ("storage.uploadUri", "s3://models/support-bot"),
        ("storage.mergeAdapter", True),
        ("trainer.image", "registry.example.com/trainer:2"),
        ("model.uri", "run://other/ep1-ba5"),
        ("queue.priority", -5),
        ("recovery.onHang", "Restart"),
        ("activeDeadlineSeconds", 3600),
        ("suspend", True),
        ("cancel", True),
        ("ttlSecondsAfterFinished", 0),
    ],
)
def test_what_is_built_is_accepted(field: str, value: Any) -> None:
    assert fields({field: value}) == []


def test_all_that_is_missing_is_told_at_once() -> None:
    assert fields({"tracking.tensorBoard": True, "profile": "a100", "queue.name": "team-a"}) == [
        "spec.profile",
        "spec.queue.name",
        "spec.tracking.tensorBoard",
    ]


def test_a_long_value_is_cut_so_that_the_others_are_told_too() -> None:
    long = "x" * 490
    run = worlds.run({"model.uri": f"s3://m/{long}", "dataset.train.uri": f"s3://d/{long}", "profile": "a100"})
    failure = policy.decide(worlds.world(run)).failure
    assert failure is not None
    assert len(failure.message) <= 1024
    assert "spec.profile" in failure.message
