"""Which writes to the API server may be sent, and that none takes effect after it may no more (see `lease`).

The fence is asked when the bytes are about to leave; the kernel drops what hasn't arrived soon, or when the process
ends. It must never let a write through that could be carried out after the lease has run out.
"""

import asyncio
import math
import socket
import struct
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import aiohttp

from finetune_operator.errors import TransientError

WRITES = ("POST", "PUT", "PATCH", "DELETE")
_promised: ContextVar[float] = ContextVar("promised", default=0.0)
"""Within how long the write that is being sent will be over; 0 for what writes nothing."""


@dataclass(frozen=True, kw_only=True)
class Fence:
    """Which writes may be sent."""

    left: Callable[[], float] = lambda: math.inf
    """Seconds within which a write that is sent now has to be over; 0 if none may be sent."""
    delivery: float = 5.0
    """Seconds after which the kernel gives up what the other side hasn't taken."""

    def promise(self, what: str, *, at_most: float) -> float:
        """Within how long a write that is about to be sent will be over, which leaves time to make a connection.

        Raises TransientError if none may be sent.
        """
        left = self.left()
        if left <= 0:
            raise TransientError(f"{what} isn't sent: this operator doesn't hold the lease")
        seconds = min(left - self.delivery / 2, at_most)
        _promised.set(seconds)
        return seconds


OPEN = Fence()
"""Every write may be sent."""


class UnderWay:
    """Writes that haven't ended, or whose end isn't known."""

    def __init__(self) -> None:
        self._until: dict[object, float] = {}
        self._unknown_until = 0.0
        self._none = asyncio.Event()
        self._none.set()

    def add(self, seconds: float) -> object:
        """One that is over after so long."""
        token = object()
        self._until[token] = asyncio.get_running_loop().time() + seconds
        self._none.clear()
        return token

    def remove(self, token: object, *, answered: bool) -> None:
        """It has ended here; without an answer it may still take effect there."""
        until = self._until.pop(token)
        if not answered:
            self._unknown_until = max(self._unknown_until, until)
        if not self._until:
            self._none.set()

    async def settled(self, seconds: float) -> bool:
        """Wait so long for their end. Whether none can take effect any more."""
        try:
            async with asyncio.timeout(seconds):
                await self._none.wait()
        except TimeoutError:
            return False
        return asyncio.get_running_loop().time() >= self._unknown_until


def sockets(fence: Fence) -> aiohttp.SocketFactoryType:
    """Sockets that forget what they haven't delivered, after a while and when they are closed, even by SIGKILL.

    Without these options the kernel goes on to deliver a request for minutes after its process has died.
    """

    def make(address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, _ = address
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(fence.delivery * 1000))
        return made

    return make


def checks(fence: Fence) -> aiohttp.TraceConfig:
    """Ask the fence once more when a write's bytes are about to leave.

    Making a connection takes time, and the process may have been stopped meanwhile.
    """

    async def check(_session: object, _context: object, sent: Any) -> None:
        if sent.method in WRITES and fence.left() < _promised.get():
            raise aiohttp.ClientConnectionError("not sent: the lease may have run out by the time it is carried out")

    found = aiohttp.TraceConfig()
    found.on_request_headers_sent.append(check)
    found.on_request_chunk_sent.append(check)
    return found
