"""The operator as a process of this machine, with the rights of examples/operator-rbac.yaml and no more.

    with operatorprocess.running(kubeconfig, folder=tmp_path, namespaces=["test"]) as operator:
        operator.kill()
        operator.start()

Ends what it started, however the block is left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from finetune_operator.settings import PREFIX
from tests import ports
from tests.cluster.controlplane import ControlPlane

ROOT = Path(__file__).resolve().parents[2]
RBAC = ROOT / "examples" / "operator-rbac.yaml"
NAMESPACE, ACCOUNT = "finetune-system", "finetune-operator"
USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"


@dataclasses.dataclass
class OperatorProcess:
    """One operator, which may be ended and started again."""

    environment: dict[str, str]
    log: Path
    health_port: int
    metrics_port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Once more, with the same settings."""
        assert self.process is None, "it runs"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "finetune_operator"], env=self.environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self, *, seconds: float = 10) -> int:
        """SIGTERM; the exit code."""
        return self._end(signal.SIGTERM, seconds=seconds)

    def pause(self) -> None:
        """SIGSTOP."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._running().send_signal(signal.SIGCONT)

    def ended(self, *, seconds: float) -> int:
        """The exit code, once it has ended by itself."""
        code = self._running().wait(timeout=seconds)
        self.process = None
        return code

    def _running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, "it doesn't run"
        return self.process

    def _end(self, number: signal.Signals, *, seconds: float = 10) -> int:
        process, self.process = self._running(), None
        process.send_signal(number)
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def metrics(self) -> str:
        """What it answers at /metrics."""
        return self._get(self.metrics_port, "/metrics")

    def healthy(self) -> bool:
        """Whether /healthz is green; one that doesn't answer yet isn't."""
        return self.says("/healthz") == "ok"

    def says(self, path: str) -> str:
        """What it answers at /healthz or /readyz: "ok", the reason why not, or nothing if there is no answer."""
        try:
            return self._get(self.health_port, path).strip()
        except urllib.error.HTTPError as error:
            return error.read().decode().strip()
        except (urllib.error.URLError, OSError):
            return ""

    def _get(self, port: int, path: str) -> str:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            text: str = response.read().decode()
            return text


@contextlib.contextmanager
def running(
    kubeconfig: Path, *, folder: Path, namespaces: Sequence[str] = (), log: str = "operator.log", **settings: object
) -> Iterator[OperatorProcess]:
    """An operator for these namespaces, or for all; the only one, unless `lease_seconds` says otherwise."""
    health, metrics = ports.free(), ports.free()
    chosen = {
        "bind_address": "127.0.0.1",
        "health_port": health,
        "metrics_port": metrics,
        "log_format": "text",
        "namespaces": ",".join(namespaces),
        "lease_seconds": 0,
        "lease_namespace": NAMESPACE,
        **settings,
    }
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
        **{f"{PREFIX}{name}".upper(): str(value) for name, value in chosen.items()},
        "KUBECONFIG": str(kubeconfig),
    }
    operator = OperatorProcess(environment, folder / log, health, metrics)
    operator.start()
    try:
        yield operator
        code = None if operator.process is None else operator.process.poll()
        assert code is None, f"it ended by itself, with {code}:\n{operator.log.read_text()[-2000:]}"
    finally:
        if operator.process is not None:
            operator.kill()


def install(control_plane: ControlPlane) -> None:
    """The CRDs, known to the API server, and the rights of examples/operator-rbac.yaml."""
    kubectl = [str(control_plane.binaries.kubectl), f"--kubeconfig={control_plane.kubeconfig}"]
    crds = ["-f", str(ROOT / "crds")]
    # a new CRD has no list of conditions to wait for until its names were accepted
    named, established = "--for=jsonpath={.status.acceptedNames.kind}", "--for=condition=Established"
    for command in (
        ["apply", "--server-side", *crds, "-f", str(RBAC)],
        ["wait", named, "--timeout=30s", *crds],
        ["wait", established, "--timeout=30s", *crds],
    ):
        subprocess.run([*kubectl, *command], check=True, stdout=subprocess.DEVNULL)


def account(control_plane: ControlPlane) -> Path:
    """A kubeconfig of the account in the example, which has to be applied before."""
    return control_plane.service_account_kubeconfig(NAMESPACE, ACCOUNT)
