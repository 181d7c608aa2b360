"""values.schema.json refuses what can't be meant, with the key in the message; and takes everything that can."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from finetune_operator.settings import PREFIX, Settings
from tests.chart.generate import CHART
from tests.chart.helm import Helm, Values, one

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
REFUSED = {
    "an unknown key": ({"replica": 3}, "replica"),
    "an unknown setting": ({"settings": {"pollSecond": 1}}, "pollSecond"),
    "an unknown key deep within": ({"networkPolicy": {"trainers": {"enable": True}}}, "enable"),
    "a profile without a name": ({"profiles": {"install": [{"spec": {}}]}}, "name"),
    "a word for a number": ({"settings": {"workers": "many"}}, "workers"),
    "a number for a switch": ({"crds": {"keep": 1}}, "keep"),
    "a namespace that can't be": ({"namespaces": ["Team_A"]}, "namespaces"),
    "a namespace twice": ({"namespaces": ["a", "a"]}, "namespaces"),
    "a tag as digest": ({"image": {"digest": "v1"}}, "digest"),
    "a port out of range": ({"settings": {"healthPort": 0}}, "healthPort"),
    "a lease that is too short": ({"settings": {"leaseSeconds": 1}}, "leaseSeconds"),
    "no active runs at all": ({"settings": {"maxActiveRunsPerNamespace": 0}}, "maxActiveRunsPerNamespace"),
    "a label that is a number": ({"commonLabels": {"a": 1}}, "commonLabels"),
    "replicas without a lease": ({"settings": {"leaseSeconds": 0}}, "set replicas to 1"),
    "a Secret's name that can't be": ({"metrics": {"tls": {"secretName": "Mine"}}}, "secretName"),
    "boosts of Workloads that may not be read": ({"kueue": {"priorityBoost": True}}, "needs kueue.enabled"),
    "a boost at once": ({"kueue": {"priorityBoostSeconds": 0}}, "priorityBoostSeconds"),
    "closed trainers of unknown namespaces": ({"networkPolicy": {"trainers": {"enabled": True}}}, "needs namespaces"),
    "closed trainers, asked by the API server": (
        {"namespaces": ["a"], "settings": {"podAccess": "proxy"}, "networkPolicy": {"trainers": {"enabled": True}}},
        "podAccess proxy",
    ),
    "closed trainers that are to be scraped": (
        {"namespaces": ["a"], "podMonitor": {"enabled": True}, "networkPolicy": {"trainers": {"enabled": True}}},
        "name Prometheus in networkPolicy.trainers.from",
    ),
}


@pytest.mark.parametrize(("values", "word"), REFUSED.values(), ids=REFUSED)
def test_it_refuses(helm: Helm, values: Values, word: str) -> None:
    assert word in helm.refusal(values)


def objects(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema of an object, with its path."""
    if "object" in schema.get("type", ()):
        yield path, schema
    for key, below in schema.get("properties", {}).items():
        yield from objects(below, f"{path}.{key}")
    for below in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(below, Mapping):
            yield from objects(below, f"{path}[]")


def test_no_object_takes_unknown_keys_but_kubernetes_own_types() -> None:
    open_ones = {path for path, schema in objects(SCHEMA) if "additionalProperties" not in schema}
    monitor = {".serviceMonitor.authorization", ".serviceMonitor.tlsConfig"}
    peers = {".networkPolicy.metricsFrom[]", ".networkPolicy.trainers.from[]"}
    pod = {".env[]", ".resources", ".tolerations[]", ".affinity", ".topologySpreadConstraints[]"}
    assert open_ones == {".global", ".extraObjects[]", ".profiles.install[].spec", *monitor, *peers, *pod}
    assert all(schema["$comment"] for path, schema in objects(SCHEMA) if path in open_ones)


def settings(values: Values, helm: Helm) -> Settings:
    """As the operator reads them in the pod."""
    (container,) = one(helm.render(values), "Deployment")["spec"]["template"]["spec"]["containers"]
    return Settings.from_environment({entry["name"]: entry["value"] for entry in container["env"]})


def camel(field: str) -> str:
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)


def test_every_setting_has_a_value() -> None:
    own_place = {"trainer_image", "namespaces", "metrics_authentication", "metrics_tls_folder"}
    own_place |= {"kueue_priority_boost", "kueue_priority_boost_seconds"}
    assert set(SCHEMA["properties"]["settings"]["properties"]) == {
        camel(field) for field in Settings.model_fields if field not in own_place
    }


def test_the_defaults_are_the_operators_but_for_the_login_which_takes_rights(helm: Helm) -> None:
    assert settings({}, helm) == Settings(lease_namespace="finetune-system", metrics_authentication=True)


def test_every_setting_reaches_the_operator(helm: Helm) -> None:
    chosen = {
        "pod_access": "direct",
        "poll_seconds": 0.5,
        "training_poll_seconds": 86400,
        "progress_write_seconds": 7,
        "progress_writes_per_second": 2.5,
        "max_active_runs_per_namespace": 100000,
        "max_active_devices": {"nvidia.com/gpu": 1000000, "amd.com/gpu": 0},
        "stale_seconds": 9,
        "queued_seconds": 10,
        "resync_seconds": 11,
        "run_metrics_seconds": 600,
        "workers": 12,
        "lease_seconds": 13,
        "lease_name": "other",
        "lease_namespace": "elsewhere",
        "bind_address": "127.0.0.1",
        "health_port": 1234,
        "metrics_port": 1235,
        "log_format": "text",
    }
    values: dict[str, Any] = {"settings": {camel(field): value for field, value in chosen.items()}}
    values["metrics"] = {"authentication": False, "tls": {"secretName": "certificate"}}
    values |= {"namespaces": ["a", "b"], "trainerImage": {"repository": "r", "digest": f"sha256:{'0' * 64}"}}
    wanted = {**chosen, "namespaces": ("a", "b"), "trainer_image": f"r@sha256:{'0' * 64}"}
    values["kueue"] = {"enabled": True, "priorityBoost": True, "priorityBoostSeconds": 1200}
    wanted |= {"kueue_priority_boost": True, "kueue_priority_boost_seconds": 1200}
    wanted |= {"metrics_authentication": False, "metrics_tls_folder": "/etc/finetune-operator/metrics"}
    assert set(wanted) == set(Settings.model_fields)
    assert settings(values, helm) == Settings.model_validate(wanted)


def test_any_number_of_runs_can_be_asked_for(helm: Helm) -> None:
    assert settings({"settings": {"maxActiveRunsPerNamespace": ""}}, helm).max_active_runs_per_namespace is None


def test_no_environment_is_given_twice(newest: Helm) -> None:
    (container,) = one(newest.render(), "Deployment")["spec"]["template"]["spec"]["containers"]
    names = [entry["name"] for entry in container["env"]]
    assert len(names) == len(set(names))
    assert all(name.startswith(PREFIX) for name in names)
