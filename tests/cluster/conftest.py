"""Fixtures of the tests on real Kubernetes: one control plane and one node a test run, a fresh namespace a test.

With CLUSTER=current the tests use the kubeconfig's current context instead, and only then is a cluster touched that
wasn't started here; what needs our own node or the audit log is skipped there. Without binaries and without Go the
tests are skipped with the reason, and fail where CI is set, since a skip would pass for success there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_operator.settings import DEFAULT_IMAGE
from tests.cluster import controlplane, kube, node, operatorprocess, stage
from tests.cluster.audit import AuditLog
from tests.cluster.pods import Here
from tests.cluster.podspec import Image
from tests.cluster.realtrainer import VENV_FIRST

OURS = os.environ.get("CLUSTER") != "current"


@dataclasses.dataclass(frozen=True)
class Kubectl:
    """kubectl with the test cluster's kubeconfig: what it prints, or an AssertionError with what it complains of."""

    binary: Path
    kubeconfig: Path

    def __call__(self, *arguments: str, body: object = None, timeout: float = 60) -> str:
        """`body` is sent as JSON on standard input, for `apply -f -` and the like."""
        result = subprocess.run(
            [self.binary, f"--kubeconfig={self.kubeconfig}", *arguments],
            input=None if body is None else json.dumps(body),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert result.returncode == 0, f"kubectl {' '.join(arguments)}: {result.stderr}"
        return result.stdout


@pytest.fixture(scope="session")
def binaries(request: pytest.FixtureRequest) -> kube.Binaries:
    """The Kubernetes binaries, built on the first use; that takes minutes, so its progress is shown."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    try:
        with capture.global_and_fixture_disabled():
            return kube.binaries(progress=kube.ProgressLine())
    except kube.KubeUnavailable as error:
        if os.environ.get("CI"):
            pytest.fail(f"no Kubernetes: {error}", pytrace=False)
        pytest.skip(f"no Kubernetes: {error}")


@pytest.fixture(scope="session")
def control_plane(binaries: kube.Binaries) -> Iterator[controlplane.ControlPlane]:
    """A control plane of our own, started once."""
    if not OURS:
        pytest.skip("needs a control plane that this test run started, and CLUSTER=current names another")
    with controlplane.start(binaries=binaries) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kubeconfig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every right on the test cluster."""
    if OURS:
        cluster: controlplane.ControlPlane = request.getfixturevalue("control_plane")
        return cluster.kubeconfig
    current = subprocess.run(
        ["kubectl", "config", "view", "--minify", "--flatten", "--raw"], capture_output=True, text=True, check=True
    )
    path = tmp_path_factory.mktemp("current") / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(current.stdout)
    return path


@pytest.fixture(scope="session")
def kubectl(request: pytest.FixtureRequest, kubeconfig: Path) -> Kubectl:
    """A function that is kubectl, and returns what it prints."""
    if OURS:
        found: kube.Binaries = request.getfixturevalue("binaries")
        return Kubectl(found.kubectl, kubeconfig)
    return Kubectl(Path(shutil.which("kubectl") or "kubectl"), kubeconfig)


@pytest.fixture(scope="session")
def images() -> dict[str, Image]:
    """What the node's images stand for; a test may add its own."""
    return {
        DEFAULT_IMAGE: Image((sys.executable, "-m", "finetune_trainer"), VENV_FIRST),
        "shell": Image(env=VENV_FIRST),
    }


@pytest.fixture(scope="session")
def node_settings(control_plane: controlplane.ControlPlane, images: dict[str, Image]) -> node.Settings:
    """One node with two GPUs that aren't there."""
    return node.Settings(
        kubeconfig=control_plane.node_kubeconfig,
        images=images,
        folder=control_plane.folder / "node",
        certificate=control_plane.serving_certificate,
        api_server=control_plane.server,
    )


@pytest.fixture(scope="session", name="node")
def running_node(node_settings: node.Settings) -> Iterator[node.Settings]:
    """The node, started once."""
    with node.running(node_settings):
        yield node_settings


@pytest.fixture(scope="session")
def audit_log(control_plane: controlplane.ControlPlane) -> AuditLog:
    """What was asked of the API server."""
    return AuditLog(control_plane.audit_log)


@contextlib.contextmanager
def fresh_namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace that is ready for pods; afterwards its pods are gone, and it soon is."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    kubectl("create", "namespace", name)
    kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=30s")
    yield name
    kubectl("delete", "namespace", name, "--wait=false")
    # All at once: kubectl would delete them one by one, and its own rate limit holds it back where there are many.
    kubectl("delete", "--raw", f"/api/v1/namespaces/{name}/pods?gracePeriodSeconds=0")


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace of the test's own."""
    with fresh_namespace(kubectl) as name:
        yield name


@pytest.fixture
def here(kubectl: Kubectl, namespace: str) -> Here:
    """The test's own namespace, to put pods in and watch them."""
    return Here(kubectl, namespace)


@pytest.fixture(scope="session")
def crd(kubectl: Kubectl) -> str:
    """The CRDs of the checkout, installed; the name of the runs'."""
    folder = Path(__file__).resolve().parents[2] / "crds"
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(folder))
    # kubectl can't wait for a condition of an object that has no list of conditions yet, as a new one hasn't
    kubectl("wait", "--for=jsonpath={.status.acceptedNames.kind}", "--timeout=30s", "-f", str(folder))
    kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(folder))
    return "finetuneruns.finetune.dev"


@pytest.fixture(scope="session")
def operator_account(
    control_plane: controlplane.ControlPlane, kubectl: Kubectl, crd: str, images: dict[str, Image]
) -> Path:
    """A kubeconfig with the rights of examples/operator-rbac.yaml, and the stub trainer among the node's images."""
    images[stage.STUB_IMAGE] = stage.STUB
    kubectl("apply", "-f", str(operatorprocess.RBAC))
    return operatorprocess.account(control_plane)


@pytest.fixture(scope="module")
def shared(
    operator_account: Path,
    control_plane: controlplane.ControlPlane,
    node: node.Settings,
    kubectl: Kubectl,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[stage.Stage]:
    """A namespace with an operator of its own, for the tests of a file that need nothing but runs of other names."""
    folder = tmp_path_factory.mktemp("operator")
    with (
        fresh_namespace(kubectl) as name,
        operatorprocess.running(operator_account, folder=folder, namespaces=[name], **stage.QUICK) as operator,
    ):
        yield stage.Stage(control_plane.api(), name)
        sys.stdout.write(operator.log.read_text())


@pytest.fixture(name="stage")
def stage_of_the_test(control_plane: controlplane.ControlPlane, node: node.Settings, namespace: str) -> stage.Stage:
    """The test's own namespace, for runs with the stub trainer."""
    return stage.Stage(control_plane.api(), namespace)


@pytest.fixture
def operator(operator_account: Path, tmp_path: Path, namespace: str) -> Iterator[operatorprocess.OperatorProcess]:
    """An operator for the test's own namespace."""
    with operatorprocess.running(operator_account, folder=tmp_path, namespaces=[namespace], **stage.QUICK) as running:
        yield running
        sys.stdout.write(running.log.read_text())
