"""examples/gitops/argocd with Argo CD itself, on real Kubernetes: its controller, repo-server and server.

`make gitops` builds it; without it these tests are skipped. The operator isn't installed by it, and Git is a folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.chart import tools
from tests.cluster.conftest import Kubectl
from tests.cluster.controlplane import ControlPlane
from tests.cluster.stage import Object, Stage, until
from tests.gitops import argocd, build, runs
from tests.gitops.argocd import NAMESPACE, ArgoCD
from tests.gitops.crds import served

BUILT = build.ARGOCD.found()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(BUILT is None, reason="Argo CD isn't built: make gitops")]

LONG = {"steps": 3000, "step_seconds": 0.1}
ARGO = runs.GITOPS / "argocd"


@pytest.fixture(scope="module")
def argo(control_plane: ControlPlane, kubectl: Kubectl, crd: str) -> Iterator[ArgoCD]:
    """It, with the example's argocd-cm.yaml merged in as its first line says."""
    assert BUILT
    folder = control_plane.folder / "argocd"
    folder.mkdir()
    kubectl("create", "namespace", NAMESPACE)
    with (
        served(control_plane.api(), argocd.kinds(BUILT)),
        argocd.running(BUILT, control_plane, folder=folder) as running,
    ):
        kubectl("patch", "configmap", "argocd-cm", "-n", NAMESPACE, "--patch-file", str(ARGO / "argocd-cm.yaml"))
        yield running
        for log in sorted(folder.glob("*.log")):
            sys.stdout.write(f"{log.name}\n{log.read_text()[-8_000:]}\n")
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def example(stage: Stage, repository: str, **automated: bool) -> dict[str, Any]:
    """The spec of examples/gitops/argocd/runs.yaml, for a namespace and a repository of the tests."""
    spec: dict[str, Any] = yaml.safe_load((ARGO / "runs.yaml").read_text())["spec"]
    spec["source"]["repoURL"] = repository
    spec["destination"]["namespace"] = stage.namespace
    spec["syncPolicy"]["automated"].update(automated)
    return spec


def in_sync(status: Object) -> bool:
    found: bool = status["sync"]["status"] == "Synced"
    return found


def test_the_example_is_synced_once_and_healthy_once_it_is_trained(argo: ArgoCD, shared: Stage) -> None:
    runs.datasets(shared, steps=40, step_seconds=0.1)
    argo.application("finetune-runs", example(shared, argo.push("ml", runs.example())))
    runs.applied(shared, runs.EXAMPLE)
    shared.reaches(runs.EXAMPLE, "Running")
    assert in_sync(argo.is_health("finetune-runs", "Progressing"))
    assert shared.status(runs.EXAMPLE)["phase"] == "Running"
    argo.is_health("finetune-runs", "Healthy")
    run = shared.run(runs.EXAMPLE)
    assert run["status"]["phase"] == "Completed"
    assert in_sync(argo.refreshed("finetune-runs"))
    assert shared.run(runs.EXAMPLE) == run
    assert argo.drifts("finetune-runs") == 0


def test_a_failed_run_is_degraded_with_its_message_and_a_paused_one_suspended(argo: ArgoCD, shared: Stage) -> None:
    for name, spec in (("bad", {}), ("paused", {"suspend": True})):
        runs.script(shared, name, exits=[65])
        argo.application(name, example(shared, argo.push(name, runs.folder(**{name: spec}))))
    argo.is_health("bad", "Degraded")
    assert argo.health("bad", "bad") == ("Degraded", shared.status("bad")["failure"]["message"])
    argo.is_health("paused", "Suspended")
    assert shared.status("paused")["phase"] == "Suspended"


def test_what_actions_and_kubectl_change_is_no_drift_and_outlasts_a_sync(
    argo: ArgoCD, shared: Stage, kubectl: Kubectl
) -> None:
    for name in ("trains", "later"):
        runs.script(shared, name, **LONG)
    as_in_git = {"suspend": False, "cancel": False}
    argo.application("acts", example(shared, argo.push("acts", runs.folder(trains=as_in_git))))
    runs.applied(shared, "trains")
    shared.reaches("trains", "Running")
    argo.until("acts", lambda status: "sync" in status and in_sync(status))
    argo.act("acts", "suspend", "trains")
    shared.reaches("trains", "Suspended")
    argo.is_health("acts", "Suspended")

    argo.push("acts", runs.folder(trains=as_in_git, later={"suspend": True}))
    argo.refreshed("acts")
    runs.applied(shared, "later")
    argo.until("acts", lambda status: len(status["history"]) > 1 and in_sync(status))
    assert shared.run("trains")["spec"]["suspend"] is True

    argo.act("acts", "resume", "trains")
    shared.reaches("trains", "Running")
    change = '{"spec": {"suspend": true}}'
    kubectl("patch", "ftr", "trains", "-n", shared.namespace, "--type=merge", "-p", change)
    shared.reaches("trains", "Suspended")
    assert in_sync(argo.refreshed("acts"))
    argo.act("acts", "cancel", "trains")
    argo.is_health("acts", "Degraded")
    assert in_sync(argo.refreshed("acts"))
    assert shared.status("trains")["phase"] == "Canceled"


def test_an_edit_of_a_run_fails_the_sync_by_name_and_the_rest_is_applied(argo: ArgoCD, shared: Stage) -> None:
    for name in ("edited", "new"):
        runs.script(shared, name)
    argo.application("edits", example(shared, argo.push("edits", runs.folder(edited={}))))
    runs.applied(shared, "edited")
    argo.until("edits", lambda status: "sync" in status and in_sync(status))
    argo.push("edits", runs.folder(edited={"model": {"uri": "hf://example/other"}}, new={}))
    argo.refreshed("edits")
    runs.applied(shared, "new")
    refused = "spec.model: Forbidden: model can't change"
    argo.until("edits", lambda status: refused in status["operationState"].get("message", ""))


def test_a_file_that_is_removed_is_no_drift_and_prune_deletes_the_run_alone(argo: ArgoCD, shared: Stage) -> None:
    for name in ("keeps", "prunes"):
        runs.script(shared, f"{name}-1")
        runs.script(shared, f"{name}-2")
        repository = argo.push(name, runs.folder(**{f"{name}-1": {}, f"{name}-2": {}}))
        spec = example(shared, repository, prune=name == "prunes")
        if name == "prunes":
            del spec["source"]["kustomize"]  # with its annotation nothing would be found to prune
        argo.application(name, spec)
        runs.applied(shared, f"{name}-1", f"{name}-2")
    for name in ("keeps", "prunes"):
        shared.finished(f"{name}-1")
        argo.until(name, lambda status: status["health"]["status"] == "Healthy" and in_sync(status))
        argo.push(name, runs.folder(**{f"{name}-2": {}}))
        argo.refreshed(name)
    assert in_sync(argo.status("keeps"))
    assert shared.status("keeps-1")["phase"] == "Completed"
    until(lambda: shared.gone(f"{shared.runs}/prunes-1"), bool, what="the run that is no longer in Git being gone")
    assert len(shared.list("persistentvolumeclaims", of="prunes-1")) == 1, "what was saved stays"
    assert shared.status("prunes-2")["phase"] == "Completed"


def test_the_operators_application_is_in_sync_and_leaves_the_runs_when_it_goes(argo: ArgoCD, shared: Stage) -> None:
    """Beside the operator of these tests, which runs; this one has no image."""
    (argo.folder / "bin" / "helm").symlink_to(tools.helm(3))
    shared.submit("stays")
    spec = yaml.safe_load((ARGO / "operator.yaml").read_text())["spec"]
    spec["source"]["repoURL"] = argo.push("operator", runs.tree(runs.ROOT / spec["source"]["path"]))
    spec["source"]["helm"]["releaseName"] = "other"
    spec["destination"]["namespace"] = "by-argo-cd"
    argo.application("operator", spec)
    argo.until("operator", lambda status: "sync" in status and in_sync(status))
    found = argo.refreshed("operator")
    assert {resource["status"] for resource in found["resources"]} == {"Synced"}
    assert {"CustomResourceDefinition", "Deployment", "ClusterRole"} <= {found["kind"] for found in found["resources"]}
    assert argo.drifts("operator") == 0
    argo.remove("operator")
    assert shared.finished("stays")["phase"] == "Completed"
