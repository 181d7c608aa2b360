"""The control plane that the other tests rest on: what it is, what it lets through, that it leaves nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import controlplane, kube
from tests.cluster.audit import AuditLog
from tests.cluster.conftest import Kubectl

pytestmark = pytest.mark.cluster


def until(holds: Callable[[], bool], *, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_it_is_the_release_that_go_mod_pins(control_plane: controlplane.ControlPlane) -> None:
    if "KUBEBUILDER_ASSETS" in os.environ:
        pytest.skip("KUBEBUILDER_ASSETS may hold any release")
    assert control_plane.api().request("GET", "/version")["gitVersion"] == kube.version()


def test_openapi_is_whole(kubectl: Kubectl) -> None:
    """Built with the wrong Go the API server publishes a schema that kubectl can't read."""
    assert "activeDeadlineSeconds" in kubectl("explain", "job.spec")


def test_pod_security_refuses_what_restricted_forbids(kubectl: Kubectl, namespace: str) -> None:
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    with pytest.raises(AssertionError, match='violates PodSecurity "restricted:latest": allowPrivilegeEscalation'):
        kubectl("run", "-n", namespace, "p", "--image=shell", "--restart=Never")


def test_a_service_account_has_its_own_rights_alone(
    control_plane: controlplane.ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    account = dataclasses.replace(kubectl, kubeconfig=control_plane.service_account_kubeconfig(namespace, "default"))
    assert f"system:serviceaccount:{namespace}:default" in account("auth", "whoami")
    with pytest.raises(AssertionError, match="cannot list resource"):
        account("get", "pods", "-n", namespace)


def test_a_user_is_who_the_kubeconfig_says(control_plane: controlplane.ControlPlane, kubectl: Kubectl) -> None:
    jane = dataclasses.replace(kubectl, kubeconfig=control_plane.user_kubeconfig("jane", groups=("ml",)))
    who = json.loads(jane("auth", "whoami", "-o", "json"))["status"]["userInfo"]
    assert (who["username"], who["groups"]) == ("jane", ["ml", "system:authenticated"])


PROBE = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "probes.finetune.dev"},
    "spec": {
        "group": "finetune.dev",
        "names": {"kind": "Probe", "plural": "probes", "singular": "probe"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def test_the_audit_log_tells_who_wrote_what(kubectl: Kubectl, namespace: str, audit_log: AuditLog) -> None:
    """Objects of finetune.dev with their bodies, all others by name."""
    kubectl("apply", "-f", "-", body=PROBE)
    try:
        kubectl("wait", "--for=condition=Established", "crd/probes.finetune.dev", "--timeout=10s")
        mark = audit_log.mark()
        kubectl(
            "create",
            "-n",
            namespace,
            "-f",
            "-",
            body={"apiVersion": "finetune.dev/v1", "kind": "Probe", "metadata": {"name": "p"}, "spec": {"x": 1}},
        )
        kubectl("create", "configmap", "c", "-n", namespace, "--from-literal=secret=hidden")
        until(lambda: len(audit_log.writes(mark, user="admin", namespace=namespace)) == 2)
    finally:
        kubectl("delete", "crd", "probes.finetune.dev")
    probe, configmap = audit_log.writes(mark, user="admin", namespace=namespace)
    assert (probe["level"], probe["requestObject"]["spec"], probe["responseStatus"]["code"]) == (
        "RequestResponse",
        {"x": 1},
        201,
    )
    assert (configmap["level"], configmap["objectRef"]["name"]) == ("Metadata", "c")
    assert "requestObject" not in configmap


def test_a_component_that_dies_shows_the_end_of_its_log(
    binaries: kube.Binaries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    broken = tmp_path / "broken-etcd"
    broken.write_text("#!/bin/sh\necho the disk is on fire\nexit 3\n")
    broken.chmod(0o755)
    with (
        pytest.raises(controlplane.StartError, match=r"etcd ended with 3:\nthe disk is on fire"),
        controlplane.start(binaries=dataclasses.replace(binaries, etcd=broken)),
    ):
        pass
    assert list(tmp_path.iterdir()) == [broken]


WHOLE = """
import json, subprocess, sys, time
from tests.cluster import controlplane, node
from tests.cluster.podspec import Image
pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"restartPolicy": "Never", "containers": [
    {"name": "c", "image": "shell", "command": ["sleep", "600"]}]}}
with controlplane.start() as cluster, node.running(node.Settings(
        kubeconfig=cluster.node_kubeconfig, folder=cluster.folder / "node", images={"shell": Image()})):
    api = cluster.api()
    api.request("POST", "/api/v1/namespaces/default/pods", body=pod)
    while api.request("GET", "/api/v1/namespaces/default/pods/p")["status"].get("phase") != "Running":
        time.sleep(0.1)
    print("running", flush=True)
    time.sleep(600)
"""


def processes_with(text: str) -> dict[int, str]:
    """Commands of the processes that have the text in their arguments or their environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                arguments = (entry / "cmdline").read_bytes()
                if text.encode() in arguments + (entry / "environ").read_bytes():
                    found[int(entry.name)] = arguments.replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_whoever_started_it_is_killed(binaries: kube.Binaries, how: signal.Signals) -> None:
    """Control plane, node and a pod: no process and no file, after SIGKILL as after Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="kill.") as folder:
        environment = {**os.environ, "TMPDIR": folder, "KUBEBUILDER_ASSETS": str(binaries.etcd.parent)}
        child = subprocess.Popen(
            [sys.executable, "-c", WHOLE], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert child.stdout
        with child.stdout:
            assert child.stdout.readline() == "running\n"
            commands = " ".join(processes_with(folder).values())
            assert all(name in commands for name in ("etcd", "kube-apiserver", "kube-scheduler", "sleep 600"))
            child.send_signal(how)
            child.wait(timeout=30)
        until(lambda: not processes_with(folder))
        until(lambda: not list(Path(folder).iterdir()))
