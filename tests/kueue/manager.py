"""Kueue's manager as a process beside the test control plane: installed as its own manifests say, less what it serves.

Of its webhooks those for Jobs and for Kueue's own kinds are registered, by URL, since the manager isn't a Service. Its
certificate is the API server's own. It must never touch a control plane that the tests didn't start.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests import ports
from tests.cluster.controlplane import ControlPlane
from tests.cluster.rest import Api, ApiError
from tests.cluster.stage import until
from tests.kueue.build import Kueue
from tests.kueue.queues import ROOT

SECONDS = 90
WEBHOOKS = ("batch-v1-job", "kueue-x-k8s-io")
SEALED = 'mount -t tmpfs none /etc && mkdir -p /etc/kueue/metrics/certs && cp "$0"/tls.* /etc/kueue/metrics/certs'
"""In a mount namespace of its own: Kueue reads its metrics' certificate from one place in /etc only."""


@dataclasses.dataclass
class Manager:
    """One installation."""

    kueue: Kueue
    folder: Path
    kubeconfig: Path
    webhook_port: int
    health_port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.folder / "kueue.log"

    def configure(self, **gates: bool) -> None:
        """Choose its feature gates, for when it is started next."""
        (self.folder / "config.json").write_text(json.dumps(_configuration(self, gates)))

    def start(self) -> None:
        """Start it; it is ready when Jobs can be created."""
        command = ["unshare", "--mount", "--map-root-user", "sh", "-c", f'{SEALED} && exec "$@"', str(self.folder)]
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        kueue = [str(self.kueue.manager), f"--config={self.folder / 'config.json'}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([*command, *kueue], env=environment, stdout=log, stderr=log)

    def stop(self) -> None:
        """As Kubernetes does."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None


@contextlib.contextmanager
def installed(kueue: Kueue, control_plane: ControlPlane, *, folder: Path) -> Iterator[Manager]:
    """Kueue, for as long as the block lasts; afterwards nothing of it is left, its kinds neither."""
    manager = Manager(kueue, folder, control_plane.kubeconfig, ports.free(), ports.free())
    certificate, key = control_plane.serving_certificate
    (folder / "tls.crt").write_bytes(certificate.read_bytes())
    (folder / "tls.key").write_bytes(key.read_bytes())
    manager.configure()
    api = control_plane.api()
    made: list[str] = []
    try:
        crds = [yaml.safe_load(path.read_text()) for path in sorted(kueue.crds.glob("*.yaml"))]
        made.extend(_create(api, crd) for crd in crds)
        _until_known(api, {crd["spec"]["names"]["plural"] for crd in crds})
        manager.start()
        webhooks = yaml.safe_load_all((kueue.webhooks / "manifests.yaml").read_text())
        made.extend(_create(api, _by_url(configuration, manager)) for configuration in webhooks)
        until_ready(api, manager)
        yield manager
    finally:
        for path in reversed(made):  # the webhooks first, or nothing of what they watch could be deleted
            api.request("DELETE", path)
        manager.stop()


def _configuration(manager: Manager, gates: Mapping[str, bool]) -> Mapping[str, Any]:
    return {
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": "kueue-system",
        "health": {"healthProbeBindAddress": f"127.0.0.1:{manager.health_port}"},
        "metrics": {"bindAddress": "0"},
        "webhook": {"port": manager.webhook_port, "host": "127.0.0.1", "certDir": str(manager.folder)},
        "leaderElection": {"leaderElect": False},
        "internalCertManagement": {"enable": False},
        "clientConnection": {"qps": 300, "burst": 500},
        "integrations": {"frameworks": ["batch/job"]},
        "featureGates": {"VisibilityOnDemand": False, **gates},
    }


def _by_url(configuration: dict[str, Any], manager: Manager) -> dict[str, Any]:
    """The same webhooks, for what is tested here alone, at the manager's address."""
    authority = (manager.folder / "tls.crt").read_bytes()
    kept = [hook for hook in configuration["webhooks"] if _wanted(hook)]
    for hook in kept:
        path = hook["clientConfig"]["service"]["path"]
        url = f"https://127.0.0.1:{manager.webhook_port}{path}"
        hook["clientConfig"] = {"url": url, "caBundle": base64.b64encode(authority).decode()}
    name = f"kueue-{configuration['metadata']['name']}"
    return {**configuration, "metadata": {"name": name}, "webhooks": kept}


def _wanted(hook: Mapping[str, Any]) -> bool:
    return any(part in hook["clientConfig"]["service"]["path"] for part in WEBHOOKS)


def _create(api: Api, body: Mapping[str, Any]) -> str:
    """Create a cluster-scoped object; its path."""
    plural = {
        "CustomResourceDefinition": "customresourcedefinitions",
        "MutatingWebhookConfiguration": "mutatingwebhookconfigurations",
        "ValidatingWebhookConfiguration": "validatingwebhookconfigurations",
    }[body["kind"]]
    path = f"/apis/{body['apiVersion']}/{plural}"
    api.request("POST", path, body=body)
    return f"{path}/{body['metadata']['name']}"


def _until_known(api: Api, plurals: set[str]) -> None:
    """Until the API server serves these kinds and says so: Kueue asks once."""

    def served(plural: str) -> bool:
        return api.ok(f"{ROOT}/{plural}")

    def found() -> set[str]:
        listed = {kind["name"] for kind in api.request("GET", ROOT)["resources"]} if api.ok(ROOT) else set()
        return {plural for plural in plurals & listed if served(plural)}

    until(found, lambda known: known == plurals, what="Kueue's kinds", seconds=SECONDS)


def until_ready(api: Api, manager: Manager) -> None:
    """Until its webhook answers: a flavor can be created, in a dry run."""
    deadline = time.monotonic() + SECONDS
    flavor = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "ResourceFlavor", "metadata": {"name": "ready"}}
    while True:
        try:
            api.request("POST", f"{ROOT}/resourceflavors", body=flavor, dryRun="All")
        except ApiError as error:
            ended = manager.process is not None and manager.process.poll() is not None
            if ended or time.monotonic() > deadline:
                said = manager.log.read_text(errors="replace")[-4000:]
                raise AssertionError(f"Kueue isn't ready: {error}\n{said}") from error
            time.sleep(0.5)
        else:
            return
