"""Ports on which a test lets something listen."""

import random
import socket
from pathlib import Path

_FIRST = 10000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_claims: list[socket.socket] = []
"""A name in Linux's abstract namespace for each port that this process has given; they go when it ends."""


def free() -> int:
    """A port of 127.0.0.1 that nobody listens on, and that nobody takes before the caller has started who does.

    Other processes of the tests aren't given it as long as this one lives. The kernel gives none of these to outgoing
    connections: it once gave an operator's to a neighbour's request, before the operator listened.
    """
    end = max(int(_EPHEMERAL.read_text().split()[0]), _FIRST + 1000)
    while True:
        port = random.randrange(_FIRST, end)
        if _claimed(port) and _nobody_listens(port):
            return port


def _claimed(port: int) -> bool:
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0finetune-test-port-{port}")
    except OSError:
        claim.close()
        return False
    _claims.append(claim)
    return True


def _nobody_listens(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
