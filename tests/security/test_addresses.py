"""S10: nothing inside is connected to, however its address is written, whatever a name or a redirect leads to.

Connections are counted where the interpreter opens them. The operator itself follows no URI of a run at all: in the
cluster it opens connections to the API server and to the pods of its own Jobs, and to nobody else.
"""

from __future__ import annotations

import ast
import ipaddress
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.errors import ConfigInvalid, NotFound
from finetune_trainer.sources import web

TARGETS = ("127.0.0.1", "169.254.169.254", "100.100.100.200", "0.0.0.0", "169.254.170.2")
OPERATOR = Path(__file__).resolve().parents[2] / "operator" / "finetune_operator"


def spellings(address: str) -> Iterator[str]:
    """An IPv4 address as resolvers take it."""
    a, b, c, d = map(int, address.split("."))
    number = int(ipaddress.ip_address(address))
    yield from (address, str(number), hex(number), f"0{number:o}", f"{a}.{(b << 16) + (c << 8) + d}")
    yield from (
        f"{a}.{b}.{(c << 8) + d}",
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"00{a:o}.{b}.{c}.{d}",
    )
    six = f"{number >> 16:x}:{number & 0xFFFF:x}"
    yield from (
        f"[::ffff:{six}]",
        f"[::{six}]",
        f"[64:ff9b::{six}]",
        f"[2002:{six}::]",
        f"[::ffff:{address}]",
        f"[0:0:0:0:0:ffff:{six}]",
    )


CORPUS = [
    *(spelling for address in TARGETS for spelling in spellings(address)),
    *(
        "[::1]",
        "[::]",
        "[fe80::1]",
        "[fe80::1%25lo]",
        "[fd00:ec2::254]",
        "[ff02::1]",
        "localhost",
        "LOCALHOST",
        "localhost.",
    ),
    *("224.0.0.1", "127.0.0.1.", "127.255.255.254", "127.1", "0", "[0:0:0:0:0:0:0:1]"),
]


class Connections:
    """Addresses that this process has connected to while it listened."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.listens = False
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.listens and event == "socket.connect":
            self.seen.append(arguments[1])


HEARD = Connections()


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> Iterator[Connections]:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    HEARD.seen.clear()
    HEARD.listens = True
    yield HEARD
    HEARD.listens = False


def test_connections_are_heard(connections: Connections) -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
    assert connections.seen


def resolve_nothing(host: str, port: int, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
    """As the system does for addresses; names of this machine are its own, others aren't known."""
    if host.lower().rstrip(".") == "localhost":
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    return REAL(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)


REAL = socket.getaddrinfo


@pytest.mark.parametrize("proxied", [False, True], ids=["directly", "through a proxy"])
def test_no_spelling_of_an_inner_address_is_connected_to(
    tmp_path: Path, connections: Connections, monkeypatch: pytest.MonkeyPatch, proxied: bool
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolve_nothing)
    if proxied:
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
    passed = []
    for host in CORPUS:
        try:
            web.fetch(f"https://{host}/latest/meta-data", tmp_path)
        except (ConfigInvalid, NotFound):
            continue
        except OSError as error:
            passed.append((host, str(error)))
    assert passed == []
    assert connections.seen == []


@pytest.mark.parametrize(
    "where", ["http://host/x", "file:///etc/passwd", "ftp://host/x", "https://user:key@host/x", "https:///x"]
)
def test_other_schemes_and_logins_are_not_followed(tmp_path: Path, connections: Connections, where: str) -> None:
    with pytest.raises(ConfigInvalid):
        web.fetch(where, tmp_path)
    assert connections.seen == []


def test_a_name_that_changes_its_address_is_looked_up_once(
    tmp_path: Path, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the first answer is harmless, the next isn't."""
    answers = iter(["127.77.0.1", "169.254.169.254", "169.254.169.254", "169.254.169.254"])
    asked = []

    def rebinding(host: str, port: int, *more: Any, **named: Any) -> list[tuple[Any, ...]]:
        if host != "rebind.example":
            return REAL(host, port, *more, **named)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    harmless = ipaddress.ip_address("127.77.0.1")
    with pytest.raises((ConfigInvalid, OSError)):
        web.fetch("https://rebind.example:1/x", tmp_path, refuse=lambda at: at != harmless and web.is_inner(at))
    assert {address[0] for address in connections.seen} == {"127.77.0.1"}
    assert len(asked) == 2, "looked up again for another try, and refused then"


def test_one_inner_address_among_others_is_enough(
    tmp_path: Path, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 443)) for each in ("93.184.215.14", "169.254.169.254")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    with pytest.raises(ConfigInvalid, match="never fetched from there"):
        web.fetch("https://both.example/x", tmp_path)
    assert connections.seen == []


CLIENTS = {
    "poller": "pods, at their address",
    "connection": "the API server",
    "local": "trainers that it started on this machine itself: it runs without a cluster, never in the operator's pod",
}
CALLS = (
    "ClientSession",
    "ApiClient",
    "urlopen",
    "HTTPConnection",
    "HTTPSConnection",
    "create_connection",
    "open_connection",
)


def test_only_these_modules_of_the_operator_open_connections() -> None:
    found: dict[str, set[str]] = {}
    for path in OPERATOR.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in CALLS:
                    found.setdefault(path.stem, set()).add(name)
    assert found.keys() == CLIENTS.keys(), found
