"""Every version of every run, Job, pod and claim, and of the Events about runs, as the API server tells them.

It watches on its own, past every proxy, so what a plan does to the operator never hides anything from the oracles.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from finetune_api.types import API_VERSION, KIND, PLURAL
from tests.cluster.api import Api, Listed

Object = Mapping[str, Any]

PATHS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "run": (f"/apis/{API_VERSION}/{PLURAL}", {}),
    "job": ("/apis/batch/v1/jobs", {}),
    "pod": ("/api/v1/pods", {}),
    "claim": ("/api/v1/persistentvolumeclaims", {}),
    "event": ("/api/v1/events", {"fieldSelector": f"involvedObject.kind={KIND}"}),
}
"""Where each kind is, and which of it."""


@dataclasses.dataclass(frozen=True)
class Version:
    """An object as it was from one moment on; `deleted` is the last of it."""

    kind: str
    body: Object
    deleted: bool
    at: float

    @property
    def uid(self) -> str:
        """Whose version."""
        return str(self.body["metadata"]["uid"])

    @property
    def revision(self) -> int:
        """Its place among the versions of all objects of all kinds: they share one store."""
        return int(self.body["metadata"]["resourceVersion"])


class History:
    """What happened in one namespace."""

    def __init__(self) -> None:
        self.versions: list[Version] = []
        self.now: dict[tuple[str, str], Object] = {}
        self.changed = asyncio.Event()

    def add(self, version: Version) -> None:
        """The next version of an object."""
        place = (version.kind, version.uid)
        known = self.now.get(place)
        same = known is not None and known["metadata"]["resourceVersion"] == version.body["metadata"]["resourceVersion"]
        if same and not version.deleted:
            return
        self.versions.append(version)
        if version.deleted:
            self.now.pop(place, None)
        else:
            self.now[place] = version.body
        self.changed.set()

    def of(self, kind: str) -> Sequence[Version]:
        """All versions of one kind, oldest first."""
        return [version for version in self.versions if version.kind == kind]

    def there(self, kind: str) -> Sequence[Object]:
        """What there is of a kind now."""
        return [body for (of, _), body in self.now.items() if of == kind]

    def named(self, kind: str, name: str) -> Object | None:
        """The object of that name now."""
        return next((body for body in self.there(kind) if body["metadata"]["name"] == name), None)

    async def until(self, holds: Callable[[], bool], *, deadline: Callable[[], float]) -> bool:
        """Whether it came to hold before the deadline, which may move."""
        while not holds():
            self.changed.clear()
            left = deadline() - time.monotonic()
            if left <= 0:
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.changed.wait(), min(left, 1.0))
        return True


class Recorder:
    """All namespaces."""

    def __init__(self) -> None:
        self.histories: dict[str, History] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, api: Api) -> AsyncIterator[Recorder]:
        """Records as long as the block lasts."""
        found = cls()
        tasks = [asyncio.create_task(found._follow(api, kind)) for kind in PATHS]
        try:
            yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def of(self, namespace: str) -> History:
        """The history of a namespace."""
        return self.histories.setdefault(namespace, History())

    async def _follow(self, api: Api, kind: str) -> None:
        path, query = PATHS[kind]
        async for news in api.follow(path, **query):
            if isinstance(news, Listed):
                for body in news.items:
                    self._add(kind, body, deleted=False)
            else:
                self._add(kind, news.item, deleted=news.deleted)

    def _add(self, kind: str, body: Object, *, deleted: bool) -> None:
        history = self.of(body["metadata"]["namespace"])
        history.add(Version(kind, body, deleted, time.monotonic()))
