"""Kubernetes, as the reconcile loop sees it: what is there, what is to be created, what is to be said.

The only module that writes to the API server. Each write carries what makes it safe to repeat: a deterministic name and
an owner, the resource version that was read, or the UID of what is to be deleted. It never deletes by name alone.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from finetune_api.status import FineTuneRunStatus
from finetune_operator import boost, kinds, kueue, names, sources, waiting
from finetune_operator.boost import Boosted
from finetune_operator.cache import Cache
from finetune_operator.children import Claim, Job, Pod
from finetune_operator.connection import Connection, Object
from finetune_operator.errors import ConflictError, ExistsError, GoneError, OperatorError, RefusedError, TakenError
from finetune_operator.kinds import Kind
from finetune_operator.names import Key
from finetune_operator.recent import Recent
from finetune_operator.run import Run
from finetune_operator.warned import Warnings
from finetune_operator.world import ChildWarning, World

log = logging.getLogger(__name__)

_REMEMBERED = timedelta(minutes=5)


class KubernetesCluster:
    """Implements reconcile.Cluster."""

    def __init__(self, connection: Connection, *, cache: Cache) -> None:
        self._connection = connection
        self._cache = cache
        self._warnings = Warnings(connection)
        self._workloads = Recent[kueue.Workload | kueue.Silence](keep=_REMEMBERED)

    async def observe(self, key: Key, *, fresh: bool, now: datetime) -> World | None:
        """From the cache; `fresh` brings it up to date by quorum reads first."""
        if not fresh:
            return self._cache.world(key, now=now)
        body = await self._read_run(key)
        if body is None:
            return None
        children = (kinds.JOB, kinds.POD, kinds.CLAIM)
        uid = body["metadata"]["uid"]
        await asyncio.gather(*(self._read_children(kind, key, run_uid=uid) for kind in children))
        run = self._cache.run(key)
        other = sources.other_run(run) if run else None
        if other is not None:
            await self._read_run(Key(key.namespace, other))
        world = self._cache.world(key, now=now)
        return world and replace(world, claim=world.claim or await self._claim_of_the_user(world.run))

    async def _read_run(self, key: Key) -> Object | None:
        try:
            body = await self._connection.get(kinds.RUN.path(*key))
        except GoneError:
            self._cache.forget(key)
            return None
        self._cache.put(kinds.RUN, body)
        return body

    async def _read_children(self, kind: Kind, key: Key, *, run_uid: str) -> None:
        selector = f"{kind.selector},{names.RUN_LABEL}={key.name}"
        found = await self._connection.get(kind.path(key.namespace), labelSelector=selector)
        for body in found["items"]:
            self._cache.put(kind, body)
        seen = [body["metadata"]["uid"] for body in found["items"]]
        self._cache.prune_children(kind, run_uid=run_uid, seen=seen, version=found["metadata"]["resourceVersion"])

    async def _claim_of_the_user(self, run: Run) -> Claim | None:
        """The claim that the spec names. It has no label of ours, so no watch tells of it."""
        if run.spec is None or run.spec.storage.claim_name is None:
            return None
        path = kinds.CLAIM.path(run.metadata.namespace, run.spec.storage.claim_name)
        try:
            return Claim.parse(await self._connection.get(path))
        except GoneError:
            return None

    async def warnings(self, world: World) -> tuple[ChildWarning, ...]:
        """Events of type Warning about what the run waits for, newest first."""
        children = waiting.explained_by(world)
        return await self._warnings.about(children, namespace=world.run.metadata.namespace, now=world.now)

    async def workload(self, world: World) -> kueue.Workload | kueue.Silence:
        """What Kueue says of the newest attempt's Job; the last answer again if that isn't old for so long a wait."""
        job = world.job
        assert job is not None, "only a Job can wait for Kueue"
        since = world.now - (job.created or world.now)
        about = f"{job.uid} {world.attempt} {world.recorded_start is None}"
        known = self._workloads.get(about, now=world.now, younger_than=kueue.pause(waited=since) / 2)
        if known is not None:
            return known
        found = await self._read_workload(world.run.metadata.namespace, job_uid=job.uid)
        return self._workloads.put(about, found, now=world.now)

    async def _read_workload(self, namespace: str, *, job_uid: str) -> kueue.Workload | kueue.Silence:
        """By a list, each time: Kueue may come and go, and a watch of what isn't there would stop all others."""
        try:
            found = await self._list_workloads(namespace, job_uid=job_uid)
        except GoneError:
            return kueue.Silence.NOT_INSTALLED
        except RefusedError as error:
            log.debug("%s", error)
            return kueue.Silence.UNREADABLE
        except OperatorError as error:  # no reason to leave the run alone: nothing is decided by it
            log.debug("%s", error)
            return kueue.Silence.NO_ANSWER
        return next((kueue.Workload.parse(body) for body in found), kueue.Silence.NO_WORKLOAD)

    async def _list_workloads(self, namespace: str, *, job_uid: str) -> Sequence[Object]:
        selector = f"{kueue.JOB_UID_LABEL}={job_uid}"
        items: Sequence[Object] = (await self._connection.get(_workloads(namespace), labelSelector=selector))["items"]
        return items

    async def boosted(self, key: Key, *, job_uid: str) -> Sequence[Boosted]:
        """The Workload of a Job, as far as its priority goes, if it has one."""
        return [Boosted.parse(body) for body in await self._list_workloads(key.namespace, job_uid=job_uid)]

    async def priorities(self) -> Sequence[int]:
        """The values of all priority classes, of Kueue and of Kubernetes."""
        lists = [(await self._connection.get(path))["items"] for path in boost.CLASSES]
        return [int(body["value"]) for items in lists for body in items]

    async def write_boost(self, key: Key, found: Boosted, value: int) -> None:
        """Give exactly this Workload a boost; 0 takes it away."""
        await self._connection.patch(f"{_workloads(key.namespace)}/{found.name}", found.patch(value))

    async def create(self, run: Run, manifest: Mapping[str, Any]) -> None:
        """Create a child, or adopt it if it is this run's already."""
        kind, metadata = kinds.called(manifest["kind"]), manifest["metadata"]
        path = kind.path(metadata["namespace"])
        try:
            body = await self._connection.post(path, manifest)
            log.info("%s: %s %s created", run.key, kind.name, metadata["name"])
        except ExistsError:
            body = await self._connection.get(f"{path}/{metadata['name']}")
            if kinds.run_uid(kind, body) != run.metadata.uid:
                raise TakenError(_taken(kind, metadata["name"])) from None
        if kind in kinds.KINDS:
            self._cache.put(kind, body)

    async def delete(self, run: Run, child: Job | Pod) -> None:
        """Delete exactly this child; the watch, or the next fresh read, tells when it is gone."""
        kind = kinds.JOB if isinstance(child, Job) else kinds.POD
        try:
            await self._connection.delete(kind.path(run.metadata.namespace, child.name), uid=child.uid)
            log.info("%s: %s %s deleted", run.key, kind.name, child.name)
        except (GoneError, ConflictError) as error:
            log.debug("%s: %s %s is gone already: %s", run.key, kind.name, child.name, error)

    async def delete_run(self, run: Run) -> None:
        """Delete exactly this version of the run: its user may just have asked to keep it."""
        metadata = run.metadata
        try:
            await self._connection.delete(
                kinds.RUN.path(*run.key), uid=metadata.uid, resourceVersion=metadata.resource_version
            )
            log.info("%s: deleted, its time after the end is over", run.key)
        except GoneError as error:
            log.debug("%s is gone already: %s", run.key, error)

    async def write_status(self, run: Run, new: FineTuneRunStatus) -> Run:
        """Replace the status of exactly the version that was read. The answer goes into the cache."""
        body = {
            "metadata": {"resourceVersion": run.metadata.resource_version},
            "status": merge_patch(run.status.to_wire(), new.to_wire()),
        }
        answer = await self._connection.patch(f"{kinds.RUN.path(*run.key)}/status", body)
        self._cache.put(kinds.RUN, answer)
        return Run.parse(answer)

    async def post_event(self, manifest: Mapping[str, Any]) -> None:
        """Post a Kubernetes Event under its own name: one that is there already is the same."""
        try:
            await self._connection.post(f"/api/v1/namespaces/{manifest['metadata']['namespace']}/events", manifest)
        except ExistsError:
            log.debug("event %s was posted before", manifest["metadata"]["name"])
        except OperatorError as error:
            log.warning("event %s can't be posted: %s", manifest["metadata"]["name"], error)


def _workloads(namespace: str) -> str:
    return f"/apis/{kueue.GROUP}/{kueue.VERSION}/namespaces/{namespace}/workloads"


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON merge patch (RFC 7386) that makes `old` into `new`: all that is new, and null for what is gone.

    Lists are replaced as a whole.
    """
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        patch[key] = merge_patch(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return patch


def _taken(kind: Kind, name: str) -> str:
    instead = "name another in spec.storage.claimName" if kind is kinds.CLAIM else "create the run under another name"
    return f"{kind.name} {name} exists and isn't this run's: delete it, or {instead}"
