"""What each component of the control plane is started with, and the files it wants: pure but for `write_inputs`.

Everybody authenticates with a token from a file, and the API server makes its own serving certificate, so nothing here
needs a certificate authority. Settings differ from a production cluster's in speed alone: no leader election, no
request limits of the clients, short back-offs of the scheduler, and an etcd that doesn't wait for the disk.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cluster import kube

# User and groups behind each token.
USERS: Mapping[str, tuple[str, str]] = {
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "node": ("test-node", "system:masters"),
}

READS = ["get", "list", "watch"]
HEARTBEATS = [{"group": "coordination.k8s.io", "resources": ["leases"]}, {"group": "", "resources": ["nodes/status"]}]

# What the components read and renew by themselves, all the time, is left out; every change is there.
AUDIT_POLICY: Mapping[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "omitManagedFields": True,
    "rules": [
        {"level": "None", "nonResourceURLs": ["/healthz*", "/livez*", "/readyz*", "/version", "/openapi/*"]},
        {"level": "None", "users": ["system:apiserver"]},
        {"level": "None", "users": ["system:kube-controller-manager", "system:kube-scheduler"], "verbs": READS},
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"], "verbs": READS},
        {"level": "None", "users": [USERS["node"][0]], "verbs": READS},
        {"level": "None", "users": [USERS["node"][0]], "resources": HEARTBEATS},
        {"level": "RequestResponse", "resources": [{"group": "finetune.dev"}]},
        {"level": "Request", "resources": [{"group": "kueue.x-k8s.io"}]},
        {"level": "Metadata"},
    ],
}

SCHEDULER: Mapping[str, Any] = {
    "apiVersion": "kubescheduler.config.k8s.io/v1",
    "kind": "KubeSchedulerConfiguration",
    "leaderElection": {"leaderElect": False},
    "podInitialBackoffSeconds": 1,
    "podMaxBackoffSeconds": 2,
}


@dataclasses.dataclass(frozen=True)
class Ports:
    """The ports of one control plane on 127.0.0.1."""

    etcd: int
    etcd_peer: int
    api_server: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which file lies where in the temporary folder."""

    folder: Path

    @property
    def certificate(self) -> Path:
        """Made by the API server, its own authority."""
        return self.folder / "certificates" / "apiserver.crt"

    @property
    def audit_log(self) -> Path:
        """One JSON object a line."""
        return self.folder / "audit.log"

    @property
    def egress_socket(self) -> Path:
        """Where `podnetwork.py` listens for the API server."""
        return self.folder / "egress.sock"

    def file(self, name: str) -> Path:
        """What a component reads at its start."""
        return self.folder / name

    def kubeconfig(self, name: str) -> Path:
        """A user's kubeconfig."""
        return self.folder / f"{name}.kubeconfig"

    def write_kubeconfig(self, name: str, *, server: str, user: Mapping[str, object]) -> Path:
        """A kubeconfig, in JSON, which is YAML too; its one context is called after the user."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "test", "cluster": {"server": server, "certificate-authority": str(self.certificate)}}
            ],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": name, "context": {"cluster": "test", "user": name, "namespace": "default"}}],
            "current-context": name,
        }
        path = self.kubeconfig(name)
        path.write_text(json.dumps(content, indent=1))
        path.chmod(0o600)
        return path


def write_inputs(layout: Layout, *, server: str, tokens: Mapping[str, str]) -> None:
    """Every file that a component reads at its start."""
    for name, token in tokens.items():
        layout.write_kubeconfig(name, server=server, user={"token": token})
    lines = [f'{token},{USERS[name][0]},{name},"{USERS[name][1]}"\n' for name, token in tokens.items()]
    layout.file("tokens.csv").write_text("".join(lines))
    layout.file("audit.json").write_text(json.dumps(AUDIT_POLICY))
    scheduler_config = {
        **SCHEDULER,
        "clientConnection": {"kubeconfig": str(layout.kubeconfig("scheduler")), "qps": 500, "burst": 1000},
    }
    layout.file("scheduler.json").write_text(json.dumps(scheduler_config))
    layout.file("egress.json").write_text(json.dumps(_egress(layout)))
    layout.file("service-account.key").write_text(_elliptic_curve_key())


def _egress(layout: Layout) -> Mapping[str, Any]:
    """Connections to nodes, pods and webhooks go through our proxy; it knows the addresses of pods."""
    transport = {"uds": {"udsName": str(layout.egress_socket)}}
    connection = {"proxyProtocol": "HTTPConnect", "transport": transport}
    return {
        "apiVersion": "apiserver.k8s.io/v1beta1",
        "kind": "EgressSelectorConfiguration",
        "egressSelections": [{"name": "cluster", "connection": connection}],
    }


def _elliptic_curve_key() -> str:
    """A private key of the curve P-256 in SEC 1 form: any number below the order; Go derives the rest."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    number = (secrets.randbelow(order - 1) + 1).to_bytes(32, "big")
    curve = bytes.fromhex("a00a06082a8648ce3d030107")
    der = bytes.fromhex("3031020101 0420".replace(" ", "")) + number + curve
    return f"-----BEGIN EC PRIVATE KEY-----\n{base64.encodebytes(der).decode()}-----END EC PRIVATE KEY-----\n"


def etcd(binaries: kube.Binaries, *, layout: Layout, ports: Ports) -> list[str]:
    """The store; it doesn't survive a crash of the machine, and needn't."""
    client, peer = f"http://127.0.0.1:{ports.etcd}", f"http://127.0.0.1:{ports.etcd_peer}"
    return [
        str(binaries.etcd),
        f"--data-dir={layout.folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def api_server(binaries: kube.Binaries, *, layout: Layout, ports: Ports) -> list[str]:
    """Admission is Kubernetes' default, Pod Security by namespace label included."""
    key = layout.file("service-account.key")
    return [
        str(binaries.kube_apiserver),
        f"--etcd-servers=http://127.0.0.1:{ports.etcd}",
        "--bind-address=127.0.0.1",
        f"--secure-port={ports.api_server}",
        f"--cert-dir={layout.certificate.parent}",
        f"--token-auth-file={layout.file('tokens.csv')}",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--kubelet-preferred-address-types=InternalIP",
        f"--egress-selector-config-file={layout.file('egress.json')}",
        f"--audit-policy-file={layout.file('audit.json')}",
        f"--audit-log-path={layout.audit_log}",
        "--audit-log-maxsize=100000",  # MB: at 100 it would begin a new file, and a reader of the first see a part only
        "--allow-privileged=true",
        "--profiling=false",
    ]


def controller_manager(binaries: kube.Binaries, *, layout: Layout) -> list[str]:
    """The default controllers, each with an account of its own, so that the audit log tells them apart."""
    return [
        str(binaries.kube_controller_manager),
        f"--kubeconfig={layout.kubeconfig('controller-manager')}",
        f"--service-account-private-key-file={layout.file('service-account.key')}",
        f"--root-ca-file={layout.certificate}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--secure-port=0",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        "--node-monitor-period=1s",
        "--pvclaimbinder-sync-period=1s",
        "--profiling=false",
    ]


def scheduler(binaries: kube.Binaries, *, layout: Layout) -> list[str]:
    """The default profile."""
    return [str(binaries.kube_scheduler), f"--config={layout.file('scheduler.json')}", "--secure-port=0"]
