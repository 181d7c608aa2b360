"""S16, S19: nothing that a user writes is without a bound, and what is built from the same source is the same.

That each bound holds on a real API server is tried one by one in tests/cluster/test_crd_constraints.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder

from finetune_api import crd
from tests import constraints

ROOT = Path(__file__).resolve().parents[2]


def unbounded(node: Mapping[str, Any]) -> Iterator[str]:
    """What is missing at one place of the schema."""
    kind = node.get("type")
    if kind == "string" and not {"maxLength", "enum"} & node.keys() and node.get("format") != "date-time":
        yield "maxLength"
    if kind == "array" and "maxItems" not in node:
        yield "maxItems"
    if kind in ("integer", "number") and "enum" not in node:
        yield from (bound for bound in ("minimum", "maximum") if bound not in node)
    if "additionalProperties" in node:
        if "maxProperties" not in node:
            yield "maxProperties"
        if not any("keys must have at most" in rule["message"] for rule in node.get("x-kubernetes-validations", ())):
            yield "a limit of its keys"


@pytest.mark.parametrize("part", ["spec", "status"])
def test_every_field_has_a_bound(part: str) -> None:
    found = list(constraints.fields(crd.schema()["properties"][part], path=part))
    assert len(found) > 50
    assert {path: missing for path, node in found if (missing := list(unbounded(node)))} == {}


@pytest.mark.parametrize(
    ("node", "missing"),
    [
        ({"type": "string"}, ["maxLength"]),
        ({"type": "array"}, ["maxItems"]),
        ({"type": "integer", "minimum": 0}, ["maximum"]),
        ({"type": "object", "additionalProperties": {}}, ["maxProperties", "a limit of its keys"]),
        ({"type": "string", "enum": ["a"]}, []),
    ],
)
def test_what_has_no_bound_is_told(node: Mapping[str, Any], missing: list[str]) -> None:
    assert list(unbounded(node)) == missing


def test_two_wheels_of_one_source_are_the_same(tmp_path: Path) -> None:
    digests = set()
    for name in ("one", "two"):
        [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path / name), versions=["standard"])
        digests.add(hashlib.sha256(Path(wheel).read_bytes()).hexdigest())
    assert len(digests) == 1
