"""Addresses for pods that are processes of this machine, and a way for the API server to reach them.

Processes can listen on any address of 127.0.0.0/8 without being root, so each pod gets one. The API server's pod proxy,
though, refuses loopback addresses of pods ("address not allowed"). So a pod may report a public twin instead:
198.18.x.y for 127.18.x.y, out of the range kept for tests (RFC 2544), which this machine has no interface for. The API
server's egress selector, which exists to reach nodes and pods through a tunnel, sends its connections to the CONNECT
proxy here, and that one knows the twins. Run as a program it is that proxy: `python -I -S podnetwork.py SOCKET`.
Standard library alone.
"""

from __future__ import annotations

import asyncio
import collections
import errno
import os
import socket
import sys
from collections.abc import Mapping

PUBLIC_TO_LOCAL: Mapping[str, str] = {"198.18.": "127.18.", "198.19.": "127.19."}
CLAIM_PORT = 9401  # taken on the first address of a prefix by the session that uses it


def local(address: str) -> str:
    """The address of this machine behind a pod's address."""
    for public, ours in PUBLIC_TO_LOCAL.items():
        if address.startswith(public):
            return ours + address.removeprefix(public)
    return address


def public(address: str) -> str:
    """The twin of a pod's address that the API server's pod proxy accepts."""
    for twin, ours in PUBLIC_TO_LOCAL.items():
        if address.startswith(ours):
            return twin + address.removeprefix(ours)
    raise ValueError(f"{address} has no public twin")


class Addresses:
    """Loopback addresses under prefixes that no other session uses; one that was given back rests as long as it can."""

    def __init__(self) -> None:
        self._claims: list[socket.socket] = []
        self._free: collections.deque[str] = collections.deque()

    def take(self) -> str:
        """An address nobody else has; another prefix is claimed when the last one is used up."""
        if not self._free:
            claim, prefix = _claim_prefix()
            self._claims.append(claim)
            self._free.extend(f"{prefix}.{host}" for host in range(2, 255))
        return self._free.popleft()

    def give_back(self, address: str) -> None:
        """It may be used again, after all others."""
        self._free.append(address)

    def close(self) -> None:
        """Leave the prefixes to other sessions."""
        for claim in self._claims:
            claim.close()


def _claim_prefix() -> tuple[socket.socket, str]:
    """The first free prefix, counted from the process id, and the socket that keeps it ours."""
    for offset in range(512):
        high, low = divmod((os.getpid() + offset) % 512, 256)
        prefix = f"127.{18 + high}.{low}"
        claim = socket.socket()
        try:
            claim.bind((f"{prefix}.1", CLAIM_PORT))
            claim.listen()
            return claim, prefix
        except OSError as error:
            claim.close()
            if error.errno != errno.EADDRINUSE:
                raise
    raise RuntimeError("every address prefix for pods is in use")


async def serve(path: str) -> None:
    """Answer CONNECT on a Unix socket, for ever."""
    server = await asyncio.start_unix_server(_tunnel, path)
    async with server:
        await server.serve_forever()


async def _tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One request: CONNECT host:port, then bytes both ways until either side has ended."""
    request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    host, _, port = request.split(" ", 2)[1].rpartition(":")
    try:
        pod_reader, pod_writer = await asyncio.open_connection(local(host.strip("[]")), int(port))
    except OSError as error:
        writer.write(f"HTTP/1.1 502 {error.strerror}\r\n\r\n".encode())
        writer.close()
        return
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    await asyncio.gather(_pump(reader, pod_writer), _pump(pod_reader, writer))


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        pass  # One side has hung up; closing the other tells it.
    sink.close()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1]))
