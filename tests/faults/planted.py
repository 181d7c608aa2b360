"""Defects that real operators have had, each planted into ours by replacing one thing, to see which oracle sees it.

`install` runs in the process of an operator before its `main`; the package itself knows nothing of it. The sixth, a
save that isn't atomic, is a trainer's: `saver.py --torn`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from finetune_operator import cluster, connection, handlers, workqueue
from finetune_operator.names import Key
from finetune_operator.world import World

GIVES_UP_AFTER = 3


def generated_names() -> None:
    """The API server makes up the names of Jobs, so a create that is repeated makes a second one."""
    create = connection.Connection.post

    async def post(self: connection.Connection, path: str, body: Mapping[str, Any]) -> Any:
        if body["kind"] == "Job":
            metadata = {key: value for key, value in body["metadata"].items() if key != "name"}
            body = {**body, "metadata": {**metadata, "generateName": f"{body['metadata']['name']}-"}}
        return await create(self, path, body)

    connection.Connection.post = post  # type: ignore[method-assign]


def status_overwritten() -> None:
    """A status is written whatever version it was computed from."""
    write = connection.Connection.patch

    async def patch(self: connection.Connection, path: str, body: Mapping[str, Any]) -> Any:
        return await write(self, path, {"status": body["status"]} if path.endswith("/status") else body)

    connection.Connection.patch = patch  # type: ignore[method-assign]


def delete_without_uid() -> None:
    """What has the name is deleted, whether it is what was meant or not."""
    remove = connection.Connection.delete

    async def delete(self: connection.Connection, path: str, **_: str) -> None:
        await remove(self, path)

    connection.Connection.delete = delete  # type: ignore[method-assign]


def index_as_truth() -> None:
    """Nothing is read before something is created: the cache will know."""
    look = cluster.KubernetesCluster.observe

    async def observe(self: cluster.KubernetesCluster, key: Key, *, fresh: bool, now: datetime) -> World | None:
        return await look(self, key, fresh=False, now=now)

    cluster.KubernetesCluster.observe = observe  # type: ignore[method-assign]


def short_back_offs() -> None:
    """After a few failures in a row a run is dropped, until something else happens to it."""
    wait = workqueue.WorkQueue.add_after
    settings = handlers.settings

    def add_after(self: workqueue.WorkQueue, key: Key, seconds: float) -> None:
        if self._failures.get(key, 0) < GIVES_UP_AFTER:
            wait(self, key, seconds)

    def impatient() -> Any:
        found = settings()
        found.networking.error_backoffs = (0.1, 0.2)
        return found

    workqueue.WorkQueue.add_after = add_after  # type: ignore[method-assign]
    handlers.settings = impatient


DEFECTS: Mapping[str, Callable[[], None]] = {
    "generated-names": generated_names,
    "status-overwritten": status_overwritten,
    "delete-without-uid": delete_without_uid,
    "index-as-truth": index_as_truth,
    "short-back-offs": short_back_offs,
}


def install(name: str) -> None:
    """Plant one of DEFECTS."""
    DEFECTS[name]()
