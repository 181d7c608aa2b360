"""What the Events of type Warning say of claims, Jobs and pods that a run waits for.

An API server answers such a list by reading all Events of the namespace from etcd, since it keeps none of them in its
cache and has no index: 0.4 s were seen where a namespace had thousands. So there is one list at a time, after each a
rest of four times what it took, and an answer is good for a while. Who doesn't get a turn makes do with the last
answer: nothing is decided by it, it only says why a run waits.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from finetune_operator.children import Claim, Job, Pod
from finetune_operator.connection import Connection, Object
from finetune_operator.recent import Recent
from finetune_operator.world import ChildWarning

_AT_MOST = "20"
_GOOD = timedelta(seconds=10)
_KEEP = timedelta(minutes=5)
_PATIENCE_SECONDS = 0.2
_REST = 4


class Warnings:
    """Reads them, at most a fifth of the time."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._answers = Recent[Sequence[Object]](keep=_KEEP)
        self._turn = asyncio.Lock()

    async def about(
        self, children: Iterable[Claim | Job | Pod], *, namespace: str, now: datetime
    ) -> tuple[ChildWarning, ...]:
        """The newest first."""
        found = [event for child in children for event in await self._about(child.uid, namespace=namespace, now=now)]
        return tuple(
            ChildWarning(
                kind=event["involvedObject"].get("kind") or "",
                name=event["involvedObject"].get("name") or "",
                reason=event.get("reason") or "",
                message=event.get("message") or "",
            )
            for event in sorted(found, key=_last_seen, reverse=True)
        )

    async def _about(self, uid: str, *, namespace: str, now: datetime) -> Sequence[Object]:
        known = self._answers.get(uid, now=now, younger_than=_GOOD)
        if known is not None:
            return known
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            return self._answers.get(uid, now=now) or ()
        began = time.monotonic()
        try:
            found = await self._read(uid, namespace=namespace)
        finally:
            took = time.monotonic() - began
            asyncio.get_running_loop().call_later(_REST * took, self._turn.release)
        return self._answers.put(uid, found, now=now)

    async def _read(self, uid: str, *, namespace: str) -> Sequence[Object]:
        query = {"fieldSelector": f"involvedObject.uid={uid},type=Warning", "limit": _AT_MOST}
        answer = await self._connection.get(f"/api/v1/namespaces/{namespace}/events", **query)
        items: Sequence[Object] = answer["items"]
        return items


def _last_seen(event: Object) -> str:
    return event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"] or ""
