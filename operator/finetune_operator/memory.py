"""A Cluster in memory: objects as the API server keeps them, with UIDs, versions, owners and refusals.

The local backend runs on it, and the tests of the core. It does nothing by itself: garbage is collected when
`collect_garbage` is called, Jobs move when `jobs` moves them, so that a test can try every order. What it keeps must
never change but through it: objects are copied on their way in, and what is handed out is a copy or only to be read.
"""

import copy
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from finetune_api.snapshot import Snapshot
from finetune_api.status import FineTuneRunStatus
from finetune_operator import kinds, kueue, names, sources, waiting
from finetune_operator.admission import Line
from finetune_operator.children import Body, Claim, Job, Pod
from finetune_operator.errors import ConflictError, ExistsError, GoneError, RefusedError, TakenError
from finetune_operator.names import Key
from finetune_operator.profiles import Profile
from finetune_operator.run import Run
from finetune_operator.settings import Limits
from finetune_operator.world import ChildWarning, World

Object = dict[str, Any]

PROFILE, RUN, JOB, POD, CLAIM = (kind.name for kind in kinds.KINDS)
EVENT, CONFIG_MAP = "Event", "ConfigMap"
_NO_LIMITS = Limits()


class Ref(NamedTuple):
    """Which object."""

    kind: str
    namespace: str
    name: str

    @classmethod
    def of(cls, body: Body) -> "Ref":
        return cls(body["kind"], body["metadata"].get("namespace") or "default", body["metadata"]["name"])

    @classmethod
    def run(cls, key: Key) -> "Ref":
        return cls(RUN, key.namespace, key.name)


def stamp(time: datetime) -> str:
    """A time as Kubernetes writes it in metadata and status: whole seconds, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


class Memory:
    """The objects of one cluster; as far as `reconcile` can tell, Kubernetes."""

    def __init__(self, *, clock: Callable[[], datetime], limits: Limits = _NO_LIMITS) -> None:
        self.clock = clock
        self.line = Line(limits)
        """Whose turn it is; follows what is kept here."""
        self.snapshots: dict[Key, Snapshot] = {}
        """What the trainers last answered."""
        self.workloads: dict[Key, kueue.Workload] = {}
        """What Kueue says, where a test plays it."""
        self.refuse: Callable[[Body], str | None] = lambda _: None
        """Admission: why an object isn't let in, e.g. a quota."""
        self.on_change: Callable[[Ref], None] = lambda _: None
        """Told of each change."""
        self._objects: dict[Ref, Object] = {}
        self._version = 0

    def get(self, ref: Ref) -> Object | None:
        """A copy of the object, if it is there."""
        return copy.deepcopy(self._objects.get(ref))

    def all(self, kind: str) -> list[Body]:
        """Every object of a kind, oldest first; only to be read."""
        return [body for ref, body in self._objects.items() if ref.kind == kind]

    def add(self, body: Body) -> Object:
        """Create an object; it keeps a UID that it has. Raises ExistsError or RefusedError."""
        ref, new = Ref.of(body), copy.deepcopy(dict(body))
        if ref in self._objects:
            raise ExistsError(f"{ref.kind} {ref.namespace}/{ref.name} already exists")
        refusal = self.refuse(new)
        if refusal is not None:
            raise RefusedError(f"{ref.kind} {ref.name} is refused: {refusal}")
        given = {"uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": stamp(self.clock())}
        new["metadata"] = given | new["metadata"] | {"namespace": ref.namespace}
        return self._keep(ref, new)

    def update(self, body: Body) -> Object:
        """Replace an object. Raises ConflictError if it has changed since `body` was read, GoneError if it is gone."""
        ref, new = Ref.of(body), copy.deepcopy(dict(body))
        old = self._objects.get(ref)
        if old is None:
            raise GoneError(f"{ref.kind} {ref.namespace}/{ref.name} is gone")
        if any(old["metadata"][part] != new["metadata"].get(part) for part in ("uid", "resourceVersion")):
            raise ConflictError(f"{ref.kind} {ref.namespace}/{ref.name} has changed since it was read")
        if old == new:
            return new
        changed = old.get("spec") != new.get("spec")
        new["metadata"]["generation"] = old["metadata"]["generation"] + (1 if changed else 0)
        return self._keep(ref, new)

    def delete_object(self, ref: Ref) -> None:
        """Delete an object; not what it owns. A pod whose container runs stays until that has ended."""
        body = self._objects.get(ref)
        if body is None:
            raise GoneError(f"{ref.kind} {ref.namespace}/{ref.name} is gone")
        if ref.kind == POD and Pod.parse(body).started and not Pod.parse(body).ended:
            if "deletionTimestamp" not in body["metadata"]:
                metadata = body["metadata"] | {"deletionTimestamp": stamp(self.clock())}
                self._keep(ref, body | {"metadata": metadata})
            return
        del self._objects[ref]
        self.line.leave(body["metadata"]["uid"])
        self._offer(ref)
        self.on_change(ref)

    def collect_garbage(self) -> bool:
        """Delete what has lost its owner, one level. Whether there was any."""
        uids = {body["metadata"]["uid"] for body in self._objects.values()}
        lost = [ref for ref, body in self._objects.items() if _owners(body) and not _owners(body) & uids]
        lost = [ref for ref in lost if "deletionTimestamp" not in self._objects[ref]["metadata"]]
        for ref in lost:
            self.delete_object(ref)
        return bool(lost)

    def _keep(self, ref: Ref, body: Object) -> Object:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self._objects[ref] = body
        if ref.kind == RUN:
            self.line.see(self._read(body))
        self._offer(ref)
        self.on_change(ref)
        return copy.deepcopy(body)

    async def observe(self, key: Key, *, fresh: bool, now: datetime) -> World | None:  # noqa: ARG002 - nothing is cached here
        """All that is known of a run, None if there is no such run."""
        body = self._objects.get(Ref.run(key))
        if body is None:
            return None
        run = self._read(body)
        return World(
            run=run,
            now=now,
            model=sources.resolve(run, lambda name: self._run(Key(key.namespace, name))),
            jobs=tuple(Job.parse(job) for job in self._children(kinds.JOB, run)),
            pods=tuple(Pod.parse(pod) for pod in self._children(kinds.POD, run)),
            claim=next((Claim.parse(claim) for claim in self._children(kinds.CLAIM, run)), None),
            snapshot=self.snapshots.get(key),
        )

    def _run(self, key: Key) -> Run | None:
        body = self._objects.get(Ref.run(key))
        return self._read(body) if body else None

    def _read(self, body: Body) -> Run:
        return Run.parse(body).under(Profile.parse(profile) for profile in self.all(PROFILE))

    def _offer(self, ref: Ref) -> None:
        """A profile has changed: so have the places of the runs that wait."""
        for body in self.all(RUN) if ref.kind == PROFILE else ():
            self.line.see(self._read(body))

    def _children(self, kind: kinds.Kind, run: Run) -> Iterator[Body]:
        return (body for body in self.all(kind.name) if kinds.run_uid(kind, body) == run.metadata.uid)

    async def warnings(self, world: World) -> tuple[ChildWarning, ...]:
        """The Events of type Warning about what the run waits for."""
        uids = {child.uid for child in waiting.explained_by(world)}
        return tuple(
            ChildWarning(
                kind=event["involvedObject"]["kind"],
                name=event["involvedObject"]["name"],
                reason=event["reason"],
                message=event["message"],
            )
            for event in self.all(EVENT)
            if event["type"] == "Warning" and event["involvedObject"]["uid"] in uids
        )

    async def workload(self, world: World) -> kueue.Workload | kueue.Silence:
        """What Kueue says of the newest attempt's Job, if there is a Kueue here: whoever plays it says so."""
        return self.workloads.get(world.run.key, kueue.Silence.NOT_INSTALLED)

    async def create(self, run: Run, manifest: Mapping[str, Any]) -> None:
        """Create a child; nothing if it is there."""
        there = self.get(Ref.of(manifest))
        if there is None:
            self.add(manifest)
        elif _run_uid(there) != run.metadata.uid:
            raise TakenError(f"{there['kind']} {there['metadata']['name']} is there already, and isn't this run's")

    async def delete(self, run: Run, child: Job | Pod) -> None:
        """Delete exactly this child."""
        ref = Ref(JOB if isinstance(child, Job) else POD, run.metadata.namespace, child.name)
        if (self._objects.get(ref) or {"metadata": {}})["metadata"].get("uid") == child.uid:
            self.delete_object(ref)

    async def delete_run(self, run: Run) -> None:
        """Delete exactly the version of the run that was read."""
        there = self._objects.get(Ref.run(run.key))
        if there is None or there["metadata"]["uid"] != run.metadata.uid:
            return
        if there["metadata"]["resourceVersion"] != run.metadata.resource_version:
            raise ConflictError(f"{run.key} has changed since it was read")
        self.delete_object(Ref.run(run.key))

    async def write_status(self, run: Run, new: FineTuneRunStatus) -> Run:
        """Replace the status of exactly the version that was read."""
        body = self.get(Ref.run(run.key))
        if body is None or body["metadata"]["uid"] != run.metadata.uid:
            raise GoneError(f"{run.key} is gone")
        body["metadata"]["resourceVersion"] = run.metadata.resource_version
        return Run.parse(self.update(body | {"status": new.to_wire()}))

    async def post_event(self, manifest: Mapping[str, Any]) -> None:
        """Post a Kubernetes Event, once."""
        if Ref.of(manifest) not in self._objects:
            self.add(manifest)


def _owners(body: Body) -> set[str]:
    return {owner["uid"] for owner in body["metadata"].get("ownerReferences") or ()}


def _run_uid(body: Body) -> str | None:
    uid: str | None = (body["metadata"].get("annotations") or {}).get(names.RUN_UID_ANNOTATION)
    return uid
