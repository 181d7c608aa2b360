"""What the chart renders for each of its switches, with both Helms, against the schemas of each Kubernetes."""

from __future__ import annotations

import functools
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped] # ships no types
import pytest
import yaml

from finetune_api.snapshot import PORT
from finetune_operator import names
from finetune_operator.settings import PREFIX
from tests.chart.generate import CHART
from tests.chart.helm import NAMESPACE, RELEASE, Helm, Object, Values, kinds, one

VERSIONS = [f"1.{minor}" for minor in range(29, 38)]
NO_SCHEMA = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
POLICY = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
"""From Kubernetes 1.30 on."""
TRAINERS = f"{RELEASE}-trainers"
ALWAYS = {
    "ClusterRole",
    "ClusterRoleBinding",
    "CustomResourceDefinition",
    "Deployment",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "Role",
    "RoleBinding",
    "Service",
    "ServiceAccount",
    *POLICY,
}
PEER = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
OWN = {
    "labelSelector": {"matchLabels": {"a": "b"}},
    "maxSkew": 2,
    "topologyKey": "zone",
    "whenUnsatisfiable": "DoNotSchedule",
}
POD: Values = {
    "imagePullSecrets": [{"name": "registry"}],
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "system", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}},
    "topologySpreadConstraints": [OWN],
}
EXTRA = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extra"}, "data": {"of": "{{ .Release.Name }}"}}
TEXT = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: {{ .Release.Name }}-text"
SWITCHES: Mapping[str, tuple[Values, set[str]]] = {
    "as it is": ({}, ALWAYS),
    "for some namespaces": (
        {"namespaces": ["a", "b"], "rbac": {"aggregate": False}},
        ALWAYS,
    ),
    "without CRDs": ({"crds": {"enabled": False}}, ALWAYS - {"CustomResourceDefinition"}),
    "CRDs that go with it": ({"crds": {"keep": False}}, ALWAYS),
    "without rights": (
        {"rbac": {"create": False, "aggregate": False, "admissionPolicy": False}},
        ALWAYS - {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"} - POLICY,
    ),
    "without a disruption budget": ({"podDisruptionBudget": {"enabled": False}}, ALWAYS - {"PodDisruptionBudget"}),
    "without network policies": ({"networkPolicy": {"enabled": False}}, ALWAYS - {"NetworkPolicy"}),
    "without a service": ({"service": {"enabled": False}}, ALWAYS - {"Service"}),
    "with another's account": ({"serviceAccount": {"create": False, "name": "other"}}, ALWAYS - {"ServiceAccount"}),
    "one operator without a lease": (
        {"replicas": 1, "settings": {"leaseSeconds": 0}},
        ALWAYS - {"Role", "RoleBinding"},
    ),
    "through the API server": ({"settings": {"podAccess": "proxy"}}, ALWAYS),
    "with Kueue": ({"kueue": {"enabled": True}}, ALWAYS),
    "with Kueue's boosts": ({"namespaces": ["a"], "kueue": {"enabled": True, "priorityBoost": True}}, ALWAYS),
    "scraped": (
        {
            "service": {"enabled": False},
            "serviceMonitor": {"enabled": True, "additionalLabels": {"release": "prometheus"}},
            "podMonitor": {"enabled": True, "additionalLabels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "additionalLabels": {"release": "prometheus"}},
            "dashboards": {"enabled": True, "additionalLabels": {"grafana_dashboard": "1", "folder": "ml"}},
        },
        ALWAYS | {"ConfigMap", *NO_SCHEMA},
    ),
    "scraped by whoever asks": (
        {"metrics": {"authentication": False}, "serviceMonitor": {"enabled": True}},
        ALWAYS | {"ServiceMonitor"},
    ),
    "scraped by HTTPS": (
        {"metrics": {"tls": {"secretName": "certificate"}}, "serviceMonitor": {"enabled": True}},
        ALWAYS | {"ServiceMonitor"},
    ),
    "closed": (
        {
            "namespaces": ["a", "b"],
            "networkPolicy": {
                "metricsFrom": [PEER],
                "egress": {"enabled": True},
                "trainers": {"enabled": True, "from": [PEER]},
            },
        },
        ALWAYS,
    ),
    "closed, for all namespaces": ({"networkPolicy": {"egress": {"enabled": True}}}, ALWAYS),
    "placed": (POD, ALWAYS),
    "labelled": (
        {
            "commonLabels": {"team": "ml"},
            "podLabels": {"mesh": "off"},
            "podAnnotations": {"a": "b"},
            "serviceAccount": {"annotations": {"a": "b"}},
            "service": {"annotations": {"a": "b"}},
            "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
            "resources": {},
            "fullnameOverride": "other",
        },
        ALWAYS,
    ),
    "with profiles": (
        {"profiles": {"install": [{"name": "a100", "spec": {"limits": {"nodes": 1}}}], "admissionPolicy": True}},
        ALWAYS | {"ClusterFineTuneProfile"},
    ),
    "with more": ({"extraObjects": [EXTRA, TEXT]}, ALWAYS | {"ConfigMap", "Secret"}),
}


@pytest.mark.parametrize("values", [values for values, _ in SWITCHES.values()], ids=SWITCHES)
def test_lint_has_nothing_to_say(helm: Helm, values: Values) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), values=values)


@pytest.mark.parametrize(("values", "wanted"), SWITCHES.values(), ids=SWITCHES)
def test_each_switch_renders_what_it_says(helm: Helm, values: Values, wanted: set[str]) -> None:
    assert set(kinds(helm.render(values))) == wanted


def leaves(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The path of each switch."""
    if schema.get("type") == "boolean":
        yield path
    for key, below in schema.get("properties", {}).items():
        yield from leaves(below, f"{path}.{key}".lstrip("."))


def test_no_switch_is_left_out_of_these_tests() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    turned = {path for values, _ in SWITCHES.values() for path in turns(values)}
    assert set(leaves(schema)) - turned == {"enabled"}, "that one is for charts that depend on this one"


def turns(values: Values, path: str = "") -> Iterator[str]:
    for key, value in values.items():
        here = f"{path}.{key}".lstrip(".")
        if isinstance(value, Mapping):
            yield from turns(value, here)
        elif isinstance(value, bool):
            yield here


@functools.cache
def rendered(helm: Helm, *, old: bool) -> Sequence[Object]:
    """Every object that some switch renders, each once; the schema of labels is the same in all of them."""
    version = "1.29.0" if old else "1.30.0"
    found = {}
    for values, _ in SWITCHES.values():
        for made in helm.render(values, version=version):
            is_crd = made["kind"] == "CustomResourceDefinition"
            key = made["metadata"]["name"] if is_crd else json.dumps(made, sort_keys=True)
            found[key] = made
    return list(found.values())


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_the_schemas_of(version: str, newest: Helm) -> None:
    old, unknown = version == "1.29", NO_SCHEMA | {"ClusterFineTuneProfile"}
    objects = [o for o in rendered(newest, old=old) if o["kind"] not in unknown]
    assert {o["kind"] for o in objects} == (ALWAYS | {"ConfigMap", "Secret"}) - (POLICY if old else set())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the validator's own
        for found in objects:
            assert kubernetes_validate.validate(found, version, strict=True) == version


@pytest.mark.parametrize("version", VERSIONS)
def test_nothing_but_the_crd_depends_on_the_version(version: str, newest: Helm) -> None:
    assert newest.render(version=f"{version}.9") == newest.render(version="1.29.0" if version == "1.29" else "1.30.0")


def test_an_older_kubernetes_is_refused(helm: Helm) -> None:
    with pytest.raises(Exception, match=r">=1\.29\.0-0"):
        helm.render(version="1.28.5")


def pod(helm: Helm, values: Values) -> Object:
    found: Object = one(helm.render(values), "Deployment")["spec"]["template"]["spec"]
    return found


def test_the_pod_is_placed_as_asked(newest: Helm) -> None:
    spec = pod(newest, POD)
    assert {key: spec[key] for key in POD} == POD


def test_operators_are_spread_by_their_own_labels(newest: Helm) -> None:
    objects = newest.render()
    selector = one(objects, "Deployment")["spec"]["selector"]
    (constraint,) = one(objects, "Deployment")["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert constraint["labelSelector"] == selector
    assert one(objects, "PodDisruptionBudget")["spec"]["selector"] == selector
    assert one(objects, "Service", f"{RELEASE}-metrics")["spec"]["selector"] == selector["matchLabels"]


def test_without_a_lease_two_never_run_at_once(newest: Helm) -> None:
    found = one(newest.render({"replicas": 1, "settings": {"leaseSeconds": 0}}), "Deployment")
    assert found["spec"]["strategy"] == {"type": "Recreate"}


@pytest.mark.parametrize(
    ("values", "subject"),
    [({}, RELEASE), ({"serviceAccount": {"name": "a"}}, "a"), ({"serviceAccount": {"create": False}}, "default")],
    ids=["its own", "a name", "none"],
)
def test_every_right_is_bound_to_the_account_of_the_pod(values: Values, subject: str, newest: Helm) -> None:
    objects = newest.render(values)
    bound = [o["subjects"] for o in objects if o["kind"].endswith("RoleBinding")]
    assert bound == 3 * [[{"kind": "ServiceAccount", "name": subject, "namespace": NAMESPACE}]]
    assert one(objects, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == subject


def test_for_some_namespaces_it_has_no_right_in_others(newest: Helm) -> None:
    objects = newest.render({"namespaces": ["a", "b"]})
    roles = {(o["metadata"]["namespace"], o["metadata"]["name"]) for o in objects if o["kind"] == "Role"}
    assert roles == {("a", RELEASE), ("b", RELEASE), (NAMESPACE, f"{RELEASE}-lease")}
    bound = one(objects, "ClusterRoleBinding", f"{RELEASE}-profiles")
    cluster_wide = {o["metadata"]["name"] for o in objects if o["kind"] == "ClusterRoleBinding"}
    assert cluster_wide == {f"{RELEASE}-profiles", f"{RELEASE}-metrics-login"}
    profiles = {"apiGroups": ["finetune.dev"], "resources": ["clusterfinetuneprofiles"], "verbs": ["list", "watch"]}
    assert one(objects, "ClusterRole", bound["roleRef"]["name"])["rules"] == [profiles]
    assert all(profiles not in o["rules"] for o in objects if o["kind"] == "Role")


@pytest.mark.parametrize("of", ["profiles", "creators"])
def test_the_policy_is_for_the_namespaces_that_are_served(of: str, newest: Helm) -> None:
    chosen = {"profiles": {"admissionPolicy": True}}
    name, kind = f"{RELEASE}-{of}", "ValidatingAdmissionPolicyBinding"
    assert "matchResources" not in one(newest.render(chosen), kind, name)["spec"]
    found = one(newest.render({**chosen, "namespaces": ["a", "b"]}), kind, name)["spec"]["matchResources"]
    (term,) = found["namespaceSelector"]["matchExpressions"]
    assert term == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}
    assert not POLICY & set(kinds(newest.render(chosen, version="1.29.9")))


def test_the_lease_is_the_operators_alone_where_it_lies(newest: Helm) -> None:
    objects = newest.render({"settings": {"leaseNamespace": "leases"}})
    assert one(objects, "Role", f"{RELEASE}-lease")["metadata"]["namespace"] == "leases"
    assert one(objects, "RoleBinding", f"{RELEASE}-lease")["metadata"]["namespace"] == "leases"


def test_no_role_has_a_wildcard_or_a_secret(newest: Helm) -> None:
    for found in newest.render({"settings": {"podAccess": "proxy"}}):
        for rule in found.get("rules", ()):
            words = {word for key in ("apiGroups", "resources", "verbs") for word in rule.get(key, ())}
            assert not words & {"*", "secrets", "impersonate", "escalate", "bind"}, found["metadata"]["name"]


def test_only_the_operator_and_who_is_named_reach_a_trainer(newest: Helm) -> None:
    objects = newest.render(SWITCHES["closed"][0])
    policies = [o for o in objects if o["metadata"]["name"] == TRAINERS]
    assert [o["metadata"]["namespace"] for o in policies] == ["a", "b"]
    selector = policies[0]["spec"]["podSelector"]
    together, asked = policies[0]["spec"]["ingress"]
    assert matches(selector, names.labels("support-bot", attempt=1))
    assert not matches(selector, {names.MANAGED_BY_LABEL: names.MANAGER})
    assert together == {"from": [{"podSelector": selector}]}
    assert asked["ports"] == [{"port": PORT}]
    operator = one(objects, "Deployment")["spec"]["selector"]
    home = {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}
    assert asked["from"] == [{"podSelector": operator, "namespaceSelector": home}, PEER]


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a selector of labels that are equal or exist takes these."""
    equal = selector["matchLabels"].items() <= labels.items()
    return bool(equal and all(wanted["key"] in labels for wanted in selector["matchExpressions"]))


def test_the_monitors_find_the_operator_and_its_trainers(newest: Helm) -> None:
    objects = newest.render(SWITCHES["scraped"][0])
    service, monitor = one(objects, "Service", f"{RELEASE}-metrics"), one(objects, "ServiceMonitor")
    trainers = one(objects, "PodMonitor", TRAINERS)
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]
    assert matches(trainers["spec"]["selector"], names.labels("support-bot", attempt=1))
    assert trainers["spec"]["namespaceSelector"] == {"any": True}
    assert {found["metadata"]["labels"]["release"] for found in (monitor, trainers)} == {"prometheus"}


def scrape(helm: Helm, **values: Values) -> Object:
    """How Prometheus is to scrape the operator."""
    found = {"serviceMonitor": {"enabled": True}, **values}
    (endpoint,) = one(helm.render(found), "ServiceMonitor")["spec"]["endpoints"]
    return {key: value for key, value in endpoint.items() if key not in ("port", "interval")}


def test_prometheus_is_told_how_to_log_in(newest: Helm) -> None:
    own = {"bearerTokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token"}
    other = {"credentials": {"name": "scraper", "key": "token"}}
    assert scrape(newest) == own
    assert scrape(newest, metrics={"authentication": False}) == {}
    assert scrape(newest, serviceMonitor={"enabled": True, "authorization": other}) == {"authorization": other}


def test_prometheus_is_told_whose_certificate_to_expect(newest: Helm) -> None:
    secured = {"authentication": False, "tls": {"secretName": "certificate"}}
    ca = {"secret": {"name": "certificate", "key": "ca.crt"}}
    expected = {"serverName": f"{RELEASE}-metrics.{NAMESPACE}.svc", "ca": ca}
    assert scrape(newest, metrics=secured) == {"scheme": "https", "tlsConfig": expected}
    chosen = {"enabled": True, "tlsConfig": {"insecureSkipVerify": True}}
    found = scrape(newest, metrics=secured, serviceMonitor=chosen)
    assert found == {"scheme": "https", "tlsConfig": {"insecureSkipVerify": True}}


def test_values_kept_from_a_release_that_had_no_metrics_block_ask_for_no_login(newest: Helm, tmp_path: Path) -> None:
    """`helm upgrade --reuse-values` takes the values of the release, and no new defaults."""
    chart = tmp_path / "chart"
    shutil.copytree(CHART, chart)
    values = yaml.safe_load((chart / "values.yaml").read_text())
    before = {name: block for name, block in values.items() if name != "metrics"}
    (chart / "values.yaml").write_text(yaml.safe_dump(before))
    objects = [
        found for found in yaml.load_all(newest("template", RELEASE, str(chart)), Loader=yaml.CSafeLoader) if found
    ]
    assert objects
    assert not [found for found in objects if found["metadata"]["name"].endswith(("-metrics-login", "-metrics-reader"))]


def test_the_certificate_is_where_the_operator_looks_for_it(newest: Helm) -> None:
    spec = pod(newest, {"metrics": {"tls": {"secretName": "certificate"}}})
    (container,) = spec["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    (volume,), (mount,) = spec["volumes"], container["volumeMounts"]
    assert mount == {"name": volume["name"], "mountPath": environment[f"{PREFIX}METRICS_TLS_FOLDER"], "readOnly": True}
    assert volume["secret"]["secretName"] == "certificate"
    assert [item["path"] for item in volume["secret"]["items"]] == ["tls.crt", "tls.key"]
    assert "volumes" not in pod(newest, {})


def test_the_rules_are_those_of_the_file(helm: Helm) -> None:
    found = one(helm.render(SWITCHES["scraped"][0]), "PrometheusRule")
    assert found["spec"] == yaml.safe_load((CHART / "files" / "prometheus" / "rules.yaml").read_text())
    assert found["metadata"]["labels"]["release"] == "prometheus"


def test_each_dashboard_is_in_a_config_map_that_the_sidecar_finds(helm: Helm) -> None:
    found = [o for o in helm.render(SWITCHES["scraped"][0]) if o["kind"] == "ConfigMap"]
    files = sorted((CHART / "files" / "dashboards").glob("*.json"))
    assert [o["data"] for o in found] == [{f"finetune-{path.name}": path.read_text()} for path in files]
    assert [o["metadata"]["name"] for o in found] == [f"{RELEASE}-{path.stem}" for path in files]
    assert all(o["metadata"]["labels"].items() >= {"grafana_dashboard": "1", "folder": "ml"}.items() for o in found)


def test_more_objects_may_have_templates(newest: Helm) -> None:
    objects = newest.render({"extraObjects": [EXTRA, TEXT]})
    assert one(objects, "ConfigMap", "extra")["data"] == {"of": RELEASE}
    assert one(objects, "Secret", f"{RELEASE}-text")


def test_everything_is_named_after_the_release(newest: Helm) -> None:
    objects = newest.render({"fullnameOverride": "other", "crds": {"enabled": False}})
    assert all(o["metadata"]["name"].startswith("other") for o in objects)
