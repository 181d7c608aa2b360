"""The fixtures of the tests on real Kubernetes, and the S3 store of the trainer's tests."""

from tests.cluster.conftest import (
    audit_log,
    binaries,
    control_plane,
    crd,
    images,
    kubeconfig,
    kubectl,
    namespace,
    node_settings,
    operator,
    operator_account,
    running_node,
    stage_of_the_test,
)
from tests.unit.trainer.conftest import store

__all__ = [
    "audit_log",
    "binaries",
    "control_plane",
    "crd",
    "images",
    "kubeconfig",
    "kubectl",
    "namespace",
    "node_settings",
    "operator",
    "operator_account",
    "running_node",
    "stage_of_the_test",
    "store",
]
