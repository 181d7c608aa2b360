"""What the chart has from elsewhere is as it is there, and fits into a release."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import yaml

from tests.chart import generate
from tests.chart.helm import Helm, Object, one

ROOT = generate.ROOT
SECRET_BYTES = 1024 * 1024


def test_the_readme_the_rights_and_the_crds_are_up_to_date() -> None:
    assert list(generate.stale()) == []


def test_every_value_says_what_it_is_for() -> None:
    found = list(generate.values((generate.CHART / "values.yaml").read_text()))
    assert len(found) > 50
    assert [value.path for value in found if not value.meaning] == []


def test_the_crds_are_rendered_as_they_are_in_crds(helm: Helm) -> None:
    rendered = helm.render()
    paths = sorted((ROOT / "crds").glob("*.yaml"))
    assert len(paths) == sum(o["kind"] == "CustomResourceDefinition" for o in rendered)
    for path in paths:
        wanted = yaml.safe_load(path.read_text())
        found = one(rendered, "CustomResourceDefinition", wanted["metadata"]["name"])
        assert found["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        assert {**found, "metadata": {"name": found["metadata"]["name"]}} == wanted


def test_the_crds_are_left_out_or_given_up_on_request(newest: Helm) -> None:
    assert not [o for o in newest.render({"crds": {"enabled": False}}) if o["kind"] == "CustomResourceDefinition"]
    found = one(newest.render({"crds": {"keep": False}}), "CustomResourceDefinition", "finetuneruns.finetune.dev")
    assert "annotations" not in found["metadata"]


def test_a_release_fits_into_a_secret_many_times(newest: Helm) -> None:
    """Helm keeps chart, values and manifest of a release in one Secret, gzipped, in base64 twice."""
    files = [path for path in sorted(generate.CHART.rglob("*")) if path.is_file()]
    content = {str(path): base64.b64encode(path.read_bytes()).decode() for path in files}
    release = json.dumps({"chart": content, "manifest": yaml.safe_dump_all(newest.render())}).encode()
    assert len(base64.b64encode(gzip.compress(release))) < SECRET_BYTES / 8


def rules(objects: list[Object], kind: str) -> list[Object]:
    return [rule for found in objects if found["kind"] == kind for rule in found["rules"]]


def test_the_rights_are_those_of_the_example(newest: Helm) -> None:
    """Which is what the operator's tests run with."""
    example = list(yaml.safe_load_all(Path(ROOT / "examples" / "operator-rbac.yaml").read_text()))
    outside = {"settings": {"podAccess": "proxy"}, "rbac": {"aggregate": False}, "kueue": {"enabled": True}}
    rendered = list(newest.render({**outside, "metrics": {"authentication": False}}))
    assert rules(rendered, "ClusterRole") == rules(example, "ClusterRole")
    assert rules(rendered, "Role") == rules(example, "Role")


def test_the_rights_for_boosts_are_those_of_their_example_and_come_with_them_alone(newest: Helm) -> None:
    example = list(yaml.safe_load_all((ROOT / "examples" / "kueue" / "boost-rights.yaml").read_text()))
    with_kueue = {"rbac": {"aggregate": False}, "metrics": {"authentication": False}, "kueue": {"enabled": True}}
    boosted = {**with_kueue, "kueue": {"enabled": True, "priorityBoost": True}}
    before, after = (rules(list(newest.render(values)), "ClusterRole") for values in (with_kueue, boosted))
    assert after == before + rules(example, "ClusterRole")
    wide = rules(list(newest.render({**boosted, "namespaces": ["a"]})), "ClusterRole")
    classes = rules(example, "ClusterRole")[1:]
    assert [rule for rule in wide if "clusterfinetuneprofiles" not in rule["resources"]] == classes, "no Workloads"


def test_the_operator_is_held_to_boosts_as_in_their_example(newest: Helm) -> None:
    example = list(yaml.safe_load_all((ROOT / "examples" / "kueue" / "boost-policy.yaml").read_text()))
    values = {"kueue": {"enabled": True, "priorityBoost": True}}
    rendered = [o for o in newest.render(values) if o["metadata"]["name"].endswith("-kueue-boost")]
    assert [(o["kind"], o["metadata"]["name"], o["spec"]) for o in rendered] == [
        (o["kind"], o["metadata"]["name"], o["spec"]) for o in example
    ]
    assert not [o for o in newest.render() if o["metadata"]["name"].endswith("-kueue-boost")]


def test_the_rights_to_read_metrics_are_those_of_the_example(newest: Helm) -> None:
    example = list(yaml.safe_load_all((ROOT / "examples" / "metrics-login.yaml").read_text()))
    rendered = [o for o in newest.render() if "metrics-" in o["metadata"]["name"]]
    assert rules(rendered, "ClusterRole") == rules(example, "ClusterRole")
    parts = [
        [(o["metadata"]["name"], o.get("roleRef"), o.get("subjects")) for o in found] for found in (rendered, example)
    ]
    assert sorted(parts[0], key=str) == sorted(parts[1], key=str)


def test_what_is_asked_of_creators_is_what_the_example_asks(newest: Helm) -> None:
    example = list(yaml.safe_load_all(generate.CREATORS.read_text()))
    rendered = [o for o in newest.render() if o["metadata"]["name"].endswith("-creators")]
    assert [(o["kind"], o["spec"]) for o in rendered] == [(o["kind"], o["spec"]) for o in example]
