"""What the operator has seen: objects parsed once at the border, children by run, trainers' newest snapshots.

Fed by watches, lists, fresh reads and the operator's own writes, in any order: what is older than what is already known
is skipped. One object that can't be read never stops the others. It must never be the ground for a create or a delete.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

from finetune_api.fields import cut
from finetune_api.snapshot import Snapshot
from finetune_operator import kinds, names, sources
from finetune_operator.admission import Line
from finetune_operator.children import Body, Claim, Job, Pod
from finetune_operator.kinds import Kind, View
from finetune_operator.names import Key
from finetune_operator.profiles import Profile
from finetune_operator.run import Run
from finetune_operator.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One object. `view` is None if it can't be read."""

    uid: str
    version: int
    namespace: str
    key: Key | None
    run_uid: str | None
    view: View | None


@dataclass
class _Shelf:
    """All objects of one kind, and which were deleted since the last full list."""

    entries: dict[str, Entry] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)


class Cache:
    """Of one operator; used from its event loop alone, but for `seen`."""

    def __init__(self, *, line: Line, wake: Callable[[Key], None] = lambda _: None) -> None:
        """`wake` is called with a run that a change of its profile concerns."""
        self._line = line
        self._wake = wake
        self._shelves: dict[str, _Shelf] = {kind.name: _Shelf() for kind in kinds.KINDS}
        self._runs: dict[Key, str] = {}
        self._children: dict[str, dict[str, Entry]] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._tellers: dict[str, str | None] = {}
        """UID of the pod that said it."""
        self._outdated: set[str] = set()
        """UIDs of the runs whose profile has changed since it was applied."""
        self._departed: dict[str, Pod] = {}

    def put(self, kind: Kind, body: Body) -> Key | None:
        """Take in an object. Returns the run to look at, None if this is nothing new."""
        shelf, uid, version = self._shelves[kind.name], body["metadata"]["uid"], _version(body)
        known = shelf.entries.get(uid)
        if uid in shelf.gone or (known is not None and version <= known.version):
            return None
        entry = _entry(kind, body, uid=uid, version=version)
        shelf.entries[uid] = entry
        if kind is kinds.RUN:
            self._put_run(entry)
        elif kind is kinds.PROFILE:
            self._offer(*(one.view for one in (known, entry) if one is not None))
        elif entry.run_uid is not None:
            self._children.setdefault(entry.run_uid, {})[uid] = entry
        return entry.key

    def delete(self, kind: Kind, body: Body) -> Key | None:
        """Forget an object that was deleted. Returns the run to look at."""
        shelf, uid = self._shelves[kind.name], body["metadata"]["uid"]
        shelf.gone[uid] = _version(body)
        if uid not in shelf.entries:
            return None
        last = shelf.entries[uid] = _entry(kind, body, uid=uid, version=_version(body))
        return self._drop(kind, last)

    def _depart(self, entry: Entry) -> None:
        """Remember how a run's last pod ended: it may be deleted before anybody looks, and its Job knows less."""
        pod, run_uid = entry.view, entry.run_uid
        if not isinstance(pod, Pod) or not pod.ended or run_uid not in self._shelves[kinds.RUN.name].entries:
            return
        known = self._departed.get(run_uid)
        if known is None or known.attempt <= pod.attempt:
            self._departed[run_uid] = pod

    def prune(self, kind: Kind, *, namespace: str | None, seen: Iterable[str], version: str) -> set[Key]:
        """Forget what a full list of `version` doesn't have and isn't newer. Returns the runs to look at."""
        shelf, listed, at = self._shelves[kind.name], set(seen), int(version)
        shelf.gone = {uid: deleted for uid, deleted in shelf.gone.items() if deleted > at}
        ghosts = [
            entry
            for uid, entry in shelf.entries.items()
            if uid not in listed and entry.version <= at and namespace in (None, entry.namespace)
        ]
        return {key for ghost in ghosts if (key := self._drop(kind, ghost))}

    def prune_children(self, kind: Kind, *, run_uid: str, seen: Iterable[str], version: str) -> None:
        """The same for the children of one run."""
        listed, at = set(seen), int(version)
        for entry in [*self._children.get(run_uid, {}).values()]:
            mine = entry.uid in self._shelves[kind.name].entries
            if mine and entry.uid not in listed and entry.version <= at:
                self._drop(kind, entry)

    def forget(self, key: Key) -> None:
        """There is no such run."""
        uid = self._runs.get(key)
        entry = self._shelves[kinds.RUN.name].entries.get(uid) if uid else None
        if entry:
            self._drop(kinds.RUN, entry)

    def put_snapshot(self, snapshot: Snapshot, *, pod: str | None = None) -> bool:
        """Take in what a trainer says of itself, and which pod it is. Returns whether it is news.

        The trainer of another pod counts anew: a Job may have several pods, one after the other.
        """
        known = self._snapshots.get(snapshot.run_uid)
        if known is not None and self._tellers.get(snapshot.run_uid) != pod:
            known = None
        place = (snapshot.attempt, snapshot.sequence)
        if known is not None and place < (known.attempt, known.sequence):
            return False
        self._snapshots[snapshot.run_uid] = snapshot
        self._tellers[snapshot.run_uid] = pod
        return known is None or place > (known.attempt, known.sequence)

    def world(self, key: Key, *, now: datetime) -> World | None:
        """All that is known of a run; None if there is no such run, or it can't be read."""
        outdated = self._shelves[kinds.RUN.name].entries.get(self._runs.get(key, ""))
        if outdated is not None and outdated.uid in self._outdated:
            self._apply_profile(outdated)
        run = self.run(key)
        if run is None:
            return None
        uid = run.metadata.uid
        children = [entry.view for entry in self._children.get(uid, {}).values()]
        jobs = tuple(view for view in children if isinstance(view, Job))
        claims = {view.name: view for view in children if isinstance(view, Claim)}
        return World(
            run=run,
            now=now,
            model=sources.resolve(run, lambda name: self.run(Key(key.namespace, name))),
            jobs=tuple(sorted(jobs, key=lambda job: job.attempt)),
            pods=self._pods(uid, children),
            claim=claims.get(names.claim(key.name, uid)),
            snapshot=self._snapshots.get(uid),
            snapshot_pod=self._tellers.get(uid),
        )

    def _pods(self, run_uid: str, children: Iterable[View | None]) -> tuple[Pod, ...]:
        there = tuple(view for view in children if isinstance(view, Pod))
        departed = self._departed.get(run_uid)
        return there if departed is None or departed.uid in {pod.uid for pod in there} else (*there, departed)

    def run(self, key: Key) -> Run | None:
        """A run as it was last seen."""
        uid = self._runs.get(key)
        entry = self._shelves[kinds.RUN.name].entries.get(uid) if uid else None
        return entry.view if entry and isinstance(entry.view, Run) else None

    def active(self) -> Iterator[Run]:
        """The runs that have not ended, but for those that wait for their turn: nothing can happen to these."""
        runs = (run for run in self._all_runs() if not run.status.is_finished)
        return (run for run in runs if not self._line.is_waiting(run.metadata.uid))

    def seen(self) -> Iterator[tuple[Run, Snapshot | None]]:
        """Each run, and what its trainer last said. Also for the metrics' thread: copying a dictionary is atomic."""
        return ((run, self._snapshots.get(run.metadata.uid)) for run in self._all_runs())

    def _all_runs(self) -> Iterator[Run]:
        entries = list(self._shelves[kinds.RUN.name].entries.values())
        return (entry.view for entry in entries if isinstance(entry.view, Run))

    def _put_run(self, entry: Entry) -> None:
        assert entry.key is not None, "a run's key is its own name"
        runs = self._shelves[kinds.RUN.name].entries
        other = runs.get(self._runs.get(entry.key, ""))
        if other is not None and other.uid != entry.uid:
            older = min(other, entry, key=lambda one: one.version)
            self._drop(kinds.RUN, older)
        if entry.uid in runs:
            self._runs[entry.key] = entry.uid
            self._apply_profile(entry)

    def _profiles(self) -> list[Profile]:
        entries = self._shelves[kinds.PROFILE.name].entries.values()
        return [entry.view for entry in entries if isinstance(entry.view, Profile)]

    def _apply_profile(self, entry: Entry) -> None:
        self._outdated.discard(entry.uid)
        if isinstance(entry.view, Run):
            entry = replace(entry, view=entry.view.under(self._profiles()))
            self._shelves[kinds.RUN.name].entries[entry.uid] = entry
        self._see(entry)

    def _offer(self, *versions: View | None) -> None:
        """A profile has changed, or come or gone: the runs that it concerns and that haven't begun are to be looked at.

        It is applied when that happens: to apply it to thousands takes longer than the lease may wait.
        """
        concerned = [version for version in versions if isinstance(version, Profile)]
        named = {profile.name for profile in concerned}
        wanted = named | ({None} if any(profile.spec.is_default for profile in concerned) else set())
        for run in self._all_runs():
            if run.asked is not None and run.asked.profile in wanted and not run.status.is_finished:
                self._outdated.add(run.metadata.uid)
                self._wake(run.key)

    def _see(self, entry: Entry) -> None:
        """One that can't be read takes no part."""
        if isinstance(entry.view, Run):
            self._line.see(entry.view)
        else:
            self._line.leave(entry.uid)

    def _drop(self, kind: Kind, entry: Entry) -> Key | None:
        self._shelves[kind.name].entries.pop(entry.uid, None)
        if kind is kinds.RUN:
            self._line.leave(entry.uid)
            self._snapshots.pop(entry.uid, None)
            self._tellers.pop(entry.uid, None)
            self._outdated.discard(entry.uid)
            self._departed.pop(entry.uid, None)
            if entry.key is not None and self._runs.get(entry.key) == entry.uid:
                del self._runs[entry.key]
        elif kind is kinds.PROFILE:
            self._offer(entry.view)
        elif entry.run_uid is not None:
            self._depart(entry)
            siblings = self._children.get(entry.run_uid, {})
            siblings.pop(entry.uid, None)
            if not siblings:
                self._children.pop(entry.run_uid, None)
        return entry.key


def _version(body: Body) -> int:
    """Resource versions of one kind are numbers that grow (KEP-5504)."""
    return int(body["metadata"]["resourceVersion"])


def _entry(kind: Kind, body: Body, *, uid: str, version: int) -> Entry:
    view: View | None = None
    try:
        view = kind.parse(body)
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        metadata = body["metadata"]
        where = f"{kind.name} {metadata.get('namespace')}/{metadata.get('name')}"
        log.warning("%s can't be read and is left alone: %s", where, cut(f"{type(error).__name__} {error}", 300))
    return Entry(
        uid=uid,
        version=version,
        namespace=body["metadata"].get("namespace") or "",
        key=kinds.run_key(kind, body),
        run_uid=kinds.run_uid(kind, body),
        view=view,
    )
