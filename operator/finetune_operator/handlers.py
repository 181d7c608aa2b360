"""kopf, as source of events and as process shell, no more: every handler and setting of it is here.

A handler takes what happened into the cache, names the run, and returns None. Any other kind of kopf handler would
write to the API server and lose events after a conflict; none is registered. With `on.event` alone kopf writes nothing.
"""

import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import kopf

from finetune_operator import kinds
from finetune_operator.cache import Cache
from finetune_operator.connection import Credentials
from finetune_operator.kinds import Kind
from finetune_operator.names import Key


@dataclass(frozen=True, kw_only=True)
class Shell:
    """What the handlers call."""

    cache: Cache
    wake: Callable[[Key], None]
    credentials: Callable[[], Awaitable[Credentials]]
    told: Callable[[str, str], None]
    """A watch has told something: kind, namespace."""


def registry(shell: Shell) -> kopf.OperatorRegistry:
    """Every handler."""
    found = kopf.OperatorRegistry()
    for kind in kinds.KINDS:
        _follow(kind, shell, found)

    @kopf.on.login(registry=found)
    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        return connection_info(await shell.credentials())

    return found


def _follow(kind: Kind, shell: Shell, found: kopf.OperatorRegistry) -> None:
    @kopf.on.event(kind.group, kind.version, kind.plural, id=kind.plural, registry=found)
    async def take_in(event: Any, **_: Any) -> None:
        change = shell.cache.delete if event["type"] == "DELETED" else shell.cache.put
        key = change(kind, event["object"])
        shell.told(kind.name, event["object"]["metadata"].get("namespace") or "")
        if key is not None:
            shell.wake(key)


def connection_info(found: Credentials) -> kopf.ConnectionInfo:
    """The operator's own credentials, for kopf's own client."""
    scheme, _, token = (found.authorization or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=found.server,
        ca_path=found.ca_path,
        insecure=found.insecure,
        scheme=scheme or None,
        token=token or None,
        certificate_path=found.certificate_path,
        private_key_path=found.private_key_path,
        trust_env=True,
    )


def settings() -> kopf.OperatorSettings:
    """kopf, made to write nothing, to give up never, and to notice a silent watch within 20 s."""
    s = kopf.OperatorSettings()
    s.peering.standalone = True
    s.posting.enabled = False
    s.posting.loggers = False
    s.scanning.disabled = True
    s.persistence.diffbase_storage = _NoDiff()
    s.persistence.progress_storage = _NoProgress()
    s.queueing.idle_timeout = 1.0
    s.queueing.exit_timeout = 1.0
    s.queueing.error_delays = (0.5, 1, 2, 5, 10)
    for kind in kinds.KINDS:
        if kind.selector:
            s.watching.label_selectors[kind.group, kind.version, kind.plural] = kind.selector
    s.watching.chunk_size = 500
    s.watching.initial_streaming = False
    # The API server ends each watch after 15 s, with a bookmark 2 s before, from which the next one goes on without a
    # list. Only a watch that says nothing at all runs into the 20 s.
    s.watching.server_timeout = 15
    s.watching.inactivity_timeout = 20
    s.watching.reconnect_backoff = 0.1
    s.watching.connect_timeout = 5
    s.networking.request_timeout = 30
    s.networking.connect_timeout = 5
    s.networking.error_backoffs = _Endless((0.1, 0.2, 0.5, 1, 1, 2, 2), then=5)
    # Seen in kopf 1.45: when one watch fails for good, another that was just being opened can keep it from ending.
    s.process.ultimate_exiting_timeout = 5
    return s


class _Endless:
    """Pauses between attempts; the last one for ever. After a finite number kopf would drop the event."""

    def __init__(self, first: tuple[float, ...], *, then: float) -> None:
        self._first = first
        self._then = then

    def __iter__(self) -> Iterator[float]:
        return itertools.chain(self._first, itertools.repeat(self._then))


class _NoDiff(kopf.DiffBaseStorage):
    """Nothing is compared: no handler asks what has changed. Saves three copies of each object an event."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        """Nothing is kept."""


class _NoProgress(kopf.ProgressStorage):
    """Nothing is kept: handlers of events have no progress."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        """Nothing is kept."""

    def purge(self, **_: Any) -> None:
        """There is nothing."""

    def touch(self, **_: Any) -> None:
        """There is nothing."""

    def clear(self, *, essence: Any) -> Any:
        return essence
