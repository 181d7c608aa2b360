"""The CRD on the real API server: defaults, what may change and what not, columns, selectors, upgrades, explain."""

import copy
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api import crd as generated
from finetune_api.spec import FineTuneRunSpec
from finetune_api.types import FineTuneRun
from tests import builders, constraints
from tests.cluster import proxy
from tests.cluster.conftest import Kubectl
from tests.constraint_rows import SPEC, STATUS

pytestmark = pytest.mark.cluster

VERBS: Mapping[str, list[Any]] = {
    "suspend": [True, False],
    "cancel": [True],
    "ttlSecondsAfterFinished": [60, None, 0],
    "activeDeadlineSeconds": [60, None, 5],
    "queue.priority": [5, -5],
}
SCHEMA = generated.schema()


@pytest.fixture(scope="module")
def api(kubectl: Kubectl, crd: str) -> Iterator[proxy.Proxy]:
    with proxy.start(kubectl.binary, kubeconfig=kubectl.kubeconfig) as started:
        yield started


@pytest.fixture(scope="module")
def runs(kubectl: Kubectl) -> Iterator[str]:
    """The path of the runs in a namespace of this module's own."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    kubectl("create", "namespace", name)
    yield path_of(name)
    kubectl("delete", "namespace", name, "--wait=false")


def path_of(namespace: str) -> str:
    return f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetuneruns"


def created(api: proxy.Proxy, runs: str, name: str = "", **spec: Any) -> str:
    """The path of a run that is there now."""
    manifest = builders.run(name or f"x-{uuid.uuid4().hex[:10]}", **spec)
    manifest["metadata"].pop("namespace")
    answer = api.request("POST", runs, manifest, fieldValidation="Strict")
    assert answer.is_success, answer.message
    return f"{runs}/{manifest['metadata']['name']}"


def nested(path: str, value: object) -> constraints.Object:
    """`{a: {b: value}}` for `a.b`."""
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def test_the_checkout_has_what_the_models_say(crd: str) -> None:
    root = Path(__file__).resolve().parents[2]
    assert yaml.safe_load((root / "crds/finetune.dev_finetuneruns.yaml").read_text()) == generated.crd()


def test_a_new_run_shows_every_default_but_those_that_a_profile_may_give_and_waits_for_its_first_look(
    api: proxy.Proxy, runs: str
) -> None:
    run = api.request("GET", created(api, runs)).body
    whole = FineTuneRunSpec.parse(builders.run()["spec"]).to_wire()
    open_ones = {path.removeprefix("spec.") for path in generated.RUN.left_open} - {"storage.claimTemplate"}
    given = {name: value for name, value in run["spec"].items() if name not in open_ones}
    assert given == {name: value for name, value in whole.items() if name not in open_ones}
    assert {name: run["spec"][name] for name in open_ones} == {name: {} for name in open_ones} | {
        "training": {"batchSize": {}, "preference": {}}
    }
    assert FineTuneRunSpec.parse(run["spec"]) == FineTuneRunSpec.parse(builders.run()["spec"]), "the operator has them"
    assert run["status"] == {"observedGeneration": -1}


def test_null_is_the_same_as_leaving_out(api: proxy.Proxy, runs: str) -> None:
    manifest = builders.run("nulls")
    manifest["metadata"].pop("namespace")
    manifest["spec"] |= {"ttlSecondsAfterFinished": None, "queue": None, "method": {"lora": None}}
    answer = api.request("POST", runs, manifest, fieldValidation="Strict")
    assert answer.is_success, answer.message
    assert answer.body["spec"] == api.request("GET", created(api, runs)).body["spec"]


def test_only_the_status_subresource_writes_the_status(api: proxy.Proxy, runs: str) -> None:
    run = created(api, runs)
    assert api.request("PATCH", run, {"status": {"phase": "Completed"}}).is_success
    assert "phase" not in api.request("GET", run).body["status"]
    answer = api.request("PATCH", f"{run}/status", {"status": {"phase": "Running"}, "spec": {"suspend": True}})
    assert answer.body["status"]["phase"] == "Running"
    assert answer.body["spec"]["suspend"] is False
    assert answer.body["metadata"]["generation"] == 1


@pytest.mark.parametrize("path", VERBS)
def test_a_verb_may_change(api: proxy.Proxy, runs: str, path: str) -> None:
    run = created(api, runs)
    for value in VERBS[path]:
        answer = api.request("PATCH", run, {"spec": nested(path, value)}, fieldValidation="Strict")
        assert answer.is_success, answer.message
        if value is not None:
            assert constraints.value_at(dict(answer.body), f"spec.{path}") == value


def test_cancel_cant_be_taken_back(api: proxy.Proxy, runs: str) -> None:
    run = created(api, runs, cancel=True)
    for value in (False, None):
        answer = api.request("PATCH", run, {"spec": {"cancel": value}})
        assert "spec.cancel: Forbidden: cancel can't be taken back: create a new run" in answer.message


def test_cancel_may_be_said_again(api: proxy.Proxy, runs: str) -> None:
    run = created(api, runs, cancel=True)
    assert api.request("PATCH", run, {"spec": {"cancel": True, "suspend": True}}).is_success


FIXED = [name for name in FineTuneRunSpec.model_json_schema(by_alias=True)["properties"] if name not in VERBS]


@pytest.mark.parametrize("name", FIXED)
def test_a_field_can_neither_change_nor_appear_nor_vanish(api: proxy.Proxy, runs: str, name: str) -> None:
    below = ("queue.name", "queue.priorityClass", "queue.retryPriorityClass")  # queue.priority may change
    refusals = [
        f"spec.{field}: Forbidden: {field} can't change once the run exists: create a new run"
        for field in (below if name == "queue" else (name,))
    ]
    existing = {"full": created(api, runs, **SPEC), "least": created(api, runs)}
    refused = 0
    for run, path, value in changed_within(f"spec.{name}"):
        before = api.request("GET", existing[run]).body
        answer = api.tried("PATCH", existing[run], nested(path, value))
        is_kept = answer.is_success and answer.body["spec"] == before["spec"]
        is_refused = any(refusal in answer.message for refusal in refusals)
        assert is_kept or is_refused or "Required value" in answer.message, (run, path, value, answer)
        refused += is_refused
    assert refused > 0


def changed_within(name: str) -> Iterator[tuple[str, str, Any]]:
    """Runs, fields and values: each field of the full run gone or another, and each of them given to the least run."""
    for path, node in constraints.fields(SCHEMA["properties"]["spec"], path="spec"):
        is_below = path == name or path.startswith(f"{name}.")
        if not is_below or "[" in path or "{" in path or path.removeprefix("spec.") in VERBS:
            continue
        value = constraints.value_at(constraints.manifest(path), path)
        yield "full", path, None
        yield "full", path, other(value, node)
        yield "least", path, value


def other(value: Any, node: constraints.Node) -> Any:
    """A value like this one, but not this one."""
    match value:
        case bool():
            return not value
        case int() | float():
            return node.get("enum", [value, node.get("maximum")])[-1]
        case str() if "enum" in node:
            return next((choice for choice in node["enum"] if choice != value), value)
        case str():
            return f"1{value}"
        case list():
            return [*value, *value]
    return {"a": "b"} if "additionalProperties" in node else value


def test_every_field_is_either_fixed_or_a_verb() -> None:
    fixed = {rule["fieldPath"].removeprefix(".") for rule in SCHEMA["properties"]["spec"]["x-kubernetes-validations"]}
    fields = {*FineTuneRunSpec.model_json_schema(by_alias=True)["properties"], "queue.name", "queue.priority"} - {
        "queue"
    }
    assert fields <= fixed | set(VERBS)


def test_an_upgrade_that_adds_a_default_leaves_old_runs_unchanged(kubectl: Kubectl, namespace: str) -> None:
    group = f"g{uuid.uuid4().hex[:8]}.finetune.dev"
    old = json.loads(json.dumps(generated.crd()).replace('"group": "finetune.dev"', f'"group": "{group}"'))
    old["metadata"]["name"] = f"finetuneruns.{group}"
    old["spec"]["names"] |= {"shortNames": [], "categories": []}
    new = copy.deepcopy(old)
    spec = new["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["training"]["properties"]["optimizer"] = {"type": "string", "maxLength": 64, "default": "AdamW"}
    run = builders.run("old", namespace=namespace) | {"apiVersion": f"{group}/v1alpha1"}
    try:
        install(kubectl, old)
        kubectl("apply", "-f", "-", body=run)
        install(kubectl, new)
        kubectl("wait", "--for=jsonpath={.spec.training.optimizer}=AdamW", f"finetuneruns.{group}/old", "-n", namespace)
        assert kubectl("apply", "-f", "-", body=run).strip().endswith("unchanged")
        patch = json.dumps({"spec": {"suspend": True}})
        kubectl("patch", f"finetuneruns.{group}", "old", "-n", namespace, "--type=merge", "-p", patch)
    finally:
        kubectl("delete", "crd", f"finetuneruns.{group}", "--ignore-not-found")


def install(kubectl: Kubectl, body: constraints.Object) -> None:
    kubectl("apply", "--server-side", "-f", "-", body=body)
    kubectl("wait", "--for=condition=Established", f"crd/{body['metadata']['name']}")


def test_applying_twice_changes_nothing(kubectl: Kubectl, namespace: str, crd: str) -> None:
    run = builders.run("again", namespace=namespace, **SPEC)
    kubectl("apply", "-f", "-", body=run)
    assert kubectl("apply", "-f", "-", body=run).strip().endswith("unchanged")
    kubectl("diff", "-f", "-", body=run)


def test_what_kubectl_get_prints(kubectl: Kubectl, api: proxy.Proxy, namespace: str) -> None:
    created(api, path_of(namespace), "support-bot", model={"uri": "hf://org/name"})
    status = builders.merged(STATUS, {})
    status["checkpoints"] = [status["checkpoints"][0] | {"name": f"ep1-ba{step}", "step": step} for step in (40, 50)]
    assert api.request("PATCH", f"{path_of(namespace)}/support-bot/status", {"status": status}).is_success
    head, row = kubectl("get", "ftr", "-n", namespace).splitlines()
    assert head.split() == ["NAME", "PHASE", "MODEL", "PROGRESS", "ETA", "LOSS", "AGE"]
    assert row.split()[:-1] == ["support-bot", "Running", "hf://org/name", "89%", "5min", "1.71"]
    head, row = kubectl("get", "ml", "-n", namespace, "-o", "wide").splitlines()
    assert head.split()[6:] == ["AGE", "ATTEMPT", "TOKENS/S", "LAST", "STEP", "CHECKPOINT", "QUEUE"]
    *_, attempt, speed, last_step, checkpoint, queue = row.split()
    assert (attempt, speed, checkpoint, queue) == ("2", "4100", "ep1-ba50", "3")
    assert last_step.endswith("d"), "shown as an age"


def test_a_run_without_status_is_printed_too(kubectl: Kubectl, api: proxy.Proxy, namespace: str) -> None:
    created(api, path_of(namespace), "new")
    _, row = kubectl("get", "ftr", "-n", namespace, "-o", "wide").splitlines()
    assert row.split()[:2] == ["new", "pvc://models/tiny"]


@pytest.mark.parametrize("selector", ["status.phase=Running", "spec.model.uri=hf://org/a", "spec.queue.name=team-a"])
def test_runs_are_selected_by_field(kubectl: Kubectl, api: proxy.Proxy, namespace: str, selector: str) -> None:
    created(api, path_of(namespace), "a", model={"uri": "hf://org/a"}, queue={"name": "team-a"})
    created(api, path_of(namespace), "b")
    assert api.request("PATCH", f"{path_of(namespace)}/a/status", {"status": {"phase": "Running"}}).is_success
    found = kubectl("get", "ftr", "-n", namespace, "--field-selector", selector, "-o", "name")
    assert found.split() == ["finetunerun.finetune.dev/a"]


def test_explain_says_what_each_choice_means_and_what_is_the_default(kubectl: Kubectl, crd: str) -> None:
    said = " ".join(kubectl("explain", "ftr.spec.training").split())
    assert "Cosine: Falls to 0 as half a cosine. Default: Cosine." in said
    assert "tokens (2000000tok). Default: 1ep." in said


def test_conditions_are_merged_by_type(kubectl: Kubectl, api: proxy.Proxy, namespace: str) -> None:
    run = created(api, path_of(namespace), "x")
    for manager, kind in (("one", "Accepted"), ("two", "Admitted")):
        condition = {"type": kind, "status": "True", "reason": "Because", "lastTransitionTime": builders.CREATED}
        body = {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneRun",
            "metadata": {"name": "x", "namespace": namespace},
            "status": {"conditions": [condition]},
        }
        kubectl("apply", "--server-side", "--subresource=status", f"--field-manager={manager}", "-f", "-", body=body)
    status = FineTuneRun.parse(api.request("GET", run).body).status
    assert {str(condition.type) for condition in status.conditions} == {"Accepted", "Admitted"}
