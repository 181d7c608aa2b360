"""A file behind https://. Follows redirects to https alone, and never connects to this machine or to what a network
keeps for itself: a cloud's metadata service gives credentials to whoever asks.

Sends no credential. The address that was checked is the one that is connected to.
"""

import http.client
import ipaddress
import re
import socket
import ssl
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

from finetune_trainer.errors import ConfigInvalid, NoPermission, NotFound, SourceUnreachable
from finetune_trainer.sources.downloads import Download, Version

REDIRECTS = 5
TIMEOUT = 60.0
BLOCK = 1 << 20
ATTEMPTS_WITHOUT_PROGRESS = 3

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Guard = Callable[[Address], bool]


def is_inner(address: Address) -> bool:
    """Whether an address is this machine's own, link-local (metadata services) or no address of a machine."""
    if isinstance(address, ipaddress.IPv6Address) and (inside := _carried(address)) is not None:
        return is_inner(inside)
    if address in _METADATA:
        return True
    return address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified


def _carried(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The address that a mapped, 6to4, NAT64 or IPv4-compatible one stands for."""
    if address.ipv4_mapped or address.sixtofour:
        return address.ipv4_mapped or address.sixtofour
    carries = any(address in network for network in _CARRIERS) and int(address) > 1
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if carries else None


_CARRIERS = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("::/96"))
_METADATA = (ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200"))
"""Metadata services that aren't at a link-local address."""


def fetch(url: str, folder: Path, *, refuse: Guard = is_inner) -> Path:
    """The file, downloaded. Raises NotFound, NoPermission, ConfigInvalid, SourceUnreachable or StorageFailed."""
    name = re.sub(r"[^\w.-]", "_", urllib.parse.unquote(urllib.parse.urlsplit(url).path).rpartition("/")[2]).lstrip(".")
    download = Download(folder / (name or "data"))
    failures = 0
    while True:
        before = download.offset
        try:
            if _attempt(url, download, refuse):
                return download.target
            error: Exception = OSError("the connection was closed too early")
        except (http.client.HTTPException, OSError) as broken:
            if isinstance(broken, ssl.SSLCertVerificationError):
                raise NotFound(f"{url}: the server's certificate isn't trusted: {broken.verify_message}") from broken
            error = broken
        finally:
            download.pause()
        failures = 0 if download.offset > before else failures + 1
        if failures == ATTEMPTS_WITHOUT_PROGRESS:
            raise SourceUnreachable(
                f"dataset {url} can't be had: {error}. Another attempt goes on where this one stopped; where pods may"
                " not reach the server, use pvc://"
            ) from error


def _attempt(url: str, download: Download, refuse: Guard) -> bool:
    """Fetch what is missing; whether that was all."""
    connection, response = _answer(url, download, refuse)
    try:
        if response.status == 304:
            return True
        size = _size(response)
        offset, kept = download.offset, download.kept
        going_on = response.status == 206
        if response.status == 416 or (going_on and (kept is None or _start(response) != offset or size != kept.size)):
            download.forget()  # what is here in part doesn't fit what is there now
            return False
        version = kept if going_on and kept is not None else Version(_tag(response), size)
        download.begin(version, resume=going_on)
        while block := response.read(BLOCK):
            download.add(block)
        return download.finish(version)
    finally:
        connection.close()


def _answer(
    url: str, download: Download, refuse: Guard
) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
    """The answer at the end of all redirects."""
    place = url
    for _ in range(REDIRECTS + 1):
        parts = urllib.parse.urlsplit(place)
        if parts.scheme != "https" or not parts.hostname or parts.username is not None:
            raise ConfigInvalid(f"{url} redirects to {_short(place)}: only https:// without a login is followed")
        connection = _connect(parts.hostname, parts.port or 443, refuse, url)
        target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
            f"?{parts.query}" * bool(parts.query)
        )
        connection.request("GET", target, headers=_headers(download))
        response = connection.getresponse()
        if response.status not in (301, 302, 303, 307, 308):
            _refuse_errors(url, place, response)
            return connection, response
        connection.close()
        place = urllib.parse.urljoin(place, response.headers.get("Location", ""))
    raise NotFound(f"{url} redirects more than {REDIRECTS} times")


def _headers(download: Download) -> dict[str, str]:
    headers = {"User-Agent": "finetune-operator", "Accept-Encoding": "identity"}
    kept = download.kept
    if kept is None or not kept.etag:
        return headers
    if download.is_whole:
        is_date = not kept.etag.endswith('"')
        return headers | {"If-Modified-Since" if is_date else "If-None-Match": kept.etag}
    if download.offset and not kept.etag.startswith("W/"):
        return headers | {"Range": f"bytes={download.offset}-", "If-Range": kept.etag}
    return headers


def _connect(host: str, port: int, refuse: Guard, url: str) -> http.client.HTTPSConnection:
    proxy = urllib.request.getproxies().get("https")
    if proxy and not urllib.request.proxy_bypass(host):
        _refuse_literal(host, refuse, url)  # names are looked up by the proxy
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        tunnel = http.client.HTTPSConnection(parts.hostname or "", parts.port or 3128, timeout=TIMEOUT)
        tunnel.set_tunnel(host, port)
        return tunnel
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise
        raise NotFound(f"{url}: there is no host {host}") from error
    addresses = [str(each[4][0]) for each in found]
    for address in addresses:
        _refuse_literal(address, refuse, url)
    return _Connection(host, port, addresses)


class _Connection(http.client.HTTPSConnection):
    """Connects to addresses that were checked, and asks for the name's certificate."""

    def __init__(self, host: str, port: int, addresses: list[str]) -> None:
        super().__init__(host, port, timeout=TIMEOUT)
        self._addresses = addresses

    def connect(self) -> None:
        """The first address that answers."""
        for address in self._addresses:
            last = address == self._addresses[-1]
            try:
                plain = socket.create_connection((address, self.port), TIMEOUT)
            except OSError:
                if last:
                    raise
            else:
                self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)
                return


def _refuse_literal(host: str, refuse: Guard, url: str) -> None:
    try:
        address = _address(host.strip("[]").partition("%")[0])
    except (ValueError, OSError):
        return  # a name
    if refuse(address):
        raise ConfigInvalid(
            f"{url} leads to {address}, an address of this machine or of the network's own services: data is never"
            " fetched from there"
        )


def _address(host: str) -> Address:
    """As resolvers read it: 127.1, 2130706433 and 0x7f000001 are addresses too. Raises ValueError or OSError."""
    host = host.rstrip(".").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return ipaddress.IPv4Address("127.0.0.1")
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return ipaddress.IPv4Address(socket.inet_aton(host))


def _refuse_errors(url: str, place: str, response: http.client.HTTPResponse) -> None:
    status = response.status
    after = "" if place == url else f" after a redirect to {_short(place)}"
    if status in (200, 206, 304, 416):
        encoded = response.headers.get("Content-Encoding", "identity")
        if encoded == "identity":
            return
        raise NotFound(f"{url}: the server sends it encoded as {encoded}, though that wasn't asked for{after}")
    if status in (404, 410):
        raise NotFound(f"dataset {url} not found: the server answers {status}{after}")
    if status in (401, 403, 407):
        raise NoPermission(
            f"dataset {url}: the server refuses it ({status}){after}; https:// is fetched without a login: use s3://,"
            " gs:// or hf:// with dataset.credentials, or a claim"
        )
    raise OSError(f"the server answers {status} {response.reason}{after}")


def _tag(response: http.client.HTTPResponse) -> str:
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _size(response: http.client.HTTPResponse) -> int | None:
    """Bytes of the whole file."""
    if response.status == 206:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
        return int(total) if total.isdigit() else None
    return response.length


def _start(response: http.client.HTTPResponse) -> int | None:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(found[1]) if found else None


def _short(place: str) -> str:
    return place.partition("?")[0][:200]
