"""A TCP forwarder to the API server that can be cut or frozen, as a network may be.

    with forwarder.to(port) as network:
        network.freeze()    # nothing passes any more, and nobody is told
        network.open()      # new connections pass; what was frozen stays silent, as after a lost route

It knows nothing of HTTP, and delivers nothing late: what it held back when it was frozen is gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import selectors
import socket
import threading
from collections.abc import Iterator


@dataclasses.dataclass
class Network:
    """The way to one port of this machine."""

    port: int
    _listener: socket.socket
    _target: int
    _mode: str = "open"
    _pairs: dict[socket.socket, socket.socket] = dataclasses.field(default_factory=dict)
    _silent: list[socket.socket] = dataclasses.field(default_factory=list)
    _selector: selectors.BaseSelector = dataclasses.field(default_factory=selectors.DefaultSelector)
    _lock: threading.RLock = dataclasses.field(default_factory=threading.RLock)
    attempts: int = 0
    """Connections that were tried."""

    def cut(self) -> None:
        """Every connection is reset, and each new one."""
        with self._lock:
            self._mode = "cut"
            for one in list(self._pairs):
                self._drop(one)

    def freeze(self) -> None:
        """Nothing passes, and nobody is told."""
        with self._lock:
            self._mode = "frozen"
            for one in list(self._pairs):
                self._selector.unregister(one)
                self._silent.append(one)
            self._pairs.clear()

    def open(self) -> None:
        """New connections pass."""
        with self._lock:
            self._mode = "open"

    def serve(self) -> None:
        """Until the listener is closed."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        while self._listener.fileno() >= 0:
            for key, _ in self._selector.select(timeout=0.1):
                with self._lock:
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pairs:
                        self._pass(key.fileobj)

    def _accept(self) -> None:
        try:
            here, _ = self._listener.accept()
        except OSError:
            return  # closed meanwhile
        self.attempts += 1
        if self._mode == "cut":
            here.close()
        elif self._mode == "frozen":
            self._silent.append(here)
        else:
            there = socket.create_connection(("127.0.0.1", self._target))
            for one, other in ((here, there), (there, here)):
                self._pairs[one] = other
                self._selector.register(one, selectors.EVENT_READ)

    def _pass(self, one: socket.socket) -> None:
        try:
            data = one.recv(65536)
            if data:
                self._pairs[one].sendall(data)
                return
        except OSError:
            data = b""
        self._drop(one)

    def _drop(self, one: socket.socket) -> None:
        other = self._pairs.pop(one, None)
        if other is None:
            return
        self._pairs.pop(other, None)
        for end in (one, other):
            self._selector.unregister(end)
            end.close()

    def close(self) -> None:
        """Everything."""
        with self._lock:
            self._listener.close()
            for one in (*self._pairs, *self._silent):
                one.close()


@contextlib.contextmanager
def to(port: int) -> Iterator[Network]:
    """A way to that port, for as long as the block lasts."""
    listener = socket.create_server(("127.0.0.1", 0))
    network = Network(listener.getsockname()[1], listener, port)
    thread = threading.Thread(target=network.serve, daemon=True)
    thread.start()
    try:
        yield network
    finally:
        network.close()
        thread.join(timeout=5)
