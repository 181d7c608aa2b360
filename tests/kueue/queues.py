"""Queues of Kueue for a test: a flavor, a ClusterQueue of its own, and a LocalQueue `team-a` that leads to it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from tests.cluster.rest import Api
from tests.cluster.stage import until

ROOT = "/apis/kueue.x-k8s.io/v1beta2"
NAME = "team-a"


@dataclasses.dataclass(frozen=True)
class Queue:
    """One ClusterQueue with its LocalQueue."""

    api: Api
    namespace: str
    name: str

    @property
    def local(self) -> str:
        """Path of the LocalQueue."""
        return f"{ROOT}/namespaces/{self.namespace}/localqueues/{NAME}"

    def open(self) -> None:
        """Make the LocalQueue."""
        body = {"metadata": {"name": NAME}, "spec": {"clusterQueue": self.name}}
        self.api.request("POST", self.local.removesuffix(f"/{NAME}"), body=_whole("LocalQueue", body))

    def close(self) -> None:
        """Remove it."""
        self.api.request("DELETE", self.local)
        until(lambda: self.api.ok(self.local), lambda there: not there, what="the LocalQueue being gone")

    def change(self, spec: Mapping[str, Any]) -> None:
        """Change the ClusterQueue."""
        content = "application/merge-patch+json"
        path = f"{ROOT}/clusterqueues/{self.name}"
        self.api.request("PATCH", path, body={"spec": spec}, content_type=content)

    def rank(self, word: str, value: int) -> str:
        """Make a WorkloadPriorityClass; its name."""
        body = {"metadata": {"name": f"{word}-{self.namespace}"}, "value": value}
        self.api.request("POST", f"{ROOT}/workloadpriorityclasses", body=_whole("WorkloadPriorityClass", body))
        return f"{word}-{self.namespace}"

    def workloads(self) -> list[Mapping[str, Any]]:
        """All of the namespace."""
        found: list[Mapping[str, Any]] = self.api.request("GET", f"{ROOT}/namespaces/{self.namespace}/workloads")[
            "items"
        ]
        return found


@contextlib.contextmanager
def queue(api: Api, namespace: str, *, cpu: str, preemption: str = "LowerPriority") -> Iterator[Queue]:
    """One with so much CPU, and as much memory as anybody wants."""
    name = f"queue-{namespace}"
    quotas = [{"name": "cpu", "nominalQuota": cpu}, {"name": "memory", "nominalQuota": "1Ti"}]
    spec = {
        "namespaceSelector": {},
        "preemption": {"withinClusterQueue": preemption},
        "resourceGroups": [{"coveredResources": ["cpu", "memory"], "flavors": [{"name": name, "resources": quotas}]}],
    }
    api.request("POST", f"{ROOT}/resourceflavors", body=_whole("ResourceFlavor", {"metadata": {"name": name}}))
    api.request(
        "POST", f"{ROOT}/clusterqueues", body=_whole("ClusterQueue", {"metadata": {"name": name}, "spec": spec})
    )
    found = Queue(api, namespace, name)
    for value, word in ((0, "low"), (100, "high")):
        found.rank(word, value)
    found.open()
    yield found


def _whole(kind: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": kind, **body}
