"""Names and addresses of the pods of a node; those of one headless Service know each other by name.

There is no DNS for pods that are processes, and EndpointSlices leave loopback addresses out, so every pod has an
/etc/hosts of its own with its peers in it: pods of the same namespace whose spec names the same `subdomain`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from tests.cluster.api import Object
from tests.cluster.podnetwork import Addresses

HOST_NAMES = Path("/etc/hosts")


@dataclasses.dataclass(frozen=True)
class Peer:
    """One pod that has an address now."""

    namespace: str
    subdomain: str
    hostname: str
    address: str
    hosts: Path

    @property
    def line(self) -> str:
        """Its entry in /etc/hosts, in all the forms that cluster DNS would answer to."""
        names = [self.hostname]
        if self.subdomain:
            short = f"{self.hostname}.{self.subdomain}"
            names = [
                f"{short}.{self.namespace}.svc.cluster.local",
                f"{short}.{self.namespace}.svc",
                short,
                self.hostname,
            ]
        return f"{self.address} {' '.join(names)}\n"


class Peers:
    """The pods that have an address."""

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._known: list[Peer] = []

    @contextlib.contextmanager
    def join(self, pod: Object, *, folder: Path) -> Iterator[str]:
        """An address for as long as the block lasts, with FOLDER/hosts kept up to date meanwhile."""
        spec, meta = pod["spec"], pod["metadata"]
        folder.mkdir(parents=True, exist_ok=True)
        address = self._addresses.take()
        hostname = spec.get("hostname") or meta["name"]
        peer = Peer(meta["namespace"], spec.get("subdomain", ""), hostname, address, folder / "hosts")
        self._known.append(peer)
        self._write(peer)
        try:
            yield address
        finally:
            self._known.remove(peer)
            self._write(peer)
            self._addresses.give_back(address)

    def _write(self, changed: Peer) -> None:
        """Rewrite the files that the change concerns, in place, since they are bind mounts by now."""
        ours = HOST_NAMES.read_text()
        for peer in self._known:
            if peer is changed or _together(peer, changed):
                lines = [other.line for other in self._known if other is peer or _together(peer, other)]
                peer.hosts.write_text(ours + "\n" + "".join(lines))


def _together(one: Peer, other: Peer) -> bool:
    return bool(one.subdomain) and (one.namespace, one.subdomain) == (other.namespace, other.subdomain)
