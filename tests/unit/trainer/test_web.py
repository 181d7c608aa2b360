"""Data behind https://: real downloads from a local server, and what is never connected to."""

import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from finetune_trainer.errors import ConfigInvalid, NoPermission, NotFound, SourceUnreachable, StorageFailed
from finetune_trainer.sources import web

CONTENT = bytes(n % 251 for n in range(3_000_000))
ALLOWED = ipaddress.ip_address("127.0.0.1")

INNER = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "224.0.0.1",
    "::1",
    "::",
    "fe80::1",
    "fd00:ec2::254",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "2002:7f00:1::",
]


@pytest.mark.parametrize("address", INNER)
def test_inner_addresses_are_refused(tmp_path: Path, address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(ConfigInvalid) as caught:
        web.fetch(f"https://{host}/train.jsonl", tmp_path)
    assert "an address of this machine or of the network's own services: data is never fetched from there" in str(
        caught.value
    )


@pytest.mark.parametrize("address", ["10.0.0.1", "192.168.1.1", "172.16.0.1", "93.184.215.14", "fd00::1", "2606::1"])
def test_other_addresses_are_not(address: str) -> None:
    assert not web.is_inner(ipaddress.ip_address(address))


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1"])
def test_a_name_for_an_inner_address_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigInvalid, match="never fetched from there"):
        web.fetch(f"https://{host}/train.jsonl", tmp_path)


def test_a_proxy_is_never_asked_for_an_inner_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ConfigInvalid, match="never fetched from there"):
        web.fetch("https://169.254.169.254/latest/meta-data", tmp_path)


def test_a_file_is_downloaded_once(site: "Site", tmp_path: Path) -> None:
    found = _fetch(site, "/files/train.jsonl?token=x", tmp_path)
    assert found == tmp_path / "train.jsonl"
    assert found.read_bytes() == CONTENT
    assert _fetch(site, "/files/train.jsonl?token=x", tmp_path).read_bytes() == CONTENT
    assert site.handler.answers == [200, 304]


def test_another_version_is_downloaded_anew(site: "Site", tmp_path: Path) -> None:
    _fetch(site, "/train.jsonl", tmp_path)
    site.handler.etag, site.handler.content = '"two"', b"other"
    assert _fetch(site, "/train.jsonl", tmp_path).read_bytes() == b"other"


def test_a_download_that_breaks_off_goes_on_where_it_was(site: "Site", tmp_path: Path) -> None:
    site.handler.cut_at = 1_000_000
    assert _fetch(site, "/train.jsonl", tmp_path).read_bytes() == CONTENT
    assert site.handler.answers == [200, 206, 206]
    assert site.handler.starts == [0, 1_000_000, 2_000_000]


def test_a_file_that_changes_in_between_is_never_mixed(site: "Site", tmp_path: Path) -> None:
    site.handler.cut_at = 1_000_000
    site.handler.changes = True
    site.handler.etag = '"one"'
    found = _fetch(site, "/train.jsonl", tmp_path)
    assert found.read_bytes() == CONTENT[::-1]


def test_a_server_that_never_gives_more_is_given_up(site: "Site", tmp_path: Path) -> None:
    site.handler.cut_at = 0
    with pytest.raises(SourceUnreachable, match=r"train.jsonl can't be had: the connection was closed too early"):
        _fetch(site, "/train.jsonl", tmp_path)
    assert len(site.handler.answers) == web.ATTEMPTS_WITHOUT_PROGRESS


def test_a_server_without_versions_is_asked_for_all_of_it(site: "Site", tmp_path: Path) -> None:
    site.handler.etag = ""
    assert _fetch(site, "/train.jsonl", tmp_path).read_bytes() == CONTENT
    assert _fetch(site, "/train.jsonl", tmp_path).read_bytes() == CONTENT
    assert site.handler.answers == [200, 200]


def test_a_redirect_to_https_is_followed(site: "Site", tmp_path: Path) -> None:
    site.handler.redirects = {"/a": "/b", "/b": f"https://127.0.0.1:{site.port}/train.jsonl"}
    assert _fetch(site, "/a", tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("http://127.0.0.1/x", "redirects to http://127.0.0.1/x: only https:// without a login is followed"),
        ("file:///etc/passwd", "redirects to file:///etc/passwd: only https://"),
        ("https://user:secret@127.0.0.1/x", "only https:// without a login is followed"),
        ("https://127.0.0.2/x", "leads to 127.0.0.2, an address of this machine"),
        ("https://169.254.169.254/latest/", "leads to 169.254.169.254, an address of this machine"),
        ("//[::1]/x", "leads to ::1, an address of this machine"),
    ],
)
def test_a_redirect_elsewhere_is_refused(site: "Site", tmp_path: Path, target: str, said: str) -> None:
    site.handler.redirects = {"/a": target}
    with pytest.raises(ConfigInvalid) as caught:
        _fetch(site, "/a", tmp_path)
    assert said in str(caught.value)


def test_redirects_without_end_are_given_up(site: "Site", tmp_path: Path) -> None:
    site.handler.redirects = {"/a": "/a"}
    with pytest.raises(NotFound, match="redirects more than 5 times"):
        _fetch(site, "/a", tmp_path)


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (404, NotFound, "not found: the server answers 404"),
        (410, NotFound, "not found: the server answers 410"),
        (401, NoPermission, "the server refuses it (401); https:// is fetched without a login"),
        (403, NoPermission, "the server refuses it (403)"),
        (503, SourceUnreachable, "can't be had: the server answers 503 Service Unavailable. Another attempt"),
    ],
)
def test_what_the_server_refuses_is_explained(
    site: "Site", tmp_path: Path, status: int, error: type[Exception], said: str
) -> None:
    site.handler.status = status
    with pytest.raises(error) as caught:
        _fetch(site, "/train.jsonl", tmp_path)
    assert said in str(caught.value)


def test_what_has_no_room_is_refused_before_it_is_fetched(
    site: "Site", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000})())
    with pytest.raises(StorageFailed, match="mount the data from a claim, or give the cache more room"):
        _fetch(site, "/train.jsonl", tmp_path)


def test_a_certificate_that_nobody_trusts_is_told(
    site: "Site", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(NotFound, match="the server's certificate isn't trusted: self-signed certificate"):
        _fetch(site, "/train.jsonl", tmp_path)


def test_a_host_that_isnt_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(NotFound, match=r"there is no host data\.example"):
        web.fetch("https://data.example/train.jsonl", tmp_path)


class Handler(BaseHTTPRequestHandler):
    """A file server that can break off."""

    content: ClassVar[bytes] = CONTENT
    etag: ClassVar[str] = '"one"'
    status: ClassVar[int] = 200
    cut_at: ClassVar[int | None] = None
    changes: ClassVar[bool] = False
    redirects: ClassVar[dict[str, str]] = {}
    answers: ClassVar[list[int]] = []
    starts: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        kind = type(self)
        if self.path in kind.redirects:
            self._head(302, {"Location": kind.redirects[self.path], "Content-Length": "0"})
        elif kind.status != 200:
            self._head(kind.status, {"Content-Length": "0"})
        elif kind.etag and self.headers.get("If-None-Match") == kind.etag:
            self._head(304, {"Content-Length": "0"})
        else:
            self._file(kind)

    def _file(self, kind: "type[Handler]") -> None:
        same = bool(kind.etag) and self.headers.get("If-Range") == kind.etag
        start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-")) if same else 0
        size = len(kind.content)
        headers = {"Content-Length": str(size - start)} | ({"ETag": kind.etag} if kind.etag else {})
        if same:
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        self._head(206 if same else 200, headers)
        kind.starts.append(start)
        stop = size if kind.cut_at is None else start + kind.cut_at
        self.wfile.write(kind.content[start:stop])
        self.close_connection = True
        if kind.changes:
            kind.changes, kind.cut_at, kind.etag, kind.content = False, None, '"two"', CONTENT[::-1]

    def _head(self, status: int, headers: dict[str, str]) -> None:
        type(self).answers.append(status)
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Say nothing."""


class Site:
    """A server with a certificate of its own."""

    def __init__(self, server: ThreadingHTTPServer, handler: type[Handler]) -> None:
        self.port, self.handler = server.server_port, handler


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def site(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    handler = type("Fresh", (Handler,), {"answers": [], "starts": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield Site(server, handler)
    server.shutdown()
    server.server_close()


def _fetch(site: Site, path: str, folder: Path) -> Path:
    """Downloaded with all inner addresses refused but the one of the test's server."""
    return web.fetch(
        f"https://127.0.0.1:{site.port}{path}",
        folder,
        refuse=lambda address: address != ALLOWED and web.is_inner(address),
    )
