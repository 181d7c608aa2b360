"""The generated CRD: bounded, described and structural throughout, and what lies in the checkout is up to date."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api import crd, reference, structural, types
from finetune_api.method import Scheduler
from finetune_api.spec import FineTuneRunSpec
from tests import constraints

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = crd.schema()
OURS = [field for name in ("spec", "status") for field in constraints.fields(SCHEMA["properties"][name], path=name)]
EACH = pytest.mark.parametrize(("path", "node"), OURS, ids=[path for path, _ in OURS])
VERBS = {"suspend", "cancel", "ttlSecondsAfterFinished", "activeDeadlineSeconds", "queue"}

BOUNDS = {
    "string": {"maxLength"},
    "integer": {"minimum", "maximum"},
    "number": {"minimum", "maximum"},
    "array": {"maxItems"},
}


@EACH
def test_every_string_list_map_and_number_is_bounded(path: str, node: Mapping[str, Any]) -> None:
    if "x-kubernetes-int-or-string" in node:
        assert node["x-kubernetes-validations"], path
    elif "additionalProperties" in node:
        assert "maxProperties" in node
    elif "enum" not in node and "format" not in node:
        assert BOUNDS.get(node["type"], set()) <= set(node)


@EACH
def test_every_map_bounds_its_keys(path: str, node: Mapping[str, Any]) -> None:
    if "additionalProperties" in node:
        assert any("size(key) <=" in rule["rule"] for rule in node["x-kubernetes-validations"])


@EACH
def test_every_field_says_what_it_is(path: str, node: Mapping[str, Any]) -> None:
    is_entry = path.endswith(("[]", "{}"))
    assert is_entry or re.fullmatch(r"[A-Z\"a-z].*\.", node["description"], re.DOTALL), node.get("description")


@EACH
def test_every_choice_says_what_it_means(path: str, node: Mapping[str, Any]) -> None:
    if len(node.get("enum", ())) > 1 and "managedBy" not in path and node["type"] == "string":
        meant = [line.partition(": ")[0] for line in node["description"].splitlines()[1:]]
        assert meant == node["enum"]


@EACH
def test_the_schema_is_structural(path: str, node: Mapping[str, Any]) -> None:
    assert {"$ref", "anyOf", "allOf", "oneOf", "title", "const", "$defs", "propertyNames"}.isdisjoint(node)
    assert node.get("additionalProperties") is not False
    assert ("type" in node) != ("x-kubernetes-int-or-string" in node)


@EACH
def test_every_default_obeys_its_own_bounds_and_rules(path: str, node: Mapping[str, Any]) -> None:
    if path.startswith("status."):
        assert "default" not in node
    elif "enum" in node and "default" in node:
        assert node["default"] in node["enum"]


@EACH
def test_messages_end_as_part_of_a_sentence(path: str, node: Mapping[str, Any]) -> None:
    for rule in node.get("x-kubernetes-validations", ()):
        assert "\n" not in rule["message"]
        assert not rule["message"].endswith(".")


def test_every_field_of_the_spec_is_fixed_or_a_verb() -> None:
    rules = SCHEMA["properties"]["spec"]["x-kubernetes-validations"]
    fixed = {rule["fieldPath"].removeprefix(".") for rule in rules if "can't change" in rule["message"]}
    fixed_in_queue = {"queue.name", "queue.priorityClass", "queue.retryPriorityClass"}
    assert fixed - fixed_in_queue == set(SCHEMA["properties"]["spec"]["properties"]) - VERBS


def test_columns_and_selectable_fields_are_fields_of_the_schema() -> None:
    known = {f".{path}" for path, _ in OURS} | {".metadata.creationTimestamp"}
    for path in [column["jsonPath"] for column in crd.COLUMNS] + list(crd.SELECTABLE):
        assert path.replace("[-1:]", "[]") in known


def test_a_new_run_is_not_yet_observed() -> None:
    assert SCHEMA["properties"]["status"]["default"] == {"observedGeneration": -1}


def test_names() -> None:
    body = crd.crd()
    assert body["metadata"]["name"] == f"{types.PLURAL}.{types.GROUP}"
    assert f"{body['spec']['group']}/{body['spec']['versions'][0]['name']}" == types.API_VERSION


def test_the_yaml_is_the_crd() -> None:
    assert yaml.safe_load(crd.crd_yaml()) == crd.crd()


def test_meanings_come_from_the_strings_under_the_members() -> None:
    assert structural.meanings(Scheduler) == {
        "Constant": "Stays as it is.",
        "Linear": "Falls to 0 in a straight line.",
        "Cosine": "Falls to 0 as half a cosine.",
    }


def test_the_description_tells_a_default_because_kubectl_explain_does_not() -> None:
    training = crd.crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"][
        "training"
    ]
    assert training["properties"]["maxDuration"]["description"].endswith("\nDefault: 1ep.")
    assert training["properties"]["packing"]["description"].endswith("\nDefault: true.")
    assert "Default" not in training["description"]


def test_the_reference_has_a_row_for_every_field_and_every_link_leads_to_a_heading() -> None:
    page = reference.markdown(crd.crd(), SCHEMA)
    for path, node in reference.objects(SCHEMA["properties"]["spec"], path="spec"):
        section = page.split(f"\n## {path}\n")[1].split("\n## ")[0]
        for name in node["properties"]:
            assert f"`{name}`" in section
    headings = {re.sub("[^a-z0-9]", "", line[3:].lower()) for line in page.splitlines() if line.startswith("## ")}
    assert set(re.findall(r"\]\(#(.*?)\)", page)) <= headings


def test_what_lies_in_the_checkout_is_what_the_models_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main(["--check", "--root", str(ROOT)]) == 0, capsys.readouterr().err


def test_check_names_the_file_that_differs_and_how(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert crd.main(["--root", str(tmp_path)]) == 0
    assert crd.main(["--check", "--root", str(tmp_path)]) == 0
    path = tmp_path / "docs/api.md"
    path.write_text(path.read_text().replace("## spec.model\n", "## spec.modell\n"))
    capsys.readouterr()
    assert crd.main(["--check", "--root", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"{path} is not what the models say; run `make generate`" in said
    assert "-## spec.modell\n+## spec.model\n" in said
    assert "crds/" not in said


def test_check_writes_nothing(tmp_path: Path) -> None:
    assert crd.main(["--check", "--root", str(tmp_path)]) == 1
    assert list(tmp_path.iterdir()) == []


def test_defaults_in_python_are_those_of_the_schema() -> None:
    wire = FineTuneRunSpec.parse({"model": {"uri": "hf://a"}, "dataset": {"train": {"uri": "hf://b"}}}).to_wire()
    for path, node in OURS:
        if path.startswith("spec.") and node.get("default") not in (None, {}):
            parent, _, name = path.removeprefix("spec.").rpartition(".")
            at: Any = wire
            for part in filter(None, parent.split(".")):
                at = at.get(part, {}) if isinstance(at, dict) else {}
            assert at.get(name, node["default"]) == node["default"], path
