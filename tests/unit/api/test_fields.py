"""What all models share: strict reading, formats and rules with their sentences, text that fits."""

from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from finetune_api.compute import Resources
from finetune_api.fields import cut
from finetune_api.method import BatchSize, Lora, Method
from finetune_api.spec import FineTuneRunSpec
from finetune_api.status import FineTuneRunStatus
from finetune_api.types import FineTuneRun
from tests import builders
from tests.constraint_rows import SPEC, STATUS


def first_error(caught: pytest.ExceptionInfo[ValidationError]) -> str:
    return caught.value.errors()[0]["msg"]


def test_reading_and_writing_gives_the_same() -> None:
    assert FineTuneRunSpec.parse(SPEC).to_wire() == SPEC
    assert FineTuneRunStatus.parse(STATUS).to_wire() == STATUS


def test_a_run_is_read_with_every_default() -> None:
    run = FineTuneRun.parse(builders.run("x"))
    assert run.spec.training.max_duration == "1ep"
    assert run.spec.method.adapter == Lora()
    assert run.status.observed_generation == -1


def test_full_fine_tuning_has_no_adapter() -> None:
    assert Method.parse({"type": "Full"}).adapter is None


def test_any_mapping_can_be_read() -> None:
    body = MappingProxyType({"nodeSelector": MappingProxyType({"a": "b"})})
    assert Resources.parse(body).node_selector == {"a": "b"}


@pytest.mark.parametrize("nodes", ["2", True, 1.5, None, [1]], ids=repr)
def test_no_type_becomes_another(nodes: object) -> None:
    with pytest.raises(ValidationError, match="valid integer"):
        Resources.parse({"nodes": nodes})


def test_a_field_goes_by_its_name_in_the_manifest_only() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Resources.parse({"devices_per_node": 2})


def test_a_format_says_what_would_be_right_and_what_was_there() -> None:
    with pytest.raises(ValidationError) as caught:
        Resources.parse({"cpu": "eight"})
    assert first_error(caught) == 'must be a number of CPU cores above 0, e.g. "8", "0.5" or 500m, not \'eight\''


def test_a_long_value_is_cut_in_the_message() -> None:
    with pytest.raises(ValidationError) as caught:
        BatchSize.parse({"perDevice": "x" * 5000})
    assert len(first_error(caught)) < 200


def test_a_rule_says_what_to_do() -> None:
    with pytest.raises(ValidationError) as caught:
        BatchSize.parse({"global": 64, "gradientAccumulationSteps": 2})
    assert first_error(caught) == "global and gradientAccumulationSteps exclude each other: set one of them"


def test_models_cant_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Resources().nodes = 2  # type: ignore[misc]  # what is tested


def test_a_newer_status_is_read_all_the_same() -> None:
    assert FineTuneRunStatus.parse({"attempt": 2, "colour": "blue"}).attempt == 2


@given(st.text(max_size=300), st.integers(min_value=2, max_value=100))
def test_cut_text_fits_and_holds_no_control_character(text: str, limit: int) -> None:
    short = cut(text, limit)
    assert len(short) <= limit
    assert all(char.isprintable() or char == "\n" for char in short)


def test_short_text_stays_as_it_is() -> None:
    assert cut("line 17: unknown key 'respnse'") == "line 17: unknown key 'respnse'"


def test_builders_alter_nothing_and_none_removes() -> None:
    base = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert builders.merged(base, {"a": {"b": None}, "d": [2]}) == {"a": {"c": 2}, "d": [2]}
    assert base == {"a": {"b": 1, "c": 2}, "d": [1]}


def test_a_stored_run_is_one_that_the_models_read() -> None:
    run = FineTuneRun.parse(builders.stored(builders.run("x", suspend=True), generation=2, status={"attempt": 1}))
    assert (run.metadata.generation, run.spec.suspend, run.status.attempt) == (2, True, 1)
