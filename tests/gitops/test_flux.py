"""examples/gitops/flux/runs.yaml with Flux's own kustomize-controller, on real Kubernetes.

`make gitops` builds it; without it these tests are skipped. Git is stood in for. test_flux_operator.py has the runs of
the example itself, and the operator by its HelmRelease.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.cluster.conftest import Kubectl
from tests.cluster.controlplane import ControlPlane
from tests.cluster.stage import Stage, until
from tests.gitops import build, runs
from tests.gitops.crds import served
from tests.gitops.flux import NAMESPACE, Flux, is_false, is_true, kinds, running

BUILT = build.FLUX.found()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(BUILT is None, reason="Flux isn't built: make gitops")]

LONG = {"steps": 3000, "step_seconds": 0.1}
OTHER_MODEL = {"model": {"uri": "hf://example/other"}}
RUNS = yaml.safe_load((runs.GITOPS / "flux" / "runs.yaml").read_text())


@pytest.fixture(scope="module")
def flux(control_plane: ControlPlane, kubectl: Kubectl, crd: str) -> Iterator[Flux]:
    """The kustomize-controller."""
    assert BUILT
    folder = control_plane.folder / "flux"
    folder.mkdir()
    kubectl("create", "namespace", NAMESPACE)
    program = BUILT / "kustomize-controller"
    with (
        served(control_plane.api(), kinds(BUILT / "kustomizations", BUILT / "sources")),
        running(program, control_plane=control_plane, folder=folder) as found,
    ):
        yield found
        for log in folder.glob("*.log"):
            sys.stdout.write(log.read_text()[-30_000:])
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def example(stage: Stage, repository: str, **changes: Any) -> dict[str, Any]:
    """The spec of examples/gitops/flux/runs.yaml, for a namespace and a repository of the tests, without dependsOn."""
    source = {"kind": "GitRepository", "name": repository}
    return {**RUNS["spec"], "targetNamespace": stage.namespace, "sourceRef": source, "dependsOn": [], **changes}


def test_a_failed_run_fails_it_and_is_named_and_others_are_applied(flux: Flux, shared: Stage) -> None:
    runs.script(shared, "bad", exits=[65])
    runs.script(shared, "good")
    flux.push("bad", runs.folder(bad={}))
    flux.kustomization("bad", example(shared, "bad"))
    ready = flux.until("bad", is_false)
    assert ready["reason"] == "HealthCheckFailed"
    assert f"FineTuneRun/{shared.namespace}/bad status: 'Failed'" in ready["message"]
    flux.push("bad", runs.folder(bad={}, good={}))
    runs.applied(shared, "good")


def test_an_edit_of_a_run_is_refused_by_name_and_holds_up_the_rest_of_the_revision(flux: Flux, shared: Stage) -> None:
    for name in ("edited", "new"):
        runs.script(shared, name)
    flux.push("edits", runs.folder(edited={}))
    flux.kustomization("edits", example(shared, "edits"))
    flux.until("edits", is_true)
    flux.push("edits", runs.folder(edited=OTHER_MODEL, new={}))
    assert "spec.model: Forbidden: model can't change" in flux.until("edits", is_false)["message"]
    assert shared.gone(f"{shared.runs}/new")
    flux.push("edits", runs.folder(edited={}, new={}))
    runs.applied(shared, "new")


def test_what_users_pause_and_cancel_stays_so_by_the_annotation_unless_git_says_otherwise(
    flux: Flux, shared: Stage, kubectl: Kubectl
) -> None:
    rows: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "kept": ({}, {}),
        "set": ({"suspend": False}, {}),
        "undone": ({}, {"commonMetadata": {}}),
    }
    for name, (fields, changes) in rows.items():
        runs.script(shared, name, **LONG)
        flux.push(name, runs.folder(**{name: fields}))
        flux.kustomization(name, example(shared, name, **changes))
    runs.applied(shared, *rows)
    patch = ("patch", "ftr", *rows, "-n", shared.namespace, "--type=merge", "-p")
    kubectl(*patch, '{"spec": {"suspend": true}}')
    for name in rows:
        shared.reaches(name, "Suspended")
        assert is_true(flux.until(name, is_true)), "a paused run holds nothing up"
    assert is_true(flux.once_more("kept"))
    assert shared.run("kept")["spec"]["suspend"] is True
    for name in ("set", "undone"):
        flux.ask(name)
        shared.reaches(name, "Starting", "Running")

    kubectl(*patch, '{"spec": {"cancel": true}}')
    shared.reaches("kept", "Canceled")
    assert flux.once_more("kept")["reason"] == "HealthCheckFailed"
    assert "cancel can't be taken back" in flux.once_more("undone")["message"]


def test_a_new_file_is_applied_while_others_train_and_prune_does_what_its_name_says(flux: Flux, shared: Stage) -> None:
    for name in ("trains", "follows"):
        runs.script(shared, name, **LONG)
    flux.push("grows", runs.folder(trains={}))
    flux.kustomization("grows", example(shared, "grows"))
    runs.applied(shared, "trains")
    shared.reaches("trains", "Running")
    flux.push("grows", runs.folder(trains={}, follows={}))
    runs.applied(shared, "follows")
    assert shared.status("trains")["phase"] == "Running"

    flux.looks_at_health("grows", flux.push("grows", runs.folder(follows={})))
    assert shared.status("trains")["phase"] == "Running", "the example doesn't prune"
    flux.change("grows", {"prune": True})
    flux.looks_at_health("grows", flux.push("grows", runs.folder(trains={}, follows={})))
    flux.push("grows", runs.folder(trains={}))
    until(lambda: shared.gone(f"{shared.runs}/follows"), bool, what="the run that is no longer in Git being gone")
    assert shared.status("trains")["phase"] == "Running"
    assert len(shared.list("persistentvolumeclaims", of="follows")) == 1, "what was saved stays"
