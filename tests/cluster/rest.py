"""The least that a Kubernetes client needs, for the standard library alone: one request, one answer, JSON both ways.

The control plane uses it while it starts, and tests where kubectl would be slow. Not for watching.
"""

from __future__ import annotations

import dataclasses
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ApiError(Exception):
    """The API server's refusal: HTTP code and message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclasses.dataclass(frozen=True)
class Api:
    """One API server and one user's token."""

    server: str
    token: str
    authority: Path

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Api:
        """From a kubeconfig that `controlplane.py` has written: JSON, one user, a token."""
        content = json.loads(path.read_text())
        cluster = content["clusters"][0]["cluster"]
        return cls(cluster["server"], content["users"][0]["user"]["token"], Path(cluster["certificate-authority"]))

    def request(
        self, method: str, path: str, *, body: object = None, content_type: str = "application/json", **query: str
    ) -> Mapping[str, Any]:
        """The answer's object; raises ApiError for anything but success."""
        answer: Mapping[str, Any] = json.loads(self.raw(method, path, body=body, content_type=content_type, **query))
        return answer

    def raw(
        self, method: str, path: str, *, body: object = None, content_type: str = "application/json", **query: str
    ) -> bytes:
        """The answer as it came."""
        url = self.server + path + ("?" + urllib.parse.urlencode(query) if query else "")
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content_type}
        request = urllib.request.Request(url, data=data, method=method, headers=headers)
        context = ssl.create_default_context(cafile=str(self.authority))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(request, timeout=30) as response:
                content: bytes = response.read()
                return content
        except urllib.error.HTTPError as error:
            raise ApiError(error.code, _message(error.read())) from error

    def ok(self, path: str) -> bool:
        """Whether GET succeeds; an API server that doesn't listen yet, or refuses, is a no."""
        try:
            self.raw("GET", path)
        except (ApiError, urllib.error.URLError, ConnectionError):
            return False
        return True


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:500]
