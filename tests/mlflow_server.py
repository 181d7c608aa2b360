"""A real MLflow server, pinned in requirements/mlflow.txt, in an environment of its own in the cache; and a door before
it that can be shut, hang, or answer as a broken server does.
"""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tests import cached, ports

PINS = Path(__file__).resolve().parent.parent / "requirements" / "mlflow.txt"
START_SECONDS = 180.0

Answer = Literal["pass", "lose", "hang", "500", "401", "redirect"]
"""What becomes of a request; `lose`: it is done, and nobody hears of it."""
_CANNED: dict[str, bytes] = {
    "500": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 5\r\nConnection: close\r\n\r\noops\n",
    "401": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest?token=x\r\nContent-Length: 0\r\n\r\n",
}


class Server:
    """A server with a database and files of its own. Takes requests for 127.0.0.1, and refuses other names for it."""

    def __init__(self, folder: Path) -> None:
        self.port = ports.free()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._log = folder / "server.log"
        settings = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": "",
        }
        options = {
            "backend-store-uri": f"sqlite:///{folder}/mlflow.db",
            "artifacts-destination": str(folder / "artifacts"),
            "host": "127.0.0.1",
            "port": str(self.port),
            "workers": "1",
            "allowed-hosts": "127.0.0.1:*",
        }
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [self.python, "-m", "mlflow", "server", *(f"--{key}={value}" for key, value in options.items())],
                env={**os.environ, **settings},
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._until_ready()

    @property
    def python(self) -> str:
        """The interpreter that has MLflow."""
        return str(cached.environment("mlflow", PINS) / "python")

    def stop(self) -> None:
        """End it, and the workers that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 15)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()

    def post(self, verb: str, **content: Any) -> dict[str, Any]:
        """Ask it as a client of its own would."""
        body, headers = json.dumps(content).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.uri}/api/2.0/mlflow/{verb}", body, headers)
        with urllib.request.urlopen(request, timeout=30) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def get(self, verb: str) -> dict[str, Any]:
        """Likewise."""
        with urllib.request.urlopen(f"{self.uri}/api/2.0/mlflow/{verb}", timeout=30) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def runs(self, uid: str) -> list[dict[str, Any]]:
        """All MLflow runs that say they are of a run."""
        return self.search(f"tags.`finetune.run-uid` = '{uid}'")

    def search(self, wanted: str) -> list[dict[str, Any]]:
        """All MLflow runs that a search finds."""
        there = self.post("experiments/search", max_results=100)["experiments"]
        ids = [experiment["experiment_id"] for experiment in there]
        runs: list[dict[str, Any]] = self.post("runs/search", experiment_ids=ids, filter=wanted).get("runs", [])
        return runs

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Step and value of all that was stored of a metric."""
        found = self.get(f"metrics/get-history?run_id={run_id}&metric_key={metric}&max_results=5000")
        return [(int(each.get("step", 0)), each["value"]) for each in found.get("metrics", [])]

    def script(self, code: str, *arguments: str, cwd: Path) -> str:
        """What a program that uses MLflow's own library prints."""
        variables = {**os.environ, "MLFLOW_TRACKING_URI": self.uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
        done = subprocess.run(
            [self.python, "-c", code, *arguments], env=variables, cwd=cwd, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    def _until_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.2)
        self.stop()
        raise TimeoutError(f"no MLflow server within {START_SECONDS} s: {self._log.read_text()[-3000:]}")


class Door:
    """A port before the server's."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.port = ports.free()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.answers: Answer = "pass"
        self._listening: socket.socket | None = None
        self._open: list[socket.socket] = []

    def open(self, answers: Answer = "pass") -> None:
        """Let connections in, and do this with them."""
        self.answers = answers
        if self._listening is None:
            self._listening = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def shut(self) -> None:
        """Refuse connections, and end those that there are."""
        if self._listening is not None:
            with contextlib.suppress(OSError):
                self._listening.shutdown(socket.SHUT_RDWR)
            self._listening.close()
            self._listening = None
        while self._open:
            _hang_up(self._open.pop())

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                inside, _ = listening.accept()
            except OSError:
                return
            self._open.append(inside)
            threading.Thread(target=self._serve, args=(inside, self.answers), daemon=True).start()

    def _serve(self, inside: socket.socket, answers: Answer) -> None:
        if answers == "hang":
            return
        if answers in _CANNED:
            with contextlib.suppress(OSError):
                inside.recv(65536)
                inside.sendall(_CANNED[answers])
            _hang_up(inside)
            return
        outside = socket.create_connection(("127.0.0.1", self.server.port))
        self._open.append(outside)
        threading.Thread(target=_pump, args=(inside, outside), daemon=True).start()
        if answers == "lose":
            outside.recv(65536)
            _hang_up(inside)
        _pump(outside, inside)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while block := source.recv(65536):
            target.sendall(block)
    _hang_up(source)
    _hang_up(target)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextlib.contextmanager
def door(server: Server) -> Iterator[Door]:
    """A door that is shut at first."""
    found = Door(server)
    try:
        yield found
    finally:
        found.shut()
