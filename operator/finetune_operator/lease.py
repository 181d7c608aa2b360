"""Leadership, by a coordination.k8s.io Lease: of several operators one acts, the others wait.

The protocol is that of client-go's leaderelection package, with what it leaves to others added, namely that a leader
that lost the lease writes nothing more:

- Clocks of two machines are never compared. Another's lease has run out when its record hasn't changed for the record's
  own `leaseDurationSeconds` on our clock, counted from when we saw it first. Every write carries the resource version
  that was read, so of two that take the lease one gets a conflict.
- The holder counts from before it sent the last renewal that succeeded, others from after they saw it: it is always
  first to find its time over. At two thirds (the renew deadline) it stops acting, by ending the process at once and
  without any clean-up. Its clock goes on while the machine sleeps.
- A write that began in time must not land late. `Lease.left` tells the connection within how long a write has to be
  over; `connection` asks when the bytes are about to leave, has the kernel drop what isn't delivered soon, and has the
  API server give up by then. What no client can bound is a middlebox that holds a request back and delivers it later:
  for that each write carries a resource version, a UID or a deterministic name.
- What vanishes is still held: a record that was deleted, or whose holder was removed by hand, is waited out. A holder
  that leaves in order removes its `renewTime` too, after its last write is known to have ended, and is followed at
  once.

It must never act on an answer that came too late, and waiting must never end by anything but the lease.
"""

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from finetune_operator.election import Record, Sight, Times, Watcher
from finetune_operator.errors import ConflictError, GoneError, OperatorError, RefusedError
from finetune_operator.settings import Settings

log = logging.getLogger(__name__)

LOST = os.EX_TEMPFAIL
"""Exit code of a leader that lost its lease."""
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_STUCK_SECONDS = 45.0


class Api(Protocol):
    """What is needed of a Connection."""

    async def get(self, path: str, **query: str) -> dict[str, Any]: ...

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]: ...

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]: ...


def identity() -> str:
    """Of this process: the pod's name (which is its host's) and something that no other process has."""
    return f"{socket.gethostname()}_{secrets.token_hex(4)}"


def path(settings: Settings) -> str:
    """Where the leases of the operator's own namespace are."""
    own = _OWN_NAMESPACE.read_text().strip() if _OWN_NAMESPACE.exists() else "default"
    return _LEASES.format(namespace=settings.lease_namespace or own)


def clock() -> float:
    """Seconds, also those that the machine has slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def end_the_process(reason: str) -> None:
    """At once: nothing is cleaned up, since cleaning up could write."""
    log.error("the lease is lost, and so this process ends: %s", reason)
    os._exit(LOST)


class Lease:
    """One candidate. `acquire`, then `hold` for ever; `release` in the end."""

    def __init__(
        self,
        api: Api,
        *,
        settings: Settings,
        identity: str,
        lost: Callable[[str], object] = end_the_process,
        clock: Callable[[], float] = clock,
    ) -> None:
        self._api = api
        self._leases = path(settings)
        self._name = settings.lease_name
        self._seconds = settings.lease_seconds
        self._times = Times(lease=settings.lease_seconds)
        self._identity = identity
        self._lost = lost
        self._clock = clock
        self._watcher = Watcher(identity)
        self._record: Record | None = None
        self._renewed: float | None = None
        self._tried = clock()
        self._alarm: asyncio.TimerHandle | None = None
        self._stopped = False
        self._said = ""
        self.seen = False
        """Whether the API server has told who holds it."""

    @property
    def delivery(self) -> float:
        """Seconds after which a request that hasn't arrived has to be given up."""
        return self._times.delivery

    def left(self) -> float:
        """Seconds within which a write that is sent now has to be over; 0 if none may be sent."""
        if self._renewed is None:
            return 0.0
        age = self._clock() - self._renewed
        return self._times.writes - age if age < self._times.deadline else 0.0

    def trouble(self) -> str | None:
        """Why waiting for the lease can't be going on, None if it is."""
        silent = self._clock() - self._tried
        return f"no look at the lease has ended for {silent:.0f} s" if silent > _STUCK_SECONDS else None

    async def acquire(self) -> None:
        """Wait until it is ours. Asks about once in a sixth of its length, whatever the answers are."""
        while True:
            began = self._clock()
            try:
                async with asyncio.timeout(self._times.request * 2):
                    held = await self._try(began)
            except (OperatorError, TimeoutError) as error:
                held = False
                self._say(f"{self._where} can't be had yet: {_reason(error)}", level=logging.WARNING)
            self._tried = self._clock()
            if held:
                log.info("%s is ours, as %s", self._where, self._identity)
                return
            rest = self._watcher.wait(now=self._tried) or self._times.retry
            await asyncio.sleep(max(0.1, min(self._times.retry, rest)))

    async def hold(self) -> None:
        """Renew for ever. At the deadline, or once another has it, the process ends."""
        while not self._stopped:
            began, pause = self._clock(), self._times.retry
            try:
                async with asyncio.timeout(self._times.request):
                    await self._renew(began)
            except (GoneError, ConflictError) as error:
                if not await self._is_still_ours():
                    self._lose(str(error))
                    return
                pause /= 5
            except (OperatorError, TimeoutError) as error:
                log.warning("%s isn't renewed, %.1f s are left: %s", self._where, self.left(), _reason(error))
            if self.left() <= 0:
                self._ring()
                return
            await asyncio.sleep(max(0.0, pause - (self._clock() - began)))

    def stop(self) -> None:
        """Act no more: from now on no write may be sent."""
        self._stopped, self._renewed = True, None
        if self._alarm is not None:
            self._alarm.cancel()

    async def release(self) -> None:
        """Let the next one follow at once. Only after `stop`, and when every write has ended."""
        gone = {"holderIdentity": None, "renewTime": None, "acquireTime": None}
        try:
            record = await self._read()
            if record is None or record.holder != self._identity:
                return
            await self._write(gone, version=record.version)
        except OperatorError as error:
            log.warning("%s runs out by itself: %s", self._where, error)
        else:
            log.info("%s is released", self._where)

    @property
    def _where(self) -> str:
        return f"lease {self._leases.split('/')[5]}/{self._name}"

    async def _try(self, now: float) -> bool:
        record = await self._read()
        self.seen = True
        match self._watcher.see(record, now=self._clock()):
            case Sight.HELD:
                holder = record.holder if record else ""
                self._say(f"{self._where} is held by {holder or 'nobody, but was until lately'}: standing by")
                return False
            case Sight.MINE:
                self._record = record
                await self._renew(now)
            case Sight.FREE:
                await self._take(record, now)
        return True

    async def _take(self, record: Record | None, now: float) -> None:
        stamp = _now()
        spec = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._seconds,
            "acquireTime": stamp,
            "renewTime": stamp,
            "leaseTransitions": record.transitions + 1 if record else 0,
        }
        self._watcher.wrote(stamp)
        if record is None:
            metadata = {"name": self._name}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
            answer = await self._api.post(self._leases, body)
        else:
            answer = await self._write(spec, version=record.version)
        self._is_ours(Record.parse(answer), since=now)

    async def _renew(self, now: float) -> None:
        assert self._record is not None, "it isn't ours"
        stamp = _now()
        self._watcher.wrote(stamp)
        spec = {"renewTime": stamp, "leaseDurationSeconds": self._seconds}
        self._is_ours(Record.parse(await self._write(spec, version=self._record.version)), since=now)

    async def _is_still_ours(self) -> bool:
        """After a conflict: whether a renewal whose answer was lost is what we ran into."""
        try:
            async with asyncio.timeout(self._times.request):
                record = await self._read()
        except (OperatorError, TimeoutError):
            return True  # not known: the deadline decides
        if record is None or record.holder != self._identity:
            return False
        self._record = record
        return True

    async def _read(self) -> Record | None:
        try:
            return Record.parse(await self._api.get(f"{self._leases}/{self._name}"))
        except GoneError:
            return None

    async def _write(self, spec: Mapping[str, Any], *, version: str) -> dict[str, Any]:
        body = {"metadata": {"resourceVersion": version}, "spec": spec}
        return await self._api.patch(f"{self._leases}/{self._name}", body)

    def _is_ours(self, record: Record, *, since: float) -> None:
        """Until so long after `since`, which was before the write was sent."""
        self._record = record
        if self._stopped:
            return
        self._renewed = since
        if self._alarm is not None:
            self._alarm.cancel()
        loop = asyncio.get_running_loop()
        self._alarm = loop.call_later(max(0.0, since + self._times.deadline - self._clock()), self._ring)

    def _ring(self) -> None:
        self._lose(f"it wasn't renewed for {self._times.deadline:.0f} s")

    def _lose(self, reason: str) -> None:
        """Unless it is being given up anyway: then the renewal that was under way fails, as it should."""
        if not self._stopped:
            self._lost(reason)

    def _say(self, message: str, *, level: int = logging.INFO) -> None:
        """Once, until there is something else to say."""
        if message != self._said:
            log.log(level, "%s", message)
            self._said = message


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _reason(error: Exception) -> str:
    if isinstance(error, RefusedError):
        return f"{error}; examples/operator-rbac.yaml has the rights that are needed"
    return str(error) or type(error).__name__
