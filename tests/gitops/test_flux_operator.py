"""examples/gitops/flux from nothing, on real Kubernetes: the operator by its HelmRelease, and then the runs.

Nothing of ours is installed here but by Flux's own kustomize-controller and helm-controller, and the operator runs in
its Deployment's pods. `make gitops` builds both; without them the test is skipped. Git is stood in for.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import yaml

from tests.chart.generate import CHART
from tests.chart.test_install import VALUES, never_restarted
from tests.cluster import controlplane, kube, node
from tests.cluster.conftest import Kubectl
from tests.cluster.controlplane import ControlPlane
from tests.cluster.podspec import Image
from tests.cluster.realtrainer import VENV_FIRST
from tests.cluster.stage import STUB, Stage
from tests.gitops import build, runs
from tests.gitops.crds import served
from tests.gitops.flux import NAMESPACE, Flux, is_false, is_true, kinds, running

KUSTOMIZE, HELM = build.FLUX.found(), build.HELM.found()
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(KUSTOMIZE is None or HELM is None, reason="Flux isn't built: make gitops"),
]

FLUX = runs.GITOPS / "flux"
TEAM = "ml"
FOLDER = CHART.parent.relative_to(runs.ROOT)
IMAGES = {
    "registry.example.com/finetune-operator:0.1.0": Image((sys.executable, "-m", "finetune_operator"), VENV_FIRST),
    "registry.example.com/finetune-trainer:0.1.0": STUB,
}


@pytest.fixture(scope="module")
def cluster(binaries: kube.Binaries) -> Iterator[ControlPlane]:
    """A control plane of its own, and a node that has the images."""
    with controlplane.start(binaries=binaries) as found:
        settings = node.Settings(
            kubeconfig=found.node_kubeconfig,
            images=IMAGES,
            folder=found.folder / "node",
            certificate=found.serving_certificate,
            api_server=found.server,
        )
        with node.running(settings):
            yield found


@pytest.fixture(scope="module")
def flux(cluster: ControlPlane) -> Iterator[Flux]:
    """Both controllers."""
    assert KUSTOMIZE
    assert HELM
    folder = cluster.folder / "flux"
    folder.mkdir()
    kubectl = Kubectl(cluster.binaries.kubectl, cluster.kubeconfig)
    never_restarted(kubectl)
    for namespace in (NAMESPACE, TEAM):
        kubectl("create", "namespace", namespace)
    programs = (KUSTOMIZE / "kustomize-controller", HELM / "helm-controller")
    with (
        served(cluster.api(), kinds(KUSTOMIZE / "kustomizations", KUSTOMIZE / "sources", HELM / "releases")),
        running(*programs, control_plane=cluster, folder=folder) as found,
    ):
        yield found
        for log in folder.glob("*.log"):
            sys.stdout.write(log.read_text()[-20_000:])


def platform() -> dict[str, str]:
    """The platform's repository: this checkout's, with the settings of the chart's tests among the example's values."""
    files = runs.tree(FLUX / "operator")
    (path,) = files
    release = yaml.safe_load(files[path])
    release["spec"]["values"] = {**VALUES, **release["spec"]["values"]}
    return {path: yaml.safe_dump(release)}


def chart() -> dict[str, str]:
    """The chart, as the source-controller packages it."""
    return {name.removeprefix(f"{FOLDER}/"): text for name, text in runs.tree(CHART).items()}


def test_the_operator_comes_first_then_the_runs_are_trained_and_then_nothing_changes(
    flux: Flux, cluster: ControlPlane
) -> None:
    stage = Stage(cluster.api(), TEAM)
    runs.datasets(stage, steps=30, step_seconds=0.1)
    (team,) = yaml.safe_load_all((FLUX / "runs.yaml").read_text())
    repository, operator = yaml.safe_load_all((FLUX / "operator.yaml").read_text())
    mine, theirs = team["metadata"]["name"], operator["metadata"]["name"]
    flux.push(team["spec"]["sourceRef"]["name"], runs.example())
    flux.kustomization(mine, team["spec"])
    assert flux.until(mine, is_false)["reason"] == "DependencyNotReady"

    flux.push(repository["metadata"]["name"], platform())
    flux.kustomization(theirs, operator["spec"])
    flux.package(f"{NAMESPACE}-finetune-operator", chart())
    flux.until(theirs, is_true)

    runs.applied(stage, runs.EXAMPLE)
    stage.reaches(runs.EXAMPLE, "Running")
    assert flux.ready(mine)["status"] == "Unknown"
    flux.until(mine, is_true)
    run = stage.run(runs.EXAMPLE)
    assert run["status"]["phase"] == "Completed"
    assert is_true(flux.once_more(mine))
    assert stage.run(runs.EXAMPLE) == run
