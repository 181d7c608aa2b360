"""The fixtures of the tests on real Kubernetes."""

from tests.cluster.conftest import (
    audit_log,
    binaries,
    control_plane,
    crd,
    images,
    kubeconfig,
    kubectl,
    node_settings,
    operator_account,
    running_node,
    shared,
)

__all__ = [
    "audit_log",
    "binaries",
    "control_plane",
    "crd",
    "images",
    "kubeconfig",
    "kubectl",
    "node_settings",
    "operator_account",
    "running_node",
    "shared",
]
