"""A namespace in which runs with the stub trainer are played: what a test submits, and what it looks at."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_api.types import API_VERSION, KIND, PLURAL
from finetune_operator.names import RUN_LABEL
from tests import builders
from tests.cluster import stub_trainer
from tests.cluster.podspec import Image
from tests.cluster.rest import Api, ApiError

Object = Mapping[str, Any]

STUB_IMAGE = "stub-trainer"
STUB = Image((sys.executable, "-I", "-S", str(Path(stub_trainer.__file__))))
"""Isolated and without site-packages: it starts in a blink."""
QUICK: Mapping[str, Any] = {
    "trainer_image": STUB_IMAGE,
    "poll_seconds": 0.2,
    "training_poll_seconds": 0.3,
    "progress_write_seconds": 1,
    "queued_seconds": 4,
    "resync_seconds": 5,
    "lease_seconds": 0,
}
"""Settings of an operator for trainings that last a second."""
PATIENCE = 60.0
IN_PLACE = ("TRAIN_UPDATED", "CHECKPOINT_SAVED")


@dataclasses.dataclass(frozen=True)
class Stage:
    """One namespace."""

    api: Api
    namespace: str

    def submit(self, name: str, *, script: Mapping[str, object] | None = None, **spec: Any) -> Object:
        """Create a run that plays the script; `spec` overrides its fields."""
        self.keep(f"{name}-script", {"script.json": json.dumps(script or {})})
        return self.api.request("POST", self.runs, body=manifest(name, **spec))

    def change(self, name: str, **spec: Any) -> Object:
        """Change fields of a run's spec, as `kubectl patch --type=merge` does."""
        content = "application/merge-patch+json"
        return self.api.request("PATCH", f"{self.runs}/{name}", body={"spec": spec}, content_type=content)

    def keep(self, name: str, data: Mapping[str, str]) -> None:
        """Create a ConfigMap."""
        body = {"metadata": {"name": name}, "data": data}
        self.api.request("POST", f"/api/v1/namespaces/{self.namespace}/configmaps", body=body)

    def run(self, name: str) -> Object:
        """A run as it is now."""
        return self.api.request("GET", f"{self.runs}/{name}")

    def status(self, name: str) -> Object:
        """Its status, empty before the first."""
        found: Object = self.run(name).get("status", {})
        return found

    def events(self, name: str) -> Sequence[str]:
        """The types in its history."""
        return [event["type"] for event in self.status(name).get("events", ())]

    def delete(self, name: str) -> None:
        """As `kubectl delete` does: children go in the background."""
        self.api.request("DELETE", f"{self.runs}/{name}", propagationPolicy="Background")

    def list(self, kind: str, *, of: str | None = None) -> Sequence[Object]:
        """All pods, persistentvolumeclaims, events or jobs, or those of one run."""
        prefix = "/apis/batch/v1" if kind == "jobs" else "/api/v1"
        selector = {} if of is None else {"labelSelector": f"{RUN_LABEL}={of}"}
        items: Sequence[Object] = self.api.request("GET", f"{prefix}/namespaces/{self.namespace}/{kind}", **selector)[
            "items"
        ]
        return items

    def attempts(self, name: str) -> Sequence[str]:
        """Names of a run's Jobs."""
        return sorted(job["metadata"]["name"] for job in self.list("jobs", of=name))

    def told(self, name: str) -> Sequence[str]:
        """Reasons of the Kubernetes Events about a run, in the order of its history."""
        mine = [event for event in self.list("events") if event["involvedObject"]["name"] == name]
        mine = [event for event in mine if event["involvedObject"]["kind"] == KIND]
        return [event["reason"] for event in sorted(mine, key=lambda e: int(e["metadata"]["name"].rpartition(".")[2]))]

    def told_to_the_end(self, name: str) -> Sequence[str]:
        """The same, once the last is there: they follow the status."""
        last = ("Completed", "Failed")
        found: Sequence[str] = until(lambda: self.told(name), lambda told: bool(set(told) & set(last)), what="events")
        return found

    def until(self, name: str, holds: Callable[[Object], bool], *, seconds: float = PATIENCE) -> Object:
        """The status once it is as wanted."""
        found: Object = until(lambda: self.status(name), holds, what=f"status of {name}", seconds=seconds)
        return found

    def reaches(self, name: str, *phases: str, seconds: float = PATIENCE) -> Object:
        """The status once the run is in one of these phases."""
        return self.until(name, lambda status: status.get("phase") in phases, seconds=seconds)

    def finished(self, name: str, *, seconds: float = PATIENCE) -> Object:
        """The status at the run's end."""
        return self.until(name, lambda status: condition(status, "Finished").get("status") == "True", seconds=seconds)

    def gone(self, path: str) -> bool:
        """Whether there is no such object any more."""
        try:
            self.api.request("GET", path)
        except ApiError as error:
            return error.code == 404
        return False

    @property
    def runs(self) -> str:
        """Path of the namespace's runs."""
        return f"/apis/{API_VERSION}/namespaces/{self.namespace}/{PLURAL}"


def manifest(name: str, **spec: Any) -> Object:
    """A run without devices; the stub trainer takes nothing of it but the script."""
    small: dict[str, Any] = {
        "model": {"uri": "hf://example/model"},
        "dataset": {"train": {"uri": f"configmap://{name}-script/script.json"}},
        "resources": {"deviceResource": "", "cpu": "100m", "memory": "100Mi"},
    }
    found = builders.run(name, **builders.merged(small, spec))
    del found["metadata"]["namespace"]
    return found


def condition(status: Object, kind: str) -> Object:
    """The condition of a type, empty if there is none."""
    return next((found for found in status.get("conditions", ()) if found["type"] == kind), {})


def until(look: Callable[[], Any], holds: Callable[[Any], bool], *, what: str, seconds: float = PATIENCE) -> Any:
    """What was seen once it was as wanted; an AssertionError with the last that was seen if that takes too long."""
    deadline = time.monotonic() + seconds
    while not holds(seen := look()):
        assert time.monotonic() < deadline, (
            f"{what} isn't as wanted after {seconds} s: {json.dumps(seen, indent=1, default=str)}"
        )
        time.sleep(0.1)
    return seen


@dataclasses.dataclass(frozen=True)
class Writes:
    """What the operator wrote for one run, by kind."""

    created: Sequence[str]
    """Resources of the children that were created."""
    states: int
    """Status writes that changed the phase or a condition."""
    milestones: int
    """Status writes that entered something in the history, and changed neither."""
    progress: int
    """Status writes of progress alone."""
    events: int
    """Kubernetes Events."""
    others: Sequence[str]
    """Anything else."""

    @classmethod
    def of(cls, written: Sequence[Object], name: str) -> Writes:
        """Picked from the records of the API server's audit log."""
        records = [record for record in written if _names(record, name)]
        resources = [_resource(record) for record in records]
        patched = [r["requestObject"]["status"] for r in records if _resource(r) == "finetuneruns/status"]
        kinds = [_kind_of_write(before, after) for before, after in zip([{}, *patched], patched, strict=False)]
        children = ("jobs", "persistentvolumeclaims")
        return cls(
            created=[resource for resource in resources if resource in children],
            states=kinds.count("state"),
            milestones=kinds.count("milestone"),
            progress=kinds.count("progress"),
            events=resources.count("events"),
            others=[r for r in resources if r not in (*children, "events", "finetuneruns/status")],
        )


def _resource(record: Object) -> str:
    reference = record["objectRef"]
    parts = (reference["resource"], reference.get("subresource"))
    return "/".join(part for part in parts if part)


def _names(record: Object, name: str) -> bool:
    """Whether the object is the run or is named after it."""
    found = record["objectRef"].get("name", "")
    return bool(found == name or found.startswith((f"{name}-", f"{name}.")))


def _kind_of_write(before: Object, after: Object) -> str:
    if (before.get("phase"), before.get("conditions")) != (after.get("phase"), after.get("conditions")):
        return "state"
    return "progress" if _history(before) == _history(after) else "milestone"


def _history(status: Object) -> Sequence[object]:
    return [event for event in status.get("events", ()) if event["type"] not in IN_PLACE]
