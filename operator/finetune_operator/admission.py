"""Whose turn it is: the operator's own limits on active runs, and the order of those that wait. Pure; holds no I/O.

A run is active from the moment that its first attempt is recorded in its status until it is recorded that it has ended
or is paused. So what is recorded is the truth after a restart; `reserve` covers the time between decision and record,
also when it isn't known whether the record was written. It must never let a run be active over a limit, and never let a
run of lower order pass one that waits for the same thing.
"""

import bisect
import heapq
import math
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from finetune_api.spec import MANAGED_BY
from finetune_operator import kueue
from finetune_operator.names import Key
from finetune_operator.run import Run, paused
from finetune_operator.settings import Limits
from finetune_operator.world import Turn

NAMESPACE_LIMIT = "NamespaceLimit"
"""As many runs of the namespace are active as may be."""
DEVICE_LIMIT = "DeviceLimit"
"""Active runs use as many devices as may be used."""
_FIRST = datetime.min.replace(tzinfo=UTC)


class Place(NamedTuple):
    """A run in the line; sorts by whose turn is first: priority, then age."""

    minus_priority: int
    created: datetime
    key: Key
    uid: str
    resource: str
    devices: int


class Line:
    """The runs that are active or wait. Fed with every version of every run that is seen."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: dict[str, dict[str, list[Place]]] = {}
        """By namespace and device resource, in order."""
        self._active: dict[str, Place] = {}
        self._active_in: Counter[str] = Counter()
        self._devices: Counter[str] = Counter()
        self._places: dict[str, Place] = {}
        self._called: frozenset[str] | None = None
        self._told: frozenset[str] = frozenset()
        self._short: frozenset[str] = frozenset()
        """Device resources of which the next run in the line wants more than are left."""

    def see(self, run: Run) -> None:
        """Take in a run as it is now. What was reserved for an older version of it is settled by this one."""
        uid = run.metadata.uid
        takes_part = is_limited(run)
        active, waiting = takes_part and is_active(run), takes_part and is_waiting(run)
        place = _place(run) if active or waiting else None
        if place is not None and place == self._places.get(uid) and active == (uid in self._active):
            return  # most versions tell of progress alone
        self.leave(uid)
        if place is not None and active:
            self._activate(place)
        elif place is not None:
            self._places[uid] = place
            queues = self._waiting.setdefault(place.key.namespace, {})
            bisect.insort(queues.setdefault(place.resource, []), place)
            self._called = None

    def leave(self, uid: str) -> None:
        """A run is gone, or no longer takes part."""
        place = self._places.pop(uid, None)
        if place is None:
            return
        self._called = None
        namespace = place.key.namespace
        if self._active.pop(uid, None) is not None:
            self._active_in[namespace] -= 1
            self._devices[place.resource] -= place.devices
            return
        queue = self._waiting[namespace][place.resource]
        queue.pop(bisect.bisect_left(queue, place))
        if not queue:
            del self._waiting[namespace][place.resource]

    def reserve(self, uid: str) -> None:
        """Count a run whose turn has come as active from now on. Its next version that is seen settles it."""
        place = self._places.get(uid)
        if place is None or uid in self._active:
            return
        assert uid in self.called(), "nobody may be active before its turn"
        self.leave(uid)
        self._activate(place)

    def turn(self, uid: str) -> Turn:
        """Whether a run may be active now, and what it waits for if not."""
        place = self._places.get(uid)
        if place is None or uid in self._active:
            return Turn()
        never = self._never(place)
        if never or uid in self.called():
            return Turn(admitted=not never, never=never)
        namespace = place.key.namespace
        ahead = sum(bisect.bisect_left(queue, place) for queue in self._waiting[namespace].values())
        if place.resource in self._short:
            limit = self._limits.devices[place.resource]
            reason, message = DEVICE_LIMIT, f"All {limit} {place.resource} that runs may use are taken or spoken for."
        else:
            limit = self._limits.runs_per_namespace or 0
            reason, message = NAMESPACE_LIMIT, f"{limit} runs of namespace {namespace} are active, no more may be."
        return Turn(admitted=False, position=ahead + 1, reason=reason, message=message)

    def is_waiting(self, uid: str) -> bool:
        """Whether a run waits and its turn hasn't come: nothing else can happen to it."""
        return uid in self._places and uid not in self._active and uid not in self.called()

    def newly_called(self) -> Iterator[Key]:
        """The runs whose turn has come since the last time this was asked."""
        called = self.called()
        new, self._told = called - self._told, called
        return (self._places[uid].key for uid in new)

    def called(self) -> frozenset[str]:
        """UIDs of the waiting runs that may be active now, all of them together."""
        if self._called is None:
            self._called = frozenset(self._call())
        return self._called

    def _call(self) -> Iterator[str]:
        """In order. One that doesn't fit keeps back all that want devices of the same kind, or it might never fit."""
        left = {resource: most - self._devices[resource] for resource, most in self._limits.devices.items()}
        limit = math.inf if self._limits.runs_per_namespace is None else self._limits.runs_per_namespace
        free = {namespace: limit - self._active_in[namespace] for namespace in self._waiting}
        short = set()
        heads = [(queue[0], queue, 0) for queues in self._waiting.values() for queue in queues.values()]
        heapq.heapify(heads)
        while heads:
            place, queue, index = heapq.heappop(heads)
            namespace = place.key.namespace
            if free[namespace] <= 0 or place.resource in short:
                continue  # and so with all that follow in that queue
            if place.resource in left and not self._never(place):
                if place.devices > left[place.resource]:
                    short.add(place.resource)
                    continue
                left[place.resource] -= place.devices
            free[namespace] -= 0 if self._never(place) else 1
            yield place.uid  # also of one that never fits: to be told so
            if index + 1 < len(queue):
                heapq.heappush(heads, (queue[index + 1], queue, index + 1))
        self._short = frozenset(short)

    def _never(self, place: Place) -> str:
        limit = self._limits.devices.get(place.resource)
        if limit is None or place.devices <= limit:
            return ""
        return f"asks for {place.devices} {place.resource}, and all runs together may use {limit}: ask for fewer"

    def _activate(self, place: Place) -> None:
        self._places[place.uid] = self._active[place.uid] = place
        self._active_in[place.key.namespace] += 1
        self._devices[place.resource] += place.devices
        self._called = None


def is_limited(run: Run) -> bool:
    """Whether the operator's limits are for it: not if Kueue decides, nor if another acts on the run."""
    spec = run.spec
    return spec is not None and not kueue.concerns(spec) and spec.managed_by == MANAGED_BY


def is_active(run: Run) -> bool:
    """Whether it counts against the limits."""
    return run.spec is not None and not run.status.is_finished and run.status.attempt > 0 and not paused(run)


def is_waiting(run: Run) -> bool:
    """Whether it wants to be active and isn't."""
    if run.spec is None or run.status.is_finished or is_active(run):
        return False
    return not (run.spec.suspend or run.spec.cancel or run.missing_profile or run.metadata.deletion_timestamp)


def devices(run: Run) -> tuple[str, int]:
    """Which devices a run uses while it is active, and how many; none of "" without any."""
    assert run.spec is not None, "a run without a spec uses nothing"
    asked = run.spec.resources
    return asked.device_resource, asked.nodes * asked.devices_per_node if asked.device_resource else 0


def _place(run: Run) -> Place:
    assert run.spec is not None, "a run without a spec takes no part"
    resource, count = devices(run)
    return Place(
        minus_priority=-run.spec.queue.priority,
        created=run.metadata.creation_timestamp or _FIRST,
        key=run.key,
        uid=run.metadata.uid,
        resource=resource,
        devices=count,
    )
