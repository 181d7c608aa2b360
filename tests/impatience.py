"""A client that asks and is gone before the answer, as a poll whose time is over."""

import socket
import struct

_AT_ONCE = struct.pack("ii", 1, 0)
"""For SO_LINGER: closing takes back what is under way, and the other side is told so (RST)."""


def ask_and_go(port: int, path: str, *, times: int = 20) -> None:
    """Ask what listens on this port of 127.0.0.1 for a page, so many times."""
    for _ in range(times):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: trainer\r\n\r\n".encode())
