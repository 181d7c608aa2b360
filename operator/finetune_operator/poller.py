"""Asks the trainers how far they are: GET /progress of each running pod of an unfinished run. Their answers are hints.

A pod is not trusted: only pods of this operator's Jobs are asked, and their answers are read up to a limit, checked,
and dropped unless they speak of that run and attempt. A pod that can't be reached never hurts a run.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp

from finetune_api.snapshot import PORT, SNAPSHOT_LIMIT, Snapshot
from finetune_operator.cache import Cache
from finetune_operator.connection import Connection, in_cluster
from finetune_operator.errors import OperatorError, TransientError
from finetune_operator.names import Key
from finetune_operator.settings import PodAccess, Settings

log = logging.getLogger(__name__)

_AT_ONCE = 32
_SECONDS = 5.0
_CONNECT_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """The trainer of a run's newest attempt."""

    key: Key
    run_uid: str
    attempt: int
    pod: str
    pod_uid: str
    ip: str
    trains: bool
    """Whether it has made a step."""


Access = Callable[[Target], Awaitable[bytes]]
"""Reads the answer of a trainer. Raises TransientError without one."""


class Poller:
    """Each trainer in its own rhythm, so many at once."""

    def __init__(
        self,
        access: Access,
        *,
        cache: Cache,
        wake: Callable[[Key], None],
        failed: Callable[[], None],
        settings: Settings,
    ) -> None:
        self._access = access
        self._cache = cache
        self._wake = wake
        self._failed = failed
        self._settings = settings
        self._followed: set[Key] = set()
        self._due: asyncio.Queue[Key] = asyncio.Queue()

    def follow(self, key: Key) -> None:
        """Begin to ask a run's trainer, if it has one and isn't asked already. Ends by itself when the pod does."""
        if key not in self._followed and self._target(key) is not None:
            self._followed.add(key)
            self._due.put_nowait(key)

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(self._reader())

    async def _reader(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            key = await self._due.get()
            target = self._target(key)
            if target is None:
                self._followed.discard(key)
                continue
            await self._ask(target)
            pause = self._settings.training_poll_seconds if target.trains else self._settings.poll_seconds
            loop.call_later(pause, self._due.put_nowait, key)

    def _target(self, key: Key) -> Target | None:
        world = self._cache.world(key, now=datetime.now(UTC))
        pod = world.first if world and not world.run.status.is_finished else None
        if world is None or pod is None or pod.phase != "Running" or not pod.ip:
            return None
        if world.job is None or pod.job_uid != world.job.uid:
            return None
        said = world.live_snapshot
        return Target(
            key=key,
            run_uid=world.run.metadata.uid,
            attempt=world.number,
            pod=pod.name,
            pod_uid=pod.uid,
            ip=pod.ip,
            trains=said is not None and said.progress is not None,
        )

    async def _ask(self, target: Target) -> None:
        try:
            snapshot = Snapshot.decode(await self._access(target))
        except (OperatorError, ValueError) as error:
            self._failed()
            log.debug("pod %s/%s doesn't tell its progress: %s", target.key.namespace, target.pod, error)
            return
        if (snapshot.run_uid, snapshot.attempt) != (target.run_uid, target.attempt):
            self._failed()
            log.debug("pod %s/%s speaks of another run or attempt", target.key.namespace, target.pod)
        elif self._cache.put_snapshot(snapshot, pod=target.pod_uid):
            self._wake(target.key)


def choose(settings: Settings, *, connection: Connection, session: aiohttp.ClientSession) -> Access:
    """The way to the pods."""
    direct = in_cluster() if settings.pod_access == PodAccess.AUTO else settings.pod_access == PodAccess.DIRECT
    return by_address(session) if direct else by_proxy(connection)


def by_proxy(connection: Connection) -> Access:
    """Through the API server's pod proxy."""

    async def read(target: Target) -> bytes:
        path = f"/api/v1/namespaces/{target.key.namespace}/pods/{target.pod}:{PORT}/proxy/progress"
        return await connection.read(path, limit=SNAPSHOT_LIMIT, seconds=_SECONDS)

    return read


def by_address(session: aiohttp.ClientSession) -> Access:
    """By the pod's address."""

    async def read(target: Target) -> bytes:
        host = f"[{target.ip}]" if ":" in target.ip else target.ip
        try:
            async with session.get(f"http://{host}:{PORT}/progress", allow_redirects=False) as response:
                if response.status != 200:
                    raise TransientError(f"status {response.status}")
                text = await response.content.read(SNAPSHOT_LIMIT + 1)
                while len(text) <= SNAPSHOT_LIMIT and (more := await response.content.read(SNAPSHOT_LIMIT + 1)):
                    text += more
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise TransientError(str(error) or type(error).__name__) from error
        return text

    return read


def session(*, seconds: float = _SECONDS) -> aiohttp.ClientSession:
    """For `by_address`: no credential, no proxy, no unpacking, and an end to every wait."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS),
        connector=aiohttp.TCPConnector(limit=_AT_ONCE),
        headers={"Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
    )
