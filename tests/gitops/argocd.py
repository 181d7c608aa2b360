"""Argo CD beside the test control plane: its application-controller, repo-server and server, a Redis, and a repository.

All four come from one program, which goes by the name in ARGOCD_BINARY_NAME; whoever asks the server is let in.
It must never touch a control plane that the tests didn't start, nor the user's own Argo CD or git settings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests import ports
from tests.cluster.controlplane import ControlPlane
from tests.cluster.rest import Api
from tests.cluster.stage import Object, until
from tests.gitops import process

NAMESPACE = "argocd"
APPLICATIONS = f"/apis/argoproj.io/v1alpha1/namespaces/{NAMESPACE}/applications"
MERGE = "application/merge-patch+json"
REFRESH = "argocd.argoproj.io/refresh"
PATIENCE = 180.0
PART = {"app.kubernetes.io/part-of": "argocd"}
GIT = {f"GIT_{who}_{what}": "team" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@dataclasses.dataclass(frozen=True)
class ArgoCD:
    """One installation."""

    api: Api
    program: Path
    folder: Path
    server: str

    def push(self, repository: str, files: Mapping[str, str]) -> str:
        """A new commit on `main` with these files and no others; the repository's URL."""
        folder = self.folder / "repositories" / repository
        if not folder.exists():
            self._git("init", "--quiet", "--initial-branch=main", str(folder))
        else:
            self._git("-C", str(folder), "rm", "--quiet", "-r", ".")
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        self._git("-C", str(folder), "add", ".")
        self._git("-C", str(folder), "commit", "--quiet", "--message", "runs")
        return f"file://{folder}"

    def application(self, name: str, spec: Mapping[str, Any]) -> None:
        """Make one, which takes all that it has made with it when it is deleted."""
        metadata = {"name": name, "finalizers": ["resources-finalizer.argocd.argoproj.io"]}
        body = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Application", "metadata": metadata, "spec": spec}
        self.api.request("POST", APPLICATIONS, body=body)

    def remove(self, name: str) -> None:
        """Delete one."""
        path = f"{APPLICATIONS}/{name}"
        self.api.request("DELETE", path)
        until(lambda: self.api.ok(path), lambda there: not there, what=f"{name} being gone")

    def change(self, name: str, spec: Mapping[str, Any]) -> None:
        """Change one."""
        self.api.request("PATCH", f"{APPLICATIONS}/{name}", body={"spec": spec}, content_type=MERGE)

    def drifts(self, name: str) -> int:
        """How often it was found to differ from Git once it was as there."""
        events = self.api.request("GET", f"/api/v1/namespaces/{NAMESPACE}/events")["items"]
        mine = [event for event in events if event["involvedObject"]["name"] == name]
        assert [event for event in mine if event["message"].endswith("OutOfSync -> Synced")], "it tells of changes"
        return sum(event["message"].endswith("Synced -> OutOfSync") for event in mine)

    def status(self, name: str) -> Object:
        """An application's status as it is now."""
        found: Object = self.api.request("GET", f"{APPLICATIONS}/{name}").get("status", {})
        return found

    def until(self, name: str, holds: Callable[[Object], bool]) -> Object:
        """The status once it is as wanted."""
        found: Object = until(lambda: self.status(name), holds, what=f"status of {name}", seconds=PATIENCE)
        return found

    def is_health(self, name: str, health: str) -> Object:
        """The status once its health is as wanted."""
        return self.until(name, lambda status: status.get("health", {}).get("status") == health)

    def refreshed(self, name: str) -> Object:
        """The status once git and cluster were compared anew."""
        path = f"{APPLICATIONS}/{name}"
        body = {"metadata": {"annotations": {REFRESH: "hard"}}}
        self.api.request("PATCH", path, body=body, content_type=MERGE)
        found: Object = until(
            lambda: self.api.request("GET", path),
            lambda app: REFRESH not in app["metadata"].get("annotations", {}),
            what=f"a comparison of {name}",
        )["status"]
        return found

    def health(self, name: str, run: str) -> tuple[str, str]:
        """Status and message of one run, as the server shows them."""
        tree = self._ask(f"/api/v1/applications/{name}/resource-tree")
        (node,) = [node for node in tree["nodes"] if node["kind"] == "FineTuneRun" and node["name"] == run]
        return node["health"]["status"], node["health"].get("message", "")

    def act(self, name: str, action: str, run: str) -> None:
        """One of our actions, by the command line."""
        self("app", "actions", "run", name, action, "--kind=FineTuneRun", f"--resource-name={run}")

    def __call__(self, *arguments: str) -> str:
        """What the command line prints."""
        command = [str(self.program), *arguments, f"--server={self.server}", "--plaintext"]
        return _output(command, environment={"HOME": str(self.folder)})

    def _ask(self, path: str) -> Mapping[str, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.server}{path}", timeout=30) as response:
            answer: Mapping[str, Any] = json.loads(response.read())
            return answer

    def _git(self, *arguments: str) -> None:
        _output(["git", *arguments], environment={**GIT, "HOME": str(self.folder), "GIT_CONFIG_NOSYSTEM": "1"})


def settings(program: Path, command: str, run: Mapping[str, Any], *arguments: str, folder: Path, config: Path) -> str:
    """What `argocd admin settings resource-overrides` makes of a run; needs no cluster."""
    file = folder / "run.json"
    file.write_text(json.dumps(run))
    words = ["admin", "settings", "resource-overrides", command, str(file), *arguments]
    return _output([str(program), *words, f"--argocd-cm-path={config}"], environment={"HOME": str(folder)})


def _output(command: Sequence[str], *, environment: Mapping[str, str]) -> str:
    found = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, f"{' '.join(command)}: {found.stderr}"
    return found.stdout


def kinds(built: Path) -> Sequence[Mapping[str, Any]]:
    """The CustomResourceDefinitions of Argo CD."""
    return [yaml.safe_load(path.read_text()) for path in sorted((built / "crds").glob("*-crd.yaml"))]


@contextlib.contextmanager
def running(built: Path, control_plane: ControlPlane, *, folder: Path) -> Iterator[ArgoCD]:
    """Its parts, with the rights of an administrator, as it has them; its namespace and kinds have to be there."""
    api = control_plane.api()
    _configure(api)
    redis, repository, server = (f"127.0.0.1:{ports.free()}" for _ in range(3))
    own = {
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "PATH": f"{folder / 'bin'}:{built}:{os.environ['PATH']}",
        "KUBECONFIG": str(control_plane.kubeconfig),
        "ARGOCD_FAKE_IN_CLUSTER": "true",
        "ARGOCD_GPG_ENABLED": "false",
        "ARGOCD_TLS_DATA_PATH": str(folder / "tls"),
        "ARGOCD_SSH_DATA_PATH": str(folder / "ssh"),
        "ARGOCD_PLUGINSOCKFILEPATH": str(folder / "plugins"),
    }
    for name in ("tls", "ssh", "plugins", "bin"):
        (folder / name).mkdir()
    clients = [f"--namespace={NAMESPACE}", f"--repo-server={repository}", "--repo-server-plaintext"]
    parts = {
        "argocd-repo-server": [*_address(repository), "--disable-tls", "--metrics-port", str(ports.free())],
        "argocd-application-controller": [*clients, "--metrics-port", str(ports.free())],
        "argocd-server": [
            *clients,
            *_address(server),
            "--disable-auth",
            "--insecure",
            "--metrics-port",
            str(ports.free()),
        ],
    }
    with contextlib.ExitStack() as stack:
        stack.enter_context(process.running([str(built / "redis"), redis], log=folder / "redis.log", environment=own))
        for name, arguments in parts.items():
            command = [str(built / "argocd"), *arguments, f"--redis={redis}"]
            named = {**own, "ARGOCD_BINARY_NAME": name}
            stack.enter_context(process.running(command, log=folder / f"{name}.log", environment=named))
        yield ArgoCD(api, built / "argocd", folder, server)


def _address(address: str) -> Sequence[str]:
    host, port = address.split(":")
    return ["--address", host, "--port", port]


def _configure(api: Api) -> None:
    """What Argo CD's own manifests bring: its settings, empty, its secret, and a project for everything."""
    core = f"/api/v1/namespaces/{NAMESPACE}"
    named = {"name": "argocd-cm", "labels": PART}
    api.request("POST", f"{core}/configmaps", body={"metadata": named})
    secret = {"metadata": {"name": "argocd-secret", "labels": PART}, "stringData": {"server.secretkey": "of the tests"}}
    api.request("POST", f"{core}/secrets", body=secret)
    everything = {
        "sourceRepos": ["*"],
        "destinations": [{"server": "*", "namespace": "*"}],
        "clusterResourceWhitelist": [{"group": "*", "kind": "*"}],
    }
    project = {"apiVersion": "argoproj.io/v1alpha1", "kind": "AppProject", "metadata": {"name": "default"}}
    path = APPLICATIONS.replace("applications", "appprojects")
    api.request("POST", path, body={**project, "spec": everything})
