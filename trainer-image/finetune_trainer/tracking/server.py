"""Requests to an MLflow server, each within a time and a size. A refusal becomes a sentence that says what to set.

Follows no redirect, connects to no metadata service, and sends the login to the configured host alone.
"""

import base64
import http.client
import ipaddress
import json
import os
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_api.credentials import MLFLOW_KEYS
from finetune_trainer.sources import web

TIMEOUT = 10.0
"""Seconds in which the other side has to say or take something."""
DEADLINE = 30.0
"""Seconds for a whole request that carries no file."""
ANSWER_LIMIT = 4 << 20
BLOCK = 1 << 20
HOST_REFUSED = "Invalid Host header"
"""What MLflow answers to a name that it isn't told to be."""


class Refused(Exception):
    """The server can't be reached, or doesn't do what it is asked for."""

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code
        """MLflow's own word for it, if it has one."""


class Server:
    """An MLflow server at an address."""

    def __init__(self, uri: str, variables: Mapping[str, str] = os.environ) -> None:
        """With the login that the environment has."""
        parts = urllib.parse.urlsplit(uri)
        self.uri = uri.rstrip("/")
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._base = parts.path.rstrip("/")
        self._headers = _headers(variables)
        self.moved = time.monotonic()
        """When it last took or answered something."""

    @property
    def _port(self) -> int:
        try:
            return urllib.parse.urlsplit(self.uri).port or (443 if self._secure else 80)
        except ValueError as error:
            raise Refused(f"{self.uri} names a port that there can't be") from error

    def get(self, verb: str, **query: str) -> dict[str, Any]:
        """Ask. Raises Refused."""
        return self._ask("GET", f"{verb}?{urllib.parse.urlencode(query)}", None)

    def post(self, verb: str, **content: Any) -> dict[str, Any]:
        """Tell. Raises Refused."""
        return self._ask("POST", verb, json.dumps(content).encode())

    def put_file(self, place: str, file: Path) -> None:
        """Store a file where MLflow keeps files. Raises Refused; OSError where it can't be read."""
        target = f"{self._base}/api/2.0/mlflow-artifacts/artifacts/{urllib.parse.quote(place)}"
        with file.open("rb") as content, self._connection() as connection:
            connection.putrequest("PUT", target)
            length = os.fstat(content.fileno()).st_size
            for name, value in {**self._headers, "Content-Length": str(length)}.items():
                connection.putheader(name, value)
            connection.endheaders()
            while block := content.read(BLOCK):
                connection.send(block)
                self.moved = time.monotonic()
            self._answer(connection)

    def _ask(self, method: str, verb: str, body: bytes | None) -> dict[str, Any]:
        with self._connection() as connection, _deadline(connection):
            connection.request(method, f"{self._base}/api/2.0/mlflow/{verb}", body, self._headers)
            return self._answer(connection)

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        kind = _Secure if self._secure else _Plain
        connection = kind(self._host, self._port, timeout=TIMEOUT)
        try:
            connection.connect()
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise Refused(f"{self.uri} can't be reached: {_said(error)}") from error
        try:
            yield connection
        except (http.client.HTTPException, OSError, ValueError) as error:
            raise Refused(f"{self.uri} doesn't answer as it should: {_said(error)}") from error
        finally:
            connection.close()

    def _answer(self, connection: http.client.HTTPConnection) -> dict[str, Any]:
        response = connection.getresponse()
        content = response.read(ANSWER_LIMIT + 1)
        if response.status != http.HTTPStatus.OK:
            raise self._refusal(response, content)
        if len(content) > ANSWER_LIMIT:
            raise Refused(f"{self.uri} answers more than {ANSWER_LIMIT >> 20} MiB")
        self.moved = time.monotonic()
        found = json.loads(content or b"{}")
        if not isinstance(found, dict):
            raise Refused(f"{self.uri} answers {str(found)[:80]!r}: that is no MLflow server")
        return found

    def _refusal(self, response: http.client.HTTPResponse, content: bytes) -> Refused:
        status, text = response.status, content[:2000].decode(errors="replace").strip()
        if status == http.HTTPStatus.FORBIDDEN and HOST_REFUSED in text:
            host = f"{self._host}:{self._port}"
            return Refused(
                f"{self.uri} refuses requests for the host {host} (403 {HOST_REFUSED}): start that MLflow server with"
                f" --allowed-hosts {host}, or MLFLOW_SERVER_ALLOWED_HOSTS={host} in its environment"
            )
        if status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
            return Refused(
                f"{self.uri} refuses the login ({status}): set tracking.mlflow.credentials to a Secret with"
                f" {MLFLOW_KEYS[0]} and {MLFLOW_KEYS[1]}, or with {MLFLOW_KEYS[2]}, of one who may write there"
            )
        if 300 <= status < 400:
            place = response.headers.get("Location", "").partition("?")[0][:200]
            return Refused(f"{self.uri} redirects to {place}: set tracking.mlflow.trackingUri to where the server is")
        code, message = _meaning(text)
        return Refused(f"{self.uri} answers {status}: {message[:300] or response.reason}", code=code)


class _Plain(http.client.HTTPConnection):
    def connect(self) -> None:
        """To an address that was checked."""
        self.sock = _reach(self.host, self.port, TIMEOUT)


class _Secure(http.client.HTTPSConnection):
    def connect(self) -> None:
        """To an address that was checked, for the name's certificate."""
        plain = _reach(self.host, self.port, TIMEOUT)
        self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


def _reach(host: str, port: int, timeout: float) -> socket.socket:
    addresses = [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in addresses:
        if _is_forbidden(address):
            raise OSError(f"{host} leads to {address}, an address of the network's own services")
    trouble: OSError | None = None
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout)
        except OSError as error:
            trouble = error
    raise trouble or OSError(f"{host} has no address")


def _is_forbidden(address: str) -> bool:
    """As for data, but this machine itself may be the server's: on a laptop it is."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return web.is_inner(found) and not found.is_loopback


@contextmanager
def _deadline(connection: http.client.HTTPConnection) -> Iterator[None]:
    """Hang up in the end, however slowly the other side goes on talking."""
    timer = threading.Timer(DEADLINE, _hang_up, (connection.sock,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # it is closed already
        return


def _headers(variables: Mapping[str, str]) -> dict[str, str]:
    user, password, token = (variables.get(key, "").strip() for key in MLFLOW_KEYS)
    headers = {"User-Agent": "finetune-operator", "Content-Type": "application/json"}
    if user:
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        return headers | {"Authorization": f"Basic {pair}"}
    return headers | ({"Authorization": f"Bearer {token}"} if token else {})


def _meaning(text: str) -> tuple[str, str]:
    """MLflow's word and sentence, where the answer has them."""
    try:
        found = json.loads(text)
        return str(found["error_code"]), str(found.get("message", ""))
    except (ValueError, KeyError, TypeError):
        return "", "" if text.startswith("<") else text


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"nothing within {TIMEOUT:.0f} s"
    if isinstance(error, ValueError):  # its text may have a login in it
        return "an answer, a name or a login that makes no sense"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
