"""The chart on real Kubernetes, with the real helm: installed, upgraded, uninstalled, and runs from beginning to end.

The operator runs in the Deployment's own pod, as its account, with the rights that the chart ships and no others; its
namespace enforces Pod Security `restricted`. The test node restarts no containers, and so a policy of the API server
has the Deployment's pods say that they need none.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator.settings import PREFIX
from tests.chart.generate import CHART, ROOT
from tests.chart.helm import NAMESPACE, RELEASE, Helm, HelmError
from tests.cluster import node, podnetwork
from tests.cluster.audit import AuditLog
from tests.cluster.conftest import Kubectl, fresh_namespace
from tests.cluster.controlplane import ControlPlane
from tests.cluster.podspec import Image
from tests.cluster.realtrainer import VENV_FIRST
from tests.cluster.rest import ApiError
from tests.cluster.stage import STUB, Stage, manifest, until

pytestmark = pytest.mark.cluster

USER = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"
CRD = "finetuneruns.finetune.dev"
OLDER_CRD_LACKS = "activeDeadlineSeconds"
OWN_ADDRESS = {"name": f"{PREFIX}BIND_ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
VALUES: Mapping[str, Any] = {
    "trainerImage": {"repository": "stub-trainer"},
    "settings": {
        "podAccess": "proxy",
        "pollSeconds": 0.2,
        "trainingPollSeconds": 0.3,
        "resyncSeconds": 5,
        "leaseSeconds": 3,
    },
    "env": [OWN_ADDRESS],
}
"""Two operators with a lease. Pods of this machine share its ports, and are reached through the API server alone."""


@pytest.fixture(scope="module", autouse=True)
def machine(
    kubectl: Kubectl, images: dict[str, Image], control_plane: ControlPlane, node_settings: node.Settings
) -> Iterator[None]:
    """A node that has the images, and a namespace for the operator."""
    images["finetune-operator:0.1.0"] = Image((sys.executable, "-m", "finetune_operator"), VENV_FIRST)
    images["stub-trainer:0.1.0"] = STUB
    kubectl("create", "namespace", NAMESPACE)
    kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    never_restarted(kubectl)
    with node.running(node_settings):
        yield


def never_restarted(kubectl: Kubectl) -> None:
    """Pods of the operator ask for no restarts, from when this returns."""
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    ours = "object.metadata.?labels[?'app.kubernetes.io/name'].orValue('') == 'finetune-operator'"
    patch = '[JSONPatch{op: "replace", path: "/spec/restartPolicy", value: "Never"}]'
    spec = {
        "matchConstraints": {"resourceRules": [rule]},
        "matchConditions": [{"name": "operator", "expression": ours}],
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": patch}}],
    }
    group, name = {"apiVersion": "admissionregistration.k8s.io/v1"}, {"metadata": {"name": "never-restarted"}}
    binding = {"spec": {"policyName": "never-restarted"}}
    for body in (
        {**group, "kind": "MutatingAdmissionPolicy", **name, "spec": spec},
        {**group, "kind": "MutatingAdmissionPolicyBinding", **name, **binding},
    ):
        kubectl("create", "-f", "-", body=body)
    labels = {"app.kubernetes.io/name": "finetune-operator"}
    probe = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "labels": labels}}
    probe["spec"] = {"containers": [{"name": "probe", "image": "probe"}]}
    until(
        lambda: json.loads(kubectl("create", "--dry-run=server", "-o", "json", "-f", "-", body=probe)),
        lambda pod: pod["spec"]["restartPolicy"] == "Never",
        what="the policy",
    )


@contextmanager
def installed(
    helm: Helm, *options: str, chart: Path = CHART, name: str = RELEASE, values: Mapping[str, Any] = VALUES
) -> Iterator[str]:
    """A release for as long as the block lasts; the notes."""
    arguments = ("install", name, str(chart), "--namespace", NAMESPACE, "--wait", "--timeout", "60s", *options)
    try:
        yield helm(*arguments, values=values)
    finally:
        helm("uninstall", name, "--namespace", NAMESPACE, "--ignore-not-found", "--wait", "--timeout", "30s")


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace of the test's own, which enforces Pod Security `restricted` too."""
    with fresh_namespace(kubectl) as name:
        kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        yield name


@pytest.fixture(name="stage")
def stage_of_the_test(control_plane: ControlPlane, namespace: str) -> Stage:
    """For runs with the stub trainer."""
    return Stage(control_plane.api(), namespace)


def previous_chart(folder: Path) -> Path:
    """The chart of the commit before, or this one where there was none; its CRD lacks a field that there is today."""
    found = folder / "previous" / CHART.name
    command = ["git", "archive", "HEAD^", str(CHART.relative_to(ROOT))]
    archive = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if archive.returncode == 0 and _is_a_chart("HEAD^"):
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(folder / "old", filter="data")
        found.parent.mkdir()
        (folder / "old" / CHART.relative_to(ROOT)).rename(found)
    else:
        shutil.copytree(CHART, found)
    path = found / "files" / "crds" / "finetune.dev_finetuneruns.yaml"
    crd = yaml.safe_load(path.read_text())
    (version,) = crd["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    del spec["properties"][OLDER_CRD_LACKS]
    spec["x-kubernetes-validations"] = [
        rule for rule in spec["x-kubernetes-validations"] if OLDER_CRD_LACKS not in rule["rule"]
    ]
    path.write_text(yaml.safe_dump({"apiVersion": crd["apiVersion"], "kind": crd["kind"], **crd}, sort_keys=False))
    return found


def _is_a_chart(commit: str) -> bool:
    """Whether a commit has it whole: the first ones don't."""
    file = f"{commit}:{(CHART / 'Chart.yaml').relative_to(ROOT)}"
    return subprocess.run(["git", "cat-file", "-e", file], cwd=ROOT, capture_output=True, check=False).returncode == 0


def fields(kubectl: Kubectl) -> Mapping[str, Any]:
    """What a run's spec may hold."""
    (version,) = json.loads(kubectl("get", "crd", CRD, "-o", "json"))["spec"]["versions"]
    found: Mapping[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    return found


def refused(audit_log: AuditLog, mark: int) -> Sequence[Mapping[str, Any]]:
    """What the operator asked for and had no right to."""
    return [
        record["requestURI"]
        for record in audit_log.since(mark)
        if record["user"]["username"] == USER and record.get("responseStatus", {}).get("code") == 403
    ]


def test_it_is_installed_upgraded_and_uninstalled_and_no_run_is_lost(
    live: Helm, kubectl: Kubectl, stage: Stage, audit_log: AuditLog, tmp_path: Path
) -> None:
    mark = audit_log.mark()
    with installed(live, chart=previous_chart(tmp_path)):
        assert OLDER_CRD_LACKS not in fields(kubectl)
        stage.submit("first")
        assert stage.finished("first")["phase"] == "Completed"
        before = stage.run("first")
        stage.submit("under-way", script={"steps": 30, "step_seconds": 0.2})
        stage.until("under-way", lambda status: status.get("progress", {}).get("batch", 0) > 0)

        live("upgrade", RELEASE, str(CHART), "-n", NAMESPACE, "--wait", "--timeout", "60s", values=VALUES)
        assert OLDER_CRD_LACKS in fields(kubectl)
        status = stage.finished("under-way")
        assert (status["phase"], status["attempt"]) == ("Completed", 1)
        stage.submit("after", activeDeadlineSeconds=600)
        assert stage.finished("after")["phase"] == "Completed"
        assert stage.run("after")["spec"][OLDER_CRD_LACKS] == 600
        assert stage.run("first") == before, "a finished run isn't touched"
        assert audit_log.writes(mark, user=USER, namespace=stage.namespace), "by the account of the pod"
        assert refused(audit_log, mark) == []
    left = json.loads(kubectl("get", "all,serviceaccounts,roles,networkpolicies", "-n", NAMESPACE, "-o", "json"))
    ours = [o["metadata"]["name"] for o in left["items"] if RELEASE in o["metadata"]["name"] and o["kind"] != "Pod"]
    assert ours == []
    assert stage.run("first") == before
    assert {pvc["status"]["phase"] for pvc in stage.list("persistentvolumeclaims")} == {"Bound"}
    kubectl("delete", "ftr", "--all", "-n", stage.namespace, "--timeout=30s")


def may_list_pods(stage: Stage) -> bool:
    """Whether the operator's account may."""
    wanted = {"user": USER, "resourceAttributes": {"verb": "list", "resource": "pods", "namespace": stage.namespace}}
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": wanted}
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    return bool(stage.api.request("POST", path, body=body)["status"]["allowed"])


def test_it_serves_the_namespaces_that_it_is_given_and_needs_no_right_in_others(
    newest_free: Helm, kubectl: Kubectl, stage: Stage, audit_log: AuditLog
) -> None:
    mark = audit_log.mark()
    with fresh_namespace(kubectl) as other, installed(newest_free, values={**VALUES, "namespaces": [stage.namespace]}):
        elsewhere = Stage(stage.api, other)
        elsewhere.submit("unseen")
        stage.submit("seen")
        assert stage.finished("seen")["phase"] == "Completed"
        assert "phase" not in elsewhere.status("unseen")
        assert (may_list_pods(stage), may_list_pods(elsewhere)) == (True, False)
        bindings = json.loads(kubectl("get", "clusterrolebindings", "-o", "json"))["items"]
        ours = [b["metadata"]["name"] for b in bindings if RELEASE in json.dumps(b.get("subjects", []))]
        wide = [f"{RELEASE}-metrics-login", f"{RELEASE}-profiles"]
        assert ours == wide, (
            "to read profiles, which are the whole cluster's, to ask who reads metrics, and nothing else"
        )
        assert refused(audit_log, mark) == []


PROFILE: Mapping[str, Any] = {
    "deviceResource": "",
    "namespaces": [],
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "defaults": {"resources": {"cpu": "100m", "memory": "100Mi"}},
    "limits": {
        "nodes": 1,
        "devicesPerNode": [1, 2],
        "devices": 4,
        "cpu": "200m",
        "memory": "200Mi",
        "sharedMemory": "1Gi",
        "storageSize": "1Gi",
        "storageClassNames": ["standard"],
        "modelUris": ["hf://example/"],
        "datasetUris": ["configmap://"],
        "uploadUris": [],
        "mlflowUris": ["https://mlflow.example.com/"],
    },
}
GPU = {**PROFILE, "deviceResource": "nvidia.com/gpu", "limits": {**PROFILE["limits"], "nodes": 4}}
PROFILES = {"cpu": PROFILE, "gpu": GPU, "others": {**PROFILE, "namespaces": ["elsewhere"]}}
OVER: Sequence[tuple[Mapping[str, Any], str]] = (
    ({"profile": "others"}, "spec.profile: profile others is not for namespace"),
    (
        {"profile": "gpu", "resources": {"deviceResource": None, "nodes": 4, "devicesPerNode": 2}},
        "4 devices at most",
    ),
    (
        {"profile": "gpu", "resources": {"deviceResource": None, "devicesPerNode": 3}},
        "3 is not what profile gpu offers",
    ),
    ({"resources": {"nodes": 2}}, "spec.resources.nodes: 2 is more than profile cpu allows: 1 at most"),
    ({"resources": {"deviceResource": "a.com/gpu"}}, "spec.resources.deviceResource: a.com/gpu is not"),
    ({"resources": {"cpu": "0.5"}}, "spec.resources.cpu: 0.5 is more than profile cpu allows: 200m at most"),
    ({"resources": {"memory": "1Gi"}}, "spec.resources.memory: 1Gi is more"),
    ({"resources": {"sharedMemory": "1025Mi"}}, "spec.resources.sharedMemory: 1025Mi is more"),
    ({"resources": {"nodeSelector": {"kubernetes.io/os": "plan9"}}}, "spec.resources.nodeSelector: profile cpu"),
    ({"resources": {"tolerations": [{"operator": "Exists"}]}}, "spec.resources.tolerations: profile cpu"),
    ({"resources": {"priorityClassName": "high"}}, "spec.resources.priorityClassName: high is not"),
    ({"storage": {"claimTemplate": {"size": "2Gi"}}}, "spec.storage.claimTemplate.size: 2Gi is more"),
    ({"storage": {"claimTemplate": {"storageClassName": "gold"}}}, "storageClassName: gold is not what"),
    ({"storage": {"uploadUri": "s3://models"}}, "spec.storage.uploadUri: s3://models is not allowed"),
    ({"model": {"uri": "hf://example-org/model"}}, "spec.model.uri: hf://example-org/model is not allowed"),
    ({"model": {"trustRemoteCode": True}}, "spec.model.trustRemoteCode: profile cpu"),
    ({"dataset": {"train": {"uri": "hf://squad"}}}, "spec.dataset.train.uri: hf://squad is not allowed"),
    ({"dataset": {"eval": {"uri": "hf://squad"}}}, "spec.dataset.eval.uri: hf://squad is not allowed"),
    ({"tracking": {"mlflow": {"trackingUri": "https://mlflow.example.com.evil.org"}}}, "spec.tracking.mlflow"),
    ({"trainer": {"image": "mine"}}, "spec.trainer.image: profile cpu"),
    ({"task": "Custom", "trainer": {"image": "mine", "command": ["a"]}}, "spec.task: profile cpu"),
)
"""What the API server refuses under the profile `cpu`, or another, and what it says."""


def answer(stage: Stage, spec: Mapping[str, Any]) -> str:
    """What the API server says to a run, which isn't stored."""
    try:
        stage.api.request("POST", stage.runs, body=manifest("tried", **{"profile": "cpu", **spec}), dryRun="All")
    except ApiError as error:
        return str(error)
    return ""


def test_profiles_come_with_it_and_the_api_server_refuses_what_they_do_not_allow(
    newest_free: Helm, kubectl: Kubectl, stage: Stage
) -> None:
    profiles = [{"name": name, "spec": spec} for name, spec in PROFILES.items()]
    values = {**VALUES, "profiles": {"install": profiles, "admissionPolicy": True}}
    with installed(newest_free, values=values):
        found = kubectl("get", "cftp", "-o", "name").split()
        assert found == [f"clusterfinetuneprofile.finetune.dev/{name}" for name in PROFILES]
        until(lambda: answer(stage, OVER[0][0]), bool, what="the policy")
        for spec, said in OVER:
            assert said in answer(stage, spec)
        own = {"resources": {"deviceResource": None, "cpu": None, "memory": None}}
        for allowed in ({}, own, {"profile": "not-there"}, {"profile": None, "resources": {"nodes": 2}}):
            assert answer(stage, allowed) == ""
        stage.submit("under-it", profile="cpu", **own)
        assert stage.finished("under-it")["profile"]["name"] == "cpu"
        newest_free("upgrade", RELEASE, str(CHART), "-n", NAMESPACE, "--wait", "--timeout", "60s", values=values)
        assert kubectl("get", "cftp", "-o", "name").split() == found
    kubectl("delete", "cftp", "--all")


def test_waiting_for_an_operator_that_never_gets_ready_fails(live: Helm) -> None:
    values = {**VALUES, "image": {"repository": "not-there"}}
    with (
        pytest.raises(HelmError, match=r"deadline exceeded|not ready|timed out"),
        installed(live, "--timeout", "5s", values=values),
    ):
        raise AssertionError("helm takes it for ready")


def chart_of(run: Mapping[str, Any], *, folder: Path, script: Mapping[str, Any]) -> Path:
    """A chart with one run."""
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text(json.dumps({"apiVersion": "v2", "name": "training", "version": "0.1.0"}))
    name = f"{run['metadata']['name']}-script"
    data = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"script.json": json.dumps(script)},
    }
    (folder / "templates" / "all.yaml").write_text(yaml.safe_dump_all([run, data]))
    return folder


@pytest.fixture(scope="module")
def newest_live(newest_free: Helm) -> Iterator[Helm]:
    """The newest Helm with an operator installed by it."""
    with installed(newest_free):
        yield newest_free


def test_helm_4_waits_for_a_run_until_it_is_completed(newest_live: Helm, stage: Stage, tmp_path: Path) -> None:
    chart = chart_of(manifest("good"), folder=tmp_path / "chart", script={"steps": 8, "step_seconds": 0.2})
    newest_live("install", "good", str(chart), "-n", stage.namespace, "--wait", "--timeout", "60s")
    assert stage.status("good")["phase"] == "Completed"


def test_helm_4_fails_with_a_run_that_fails_and_repeats_its_message(
    newest_live: Helm, stage: Stage, tmp_path: Path
) -> None:
    script = {"exit_code": 65, "error": "train.jsonl line 1: no JSON"}
    chart = chart_of(manifest("bad"), folder=tmp_path / "chart", script=script)
    with pytest.raises(HelmError) as caught:
        newest_live("install", "bad", str(chart), "-n", stage.namespace, "--wait", "--timeout", "60s")
    status = stage.status("bad")
    assert status["phase"] == "Failed"
    assert status["failure"]["message"] in str(caught.value)


def test_the_runs_of_the_gitops_example_are_taken(newest_live: Helm, kubectl: Kubectl, namespace: str) -> None:
    base = str(ROOT / "examples" / "gitops" / "base")
    assert "created (server dry run)" in kubectl("create", "--dry-run=server", "-k", base, "-n", namespace)


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_run_in_git_shows_no_diff_whatever_becomes_of_it(
    side: str, newest_live: Helm, kubectl: Kubectl, stage: Stage, tmp_path: Path
) -> None:
    for name, steps in (("trains", 10_000), ("ended", 2)):
        stage.keep(f"{name}-script", {"script.json": json.dumps({"steps": steps, "step_seconds": 0.2})})
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump_all([manifest("trains"), manifest("ended")]))
    (tmp_path / "kustomization.yaml").write_text("resources: [runs.yaml]\n")
    folder = ("-k", str(tmp_path), "-n", stage.namespace, f"--server-side={str(side == 'server').lower()}")

    kubectl("apply", *folder)
    assert stage.finished("ended")["phase"] == "Completed"
    stage.until("trains", lambda status: status.get("progress", {}).get("batch", 0) > 0)
    assert kubectl("diff", *folder) == ""
    kubectl("apply", *folder)
    assert stage.status("trains")["phase"] == "Running"
    assert {stage.run(name)["metadata"]["generation"] for name in ("trains", "ended")} == {1}
    for child in (*stage.list("jobs", of="trains"), *stage.list("pods", of="trains")):
        assert "last-applied" not in json.dumps(child["metadata"]), "nothing of the run's is copied to what it creates"


ROLES = {"view": ("no", "yes"), "edit": ("yes", "yes"), "admin": ("yes", "yes")}


@pytest.mark.parametrize("role", ROLES)
def test_roles_of_users_take_in_runs(role: str, newest_live: Helm, kubectl: Kubectl, stage: Stage) -> None:
    kubectl("create", "rolebinding", role, f"--clusterrole={role}", "--user=jane", "-n", stage.namespace)
    can_i = ("auth", "can-i", "--as=jane", "-n", stage.namespace, "--list", "--no-headers")
    found: str = until(lambda: kubectl(*can_i), lambda text: "finetuneruns" in text, what="the aggregated role")
    lines = [line for line in found.splitlines() if line.startswith("finetuneruns.finetune.dev")]
    verbs = " ".join(lines)
    assert ("yes" if "create" in verbs else "no", "yes" if "watch" in verbs else "no") == ROLES[role]
    status = [line for line in found.splitlines() if line.startswith("finetuneruns.finetune.dev/status")]
    assert all("patch" not in line and "update" not in line for line in status), "it is the operator's to write"
    assert as_jane(kubectl, stage).startswith("Error from server (Forbidden)") == (ROLES[role][0] == "no")


def as_jane(kubectl: Kubectl, stage: Stage) -> str:
    """What jane is told of a run on two nodes, which isn't stored."""
    two = {"resources": {"nodes": 2}, "storage": {"claimTemplate": {"accessMode": "ReadWriteMany"}}}
    try:
        body = manifest("tried", **two)
        return kubectl("create", "--as=jane", "--dry-run=server", "-n", stage.namespace, "-f", "-", body=body)
    except AssertionError as error:
        return str(error).partition("-f -: ")[2]


def test_a_right_to_create_runs_is_none_to_create_jobs(newest_live: Helm, kubectl: Kubectl, stage: Stage) -> None:
    where = ("-n", stage.namespace)
    kubectl("create", "role", "runs", "--verb=create", "--resource=finetuneruns.finetune.dev", *where)
    kubectl("create", "rolebinding", "runs", "--role=runs", "--user=jane", *where)
    found = until(lambda: as_jane(kubectl, stage), lambda text: "may not create" in text, what="the policy")
    assert f"jane may not create jobs (API group batch) in namespace {stage.namespace}" in found
    kubectl("create", "rolebinding", "edit", "--clusterrole=edit", "--user=jane", *where)
    assert "created (server dry run)" in until(
        lambda: as_jane(kubectl, stage), lambda text: "may not create" not in text, what="the right"
    )


def test_the_run_of_the_notes_is_taken(newest_live: Helm, kubectl: Kubectl) -> None:
    notes = newest_live("get", "notes", RELEASE, "-n", NAMESPACE)
    _, _, rest = notes.partition("<<'RUN'\n")
    manifests, _, _ = rest.partition("  RUN\n")
    for found in yaml.safe_load_all("\n".join(line.removeprefix("  ") for line in manifests.splitlines())):
        kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", body=found)


def scrape(url: str, token: str = "") -> int:
    """The code that a scrape is answered with."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_metrics_are_told_to_the_readers_of_its_role_alone(newest_live: Helm, kubectl: Kubectl, stage: Stage) -> None:
    where = ("-n", stage.namespace)
    kubectl("create", "serviceaccount", "prometheus", *where)
    token = kubectl("create", "token", "prometheus", *where)
    pods = json.loads(kubectl("get", "pods", "-n", NAMESPACE, "-o", "json"))["items"]
    addresses = [pod["status"]["podIP"] for pod in pods if pod["status"]["phase"] == "Running"]
    urls = [f"http://{podnetwork.local(address)}:9401/metrics" for address in addresses]
    assert [scrape(url) for url in urls] == [401, 401], "the one that acts, and the one that stands by"
    assert [scrape(url, token) for url in urls] == [403, 403]
    subject = f"--serviceaccount={stage.namespace}:prometheus"
    kubectl("create", "clusterrolebinding", "reader", f"--clusterrole={RELEASE}-metrics-reader", subject)
    codes = until(lambda: [scrape(url, token) for url in urls], lambda found: 403 not in found, what="the right")
    kubectl("delete", "clusterrolebinding", "reader")
    assert codes == [200, 200]


def said(kubectl: Kubectl, url: str) -> str:
    """What is answered there, through the API server."""
    return kubectl("get", "--raw", url)


def test_the_operator_is_alive_and_ready_at_the_paths_that_its_probes_ask(
    newest_live: Helm, kubectl: Kubectl, control_plane: ControlPlane
) -> None:
    pods = json.loads(kubectl("get", "pods", "-n", NAMESPACE, "-o", "json"))["items"]
    running = [pod for pod in pods if pod["status"]["phase"] == "Running"]
    assert len(running) == 2
    for pod in running:
        (container,) = pod["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod['metadata']['name']}:{ports[asked['port']]}/proxy"
            assert said(kubectl, path + asked["path"]) == "ok\n"
