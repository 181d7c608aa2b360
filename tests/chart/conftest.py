"""Fixtures of the chart's tests: both Helms, and a control plane of their own, in which nothing is installed yet."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from tests.chart import tools
from tests.chart.helm import Helm
from tests.cluster.conftest import (
    audit_log,
    binaries,
    control_plane,
    images,
    kubeconfig,
    kubectl,
    node_settings,
    running_node,
)

__all__ = ["audit_log", "binaries", "control_plane", "images", "kubeconfig", "kubectl", "node_settings", "running_node"]


def there(major: int) -> int:
    """That Helm, fetched; else the test is skipped, and fails where CI is set, since a skip would pass for success."""
    try:
        tools.helm(major)
    except tools.ToolUnavailable as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))
    return major


@pytest.fixture(scope="session", params=sorted(tools.HELM), ids=lambda major: f"helm{major}")
def helm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Each major version of Helm in turn, without a cluster."""
    return Helm(there(request.param), tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """The newest Helm alone, without a cluster."""
    return Helm(there(max(tools.HELM)), tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session", params=sorted(tools.HELM), ids=lambda major: f"helm{major}")
def live(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, kubeconfig: Path) -> Helm:
    """Each major version of Helm in turn, with every right on the test cluster."""
    return Helm(there(request.param), tmp_path_factory.mktemp("helm"), kubeconfig)


@pytest.fixture(scope="session")
def newest_free(newest: Helm, kubeconfig: Path) -> Helm:
    """The newest Helm, with every right on the test cluster, and nothing installed."""
    return dataclasses.replace(newest, kubeconfig=kubeconfig)
