"""`Memory` as the operator sees Kubernetes: through its cache, where every object is parsed by itself."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from finetune_api.status import FineTuneRunStatus
from finetune_operator import kinds, kueue
from finetune_operator.admission import Line
from finetune_operator.cache import Cache
from finetune_operator.children import Body, Job, Pod
from finetune_operator.memory import Memory
from finetune_operator.names import Key
from finetune_operator.run import Run
from finetune_operator.settings import Limits
from finetune_operator.world import ChildWarning, World


class Cached:
    """Implements reconcile.Cluster over a Memory, and shows some of its objects as another client has made them."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.instead: dict[str, Body] = {}
        """What is shown, by UID."""

    async def observe(self, key: Key, *, fresh: bool, now: datetime) -> World | None:
        cache = Cache(line=Line(Limits()))
        for kind in kinds.KINDS:
            for body in self.memory.all(kind.name):
                cache.put(kind, self.instead.get(body["metadata"]["uid"], body))
        for snapshot in self.memory.snapshots.values():
            cache.put_snapshot(snapshot)
        return cache.world(key, now=now)

    async def warnings(self, world: World) -> tuple[ChildWarning, ...]:
        return await self.memory.warnings(world)

    async def workload(self, world: World) -> kueue.Workload | kueue.Silence:
        return await self.memory.workload(world)

    async def create(self, run: Run, manifest: Mapping[str, Any]) -> None:
        await self.memory.create(run, manifest)

    async def delete(self, run: Run, child: Job | Pod) -> None:
        await self.memory.delete(run, child)

    async def delete_run(self, run: Run) -> None:
        await self.memory.delete_run(run)

    async def write_status(self, run: Run, new: FineTuneRunStatus) -> Run:
        """The API server checks what it is given."""
        FineTuneRunStatus.parse(new.to_wire())
        return await self.memory.write_status(run, new)

    async def post_event(self, manifest: Mapping[str, Any]) -> None:
        await self.memory.post_event(manifest)
