"""The models hold every constraint of the CRD: what the API server is to refuse, Python refuses with the same words."""

import pytest
from pydantic import ValidationError

from finetune_api import crd
from finetune_api.types import FineTuneRun
from tests import constraints
from tests.constraint_rows import FORMATS, RULES

SCHEMA = crd.schema()
CASES = list(constraints.cases(SCHEMA))
EACH = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


def test_every_format_has_a_row_and_every_row_a_format() -> None:
    assert constraints.formats(SCHEMA) == set(FORMATS)


def test_every_rule_has_a_row_and_every_row_a_rule() -> None:
    assert constraints.object_rules(SCHEMA) == set(RULES)


def test_every_keyword_has_cases() -> None:
    below = {**SCHEMA, "properties": {name: SCHEMA["properties"][name] for name in ("spec", "status")}}
    assert constraints.unknown_keywords(below) == set()


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in CASES]
    assert sorted(set(names)) == sorted(names)


@EACH
def test_the_models_take(case: constraints.Case) -> None:
    FineTuneRun.parse(case.accepted)


@EACH
def test_the_models_refuse(case: constraints.Case) -> None:
    with pytest.raises(ValidationError) as caught:
        FineTuneRun.parse(case.rejected)
    if case.ours:
        assert case.ours in str(caught.value)
