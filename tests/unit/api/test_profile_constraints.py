"""The second CRD, by the same means: all is bounded and explained, and the models hold every constraint of it."""

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api import crd
from finetune_api.profile import ClusterFineTuneProfileSpec
from finetune_api.types import ClusterFineTuneProfile
from tests import builders, constraints, profile_rows

SCHEMA = crd.schema(crd.PROFILE)
FIELDS = list(constraints.fields(SCHEMA["properties"]["spec"], path="spec"))
CASES = list(constraints.cases(SCHEMA, constraints.PROFILE))
EACH = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
SERVED = crd.crd(crd.PROFILE)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_every_format_and_every_rule_has_a_row_and_every_row_one() -> None:
    assert constraints.formats(SCHEMA, "profile") == set(profile_rows.FORMATS)
    assert constraints.object_rules(SCHEMA, "profile") == set(profile_rows.RULES)


def test_every_field_has_a_value_in_the_full_manifest() -> None:
    for path, _ in constraints.fields(SCHEMA["properties"]["spec"], path="profile"):
        constraints.value_at(constraints.manifest(path), path)


@EACH
def test_the_models_take(case: constraints.Case) -> None:
    ClusterFineTuneProfile.parse(case.accepted)


@EACH
def test_the_models_refuse(case: constraints.Case) -> None:
    with pytest.raises(ValidationError) as caught:
        ClusterFineTuneProfile.parse(case.rejected)
    if case.ours:
        assert case.ours in str(caught.value)


@pytest.mark.parametrize(("path", "node"), FIELDS, ids=[path for path, _ in FIELDS])
def test_every_field_is_bounded_and_says_what_it_is(path: str, node: Mapping[str, Any]) -> None:
    bounds = {"string": "maxLength", "integer": "maximum", "number": "maximum", "array": "maxItems"}
    is_free = {"enum", "format", "x-kubernetes-int-or-string"} & set(node)
    assert is_free or bounds.get(node["type"], "type") in node
    assert "additionalProperties" not in node or "maxProperties" in node
    assert path.endswith(("[]", "{}")) or node["description"].rstrip().endswith(".")


def test_the_api_server_fills_in_no_default_that_a_run_may_leave_out() -> None:
    defaults = SERVED["properties"]["spec"]["properties"]["defaults"]
    for path, node in constraints.fields(defaults, path="defaults"):
        inside_a_list = "[]" in path
        assert inside_a_list or node.get("default", {}) == {}, path


def test_a_profile_of_nothing_gives_nothing_and_allows_what_has_no_switch() -> None:
    assert ClusterFineTuneProfile.parse(builders.profile()).spec == ClusterFineTuneProfileSpec()


def test_what_every_profile_gives_fits_the_status() -> None:
    """The longest of each kind that a profile may hold; it is recorded in one field of the run's status."""
    label = f"{'a' * 253}/{'b' * 63}"
    toleration = {"key": label, "operator": "Equal", "value": "v" * 63, "effect": "NoExecute", "tolerationSeconds": 9}
    longest = [
        *(f'"{label}":"{"v" * 63}"' for _ in range(16)),
        *(str(toleration) for _ in range(16)),
        *('"' + "m" * 128 + '"' for _ in range(64)),
        "u" * 512,
        "e" * 256 * 2,
        "i" * 512,
        "x" * 2000,
    ]
    limit = crd.schema()["properties"]["status"]["properties"]["profile"]["properties"]["given"]["maxLength"]
    assert len(",".join(longest)) < limit
