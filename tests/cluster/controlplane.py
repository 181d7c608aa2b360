"""A real Kubernetes control plane of one's own: etcd, API server, controller manager and scheduler on this machine.

    with controlplane.start() as cluster:
        subprocess.run([cluster.binaries.kubectl, "--kubeconfig", cluster.kubeconfig, "get", "nodes"])

Everything listens on free ports of 127.0.0.1 and keeps its files in one temporary folder. `supervisor.py` ends the
processes and removes the folder when the `with` block ends, and also when this process is killed. There is no node:
`node.py` is one.
It must never touch a cluster that it didn't start, nor read the user's kubeconfig.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests import ports
from tests.cluster import kube, podnetwork, rest, supervisor
from tests.cluster.components import USERS, Layout, Ports, api_server, controller_manager, etcd, scheduler, write_inputs

START_SECONDS = 60


class StartError(Exception):
    """A component didn't come up; the message ends with the last lines of its log."""


@dataclasses.dataclass(frozen=True)
class ControlPlane:
    """A running control plane."""

    binaries: kube.Binaries
    layout: Layout
    server: str

    @property
    def folder(self) -> Path:
        """The temporary folder; whatever a test puts there is removed with it."""
        return self.layout.folder

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig with every right."""
        return self.layout.kubeconfig("admin")

    @property
    def node_kubeconfig(self) -> Path:
        """Every right too, under the name of test-node, whose heartbeats aren't audited."""
        return self.layout.kubeconfig("node")

    @property
    def audit_log(self) -> Path:
        """One JSON object a line for each request; bodies too for finetune.dev."""
        return self.layout.audit_log

    @property
    def serving_certificate(self) -> tuple[Path, Path]:
        """Certificate and key that the API server made for 127.0.0.1; the node's log endpoint uses them too."""
        return self.layout.certificate, self.layout.certificate.with_suffix(".key")

    def api(self) -> rest.Api:
        """The API, with every right."""
        return rest.Api.from_kubeconfig(self.kubeconfig)

    def service_account_kubeconfig(self, namespace: str, name: str, *, seconds: int = 3600) -> Path:
        """A kubeconfig with a fresh token of a service account."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": seconds},
        }
        token = self.api().request("POST", path, body=request)["status"]["token"]
        return self._kubeconfig_for(f"{namespace}.{name}", user={"token": token})

    def user_kubeconfig(self, user: str, *, groups: tuple[str, ...] = ()) -> Path:
        """A kubeconfig that acts as a user by impersonation; kubectl knows that, Python's client doesn't."""
        admin = json.loads(self.kubeconfig.read_text())["users"][0]["user"]
        return self._kubeconfig_for(f"user.{user}", user={**admin, "as": user, "as-groups": list(groups)})

    def _kubeconfig_for(self, name: str, *, user: Mapping[str, object]) -> Path:
        return self.layout.write_kubeconfig(name.replace(":", "-").replace("/", "-"), server=self.server, user=user)


@contextlib.contextmanager
def start(*, binaries: kube.Binaries | None = None, controllers: bool = True) -> Iterator[ControlPlane]:
    """A control plane that is ready, for as long as the block lasts; without controllers, an API server alone."""
    found = binaries or kube.binaries()
    layout = Layout(Path(tempfile.mkdtemp(prefix="finetune-kube.")))
    with _supervised(layout.folder) as run:
        cluster = _bring_up(found, layout=layout, run=run)
        if controllers:
            _control(cluster, run=run)
        yield cluster


Run = Callable[[str, list[str]], None]


@contextlib.contextmanager
def _supervised(folder: Path) -> Iterator[Run]:
    """A function that starts a process by name and command; the processes and the folder go when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", supervisor.__file__, str(folder)], stdin=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin
    orders = process.stdin

    def run(name: str, argv: list[str]) -> None:
        orders.write(json.dumps({"name": name, "argv": argv}).encode() + b"\n")
        orders.flush()

    try:
        yield run
    finally:
        with contextlib.suppress(BrokenPipeError):
            orders.close()
        process.wait()


def _bring_up(binaries: kube.Binaries, *, layout: Layout, run: Run) -> ControlPlane:
    chosen = Ports(*(ports.free() for _ in range(3)))
    server = f"https://127.0.0.1:{chosen.api_server}"
    tokens = {user: secrets.token_hex(16) for user in USERS}
    write_inputs(layout, server=server, tokens=tokens)
    run("etcd", etcd(binaries, layout=layout, ports=chosen))
    run("pod-proxy", [sys.executable, "-I", "-S", podnetwork.__file__, str(layout.egress_socket)])
    run("kube-apiserver", api_server(binaries, layout=layout, ports=chosen))
    cluster = ControlPlane(binaries=binaries, layout=layout, server=server)
    _wait(
        lambda: layout.certificate.exists() and cluster.api().ok("/readyz"), what="kube-apiserver", folder=layout.folder
    )
    return cluster


def _control(cluster: ControlPlane, *, run: Run) -> None:
    run("kube-controller-manager", controller_manager(cluster.binaries, layout=cluster.layout))
    run("kube-scheduler", scheduler(cluster.binaries, layout=cluster.layout))
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    _wait(lambda: cluster.api().ok(account), what="kube-controller-manager", folder=cluster.folder)


def _wait(ready: Callable[[], bool], *, what: str, folder: Path) -> None:
    """Until it is ready; a component that has ended, or time that has run out, is a StartError."""
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        for ended in folder.glob("*.exit"):
            raise StartError(
                f"{ended.stem} ended with {ended.read_text().strip()}:\n{_tail(ended.with_suffix('.log'))}"
            )
        if time.monotonic() > deadline:
            raise StartError(f"{what} wasn't ready in {START_SECONDS} s:\n{_tail(folder / f'{what}.log')}")
        time.sleep(0.1)


def _tail(log: Path, *, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
