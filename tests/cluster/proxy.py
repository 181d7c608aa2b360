"""Many small requests to the API server over one connection, through `kubectl proxy`, which knows every kubeconfig.

Not for watching, and not for anything but tests: whoever reaches the proxy's port has the kubeconfig's rights.
"""

import contextlib
import http.client
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

MERGE_PATCH = "application/merge-patch+json"


@dataclass(frozen=True)
class Answer:
    """What the API server says to one request."""

    code: int
    body: Mapping[str, Any]

    @property
    def is_success(self) -> bool:
        """Whether the request was carried out."""
        return self.code < 300

    @property
    def message(self) -> str:
        """Why it wasn't."""
        return str(self.body.get("message", ""))


@dataclass(frozen=True)
class Proxy:
    """The API server, over a connection that stays."""

    connection: http.client.HTTPConnection

    def request(self, method: str, path: str, body: object = None, **query: str) -> Answer:
        """Ask once. A PATCH is a merge patch."""
        headers = {"Content-Type": MERGE_PATCH if method == "PATCH" else "application/json"}
        content = None if body is None else json.dumps(body)
        self.connection.request(method, f"{path}?{urlencode(query)}", content, headers)
        response = self.connection.getresponse()
        return Answer(response.status, json.loads(response.read()))

    def tried(self, method: str, path: str, body: object) -> Answer:
        """Ask what would come of it, with unknown fields refused."""
        return self.request(method, path, body, dryRun="All", fieldValidation="Strict")


@contextlib.contextmanager
def start(kubectl: Path, *, kubeconfig: Path) -> Iterator[Proxy]:
    """A proxy, for as long as the block lasts."""
    command = [str(kubectl), f"--kubeconfig={kubeconfig}", "proxy", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            said = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+)", said)
            assert found, f"kubectl proxy said {said!r}"
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)) as connection:
                yield Proxy(connection)
        finally:
            process.terminate()
