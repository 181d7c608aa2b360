"""Pods and Jobs as tests of the node write them, and one test's namespace to put them in and watch them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

Manifest = Mapping[str, Any]

CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "c"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "3Gi"}}},
}


def pod_spec(script: str, *, container: Manifest | None = None, **spec: object) -> Manifest:
    found = {"name": "main", "image": "shell", "command": ["sh", "-c", script], **(container or {})}
    return {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2, "containers": [found], **spec}


def pod(
    name: str, script: str, *, container: Manifest | None = None, metadata: Manifest | None = None, **spec: object
) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **(metadata or {})},
        "spec": pod_spec(script, container=container, **spec),
    }


def job(name: str, script: str, **spec: object) -> Manifest:
    template = {"spec": pod_spec(script)}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": template, **spec},
    }


class Here:
    """One test's namespace: apply, look, wait."""

    def __init__(self, kubectl: Callable[..., str], namespace: str) -> None:
        self._kubectl = kubectl
        self.namespace = namespace

    def __call__(self, *arguments: str, body: object = None) -> str:
        return self._kubectl("-n", self.namespace, *arguments, body=body)

    def apply(self, *manifests: Manifest) -> None:
        self("create", "-f", "-", body={"apiVersion": "v1", "kind": "List", "items": manifests})

    def wait(self, what: str, condition: str, *, seconds: int = 30) -> None:
        self("wait", f"--for={condition}", what, f"--timeout={seconds}s")

    def phase(self, name: str, phase: str) -> Manifest:
        """The pod once it is in that phase."""
        self.wait(f"pod/{name}", f"jsonpath={{.status.phase}}={phase}")
        return self.get("pod", name)

    def ended(self, name: str, phase: str = "Succeeded") -> Manifest:
        """How the pod's one container ended."""
        terminated: Manifest = self.phase(name, phase)["status"]["containerStatuses"][0]["state"]["terminated"]
        return terminated

    def get(self, kind: str, name: str) -> Manifest:
        found: Manifest = json.loads(self("get", kind, name, "-o", "json"))
        return found

    def events(self, name: str) -> str:
        return self(
            "get", "events", f"--field-selector=involvedObject.name={name}", "-o", "custom-columns=R:.reason,M:.message"
        )

    def log(self, name: str, *arguments: str) -> str:
        return self("logs", name, *arguments)


def until(holds: Callable[[], object], *, seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
