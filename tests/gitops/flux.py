"""Flux's kustomize-controller beside the test control plane, and what it takes from Git.

Nobody is there who fetches from Git: a GitRepository's status is written here, as the source-controller would, and its
artifact is served from a folder.
It must never touch a control plane that the tests didn't start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import io
import tarfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests import ports
from tests.cluster.controlplane import ControlPlane
from tests.cluster.rest import Api
from tests.cluster.stage import Object, condition, until
from tests.gitops import process

NAMESPACE = "flux-system"
KUSTOMIZATIONS = f"/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/{NAMESPACE}/kustomizations"
REPOSITORIES = f"/apis/source.toolkit.fluxcd.io/v1/namespaces/{NAMESPACE}/gitrepositories"
CHARTS = REPOSITORIES.replace("gitrepositories", "helmcharts")
MERGE = "application/merge-patch+json"
PATIENCE = 180.0
"""Seconds; Flux looks at the health of what it has applied every five."""
MOMENT = "2026-01-01T00:00:00Z"
ASKED = "reconcile.fluxcd.io/requestedAt"
SETTINGS = ("--requeue-dependency=1s", "--interval-jitter-percentage=0")
GATES = {"kustomize-controller": ["--feature-gates=CancelHealthCheckOnNewRevision=true"]}
"""As the example's comment says."""


def is_true(ready: Object) -> bool:
    """Whether a condition holds."""
    return ready.get("status") == "True"


def is_false(ready: Object) -> bool:
    """Whether it doesn't."""
    return ready.get("status") == "False"


@dataclasses.dataclass(frozen=True)
class Flux:
    """Its controllers, and the folder from which artifacts are served."""

    api: Api
    served: Path
    url: str

    def push(self, repository: str, files: Mapping[str, str]) -> str:
        """A new revision of a repository, which is told: these files and no others."""
        self._make(REPOSITORIES, repository, {"url": "https://git.example.com/ml/runs.git", "interval": "1h"})
        digest = self._archive(files)
        revision = f"main@sha1:{digest[:40]}"
        self._fetched(f"{REPOSITORIES}/{repository}", digest=digest, revision=revision)
        return revision

    def package(self, name: str, files: Mapping[str, str]) -> None:
        """The chart that a HelmRelease asks for by a HelmChart of this name, once it does."""
        path = f"{CHARTS}/{name}"
        until(lambda: self.api.ok(path), bool, what=f"HelmChart {name}")
        self._fetched(path, digest=self._archive(files), revision="0.0.0")

    def _archive(self, files: Mapping[str, str]) -> str:
        """Put an archive of these files where it is served; its digest."""
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w:gz") as tar:
            for name, text in files.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(text.encode()), 0o644
                tar.addfile(entry, io.BytesIO(text.encode()))
        digest = hashlib.sha256(content.getvalue()).hexdigest()
        (self.served / f"{digest}.tar.gz").write_bytes(content.getvalue())
        return digest

    def _fetched(self, path: str, *, digest: str, revision: str) -> None:
        """Write the status of a source."""
        file = f"{digest}.tar.gz"
        artifact = {
            "url": f"{self.url}/{file}",
            "path": file,
            "digest": f"sha256:{digest}",
            "revision": revision,
            "lastUpdateTime": MOMENT,
        }
        ready = {"type": "Ready", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": MOMENT}
        status = {"observedGeneration": 1, "artifact": artifact, "conditions": [ready]}
        self.api.request("PATCH", f"{path}/status", body={"status": status}, content_type=MERGE)

    def kustomization(self, name: str, spec: Mapping[str, Any]) -> None:
        """Make one."""
        self._make(KUSTOMIZATIONS, name, spec)

    def change(self, name: str, spec: Mapping[str, Any]) -> None:
        """Change one."""
        self.api.request("PATCH", f"{KUSTOMIZATIONS}/{name}", body={"spec": spec}, content_type=MERGE)

    def ready(self, name: str) -> Object:
        """Its condition Ready as it is now."""
        return condition(self.api.request("GET", f"{KUSTOMIZATIONS}/{name}")["status"], "Ready")

    def until(self, name: str, holds: Callable[[Object], bool]) -> Object:
        """Its condition Ready once it is as wanted."""
        found: Object = until(lambda: self.ready(name), holds, what=f"Ready of {name}", seconds=PATIENCE)
        return found

    def ask(self, name: str) -> str:
        """Have it looked at again, as `flux reconcile` does; the token of the question."""
        token = uuid.uuid4().hex
        body = {"metadata": {"annotations": {ASKED: token}}}
        self.api.request("PATCH", f"{KUSTOMIZATIONS}/{name}", body=body, content_type=MERGE)
        return token

    def once_more(self, name: str) -> Object:
        """Its condition Ready once it was looked at again."""
        token = self.ask(name)

        def answered(found: Object) -> bool:
            return found.get("lastHandledReconcileAt") == token and condition(found, "Ready")["status"] != "Unknown"

        path = f"{KUSTOMIZATIONS}/{name}"
        status = until(
            lambda: self.api.request("GET", path)["status"], answered, what=f"a second look at {name}", seconds=PATIENCE
        )
        return condition(status, "Ready")

    def looks_at_health(self, name: str, revision: str) -> None:
        """Once it has applied a revision, has pruned, and looks at the health of what is there."""
        path = f"{KUSTOMIZATIONS}/{name}"

        def looks(found: Object) -> bool:
            return revision in condition(found, "Healthy").get("message", "")

        until(lambda: self.api.request("GET", path)["status"], looks, what=f"{revision} of {name}")

    def _make(self, path: str, name: str, spec: Mapping[str, Any]) -> None:
        if not self.api.ok(f"{path}/{name}"):
            group, version = path.split("/")[2:4]
            kind = {KUSTOMIZATIONS: "Kustomization", REPOSITORIES: "GitRepository"}[path]
            body = {"apiVersion": f"{group}/{version}", "kind": kind, "metadata": {"name": name}, "spec": spec}
            self.api.request("POST", path, body=body)


@contextlib.contextmanager
def running(*programs: Path, control_plane: ControlPlane, folder: Path) -> Iterator[Flux]:
    """Controllers with the rights of an administrator, as Flux has them, for as long as the block lasts."""
    own = {"KUBECONFIG": str(control_plane.kubeconfig), "RUNTIME_NAMESPACE": NAMESPACE, "TMPDIR": str(folder)}
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(_served(folder / "artifacts"))
        for program in programs:
            health = f"127.0.0.1:{ports.free()}"
            command = [str(program), "--metrics-addr=0", f"--health-addr={health}", "--events-addr=", *SETTINGS]
            command += GATES.get(program.name, ())
            log = folder / f"{program.name}.log"
            stack.enter_context(process.running(command, log=log, environment=own))
        yield Flux(control_plane.api(), folder / "artifacts", url)


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Nothing of it on standard error."""


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[str]:
    """The folder at a URL."""
    folder.mkdir()
    handler = functools.partial(_Files, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def kinds(*folders: Path) -> Sequence[Mapping[str, Any]]:
    """The CustomResourceDefinitions that lie there."""
    return [yaml.safe_load(path.read_text()) for folder in folders for path in sorted(folder.glob("*.yaml"))]
