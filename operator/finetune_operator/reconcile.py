"""The loop: observe, decide, apply, report.

Level-triggered: called at any time and any number of times, it comes to the same end. It never creates or ends anything
on the word of a cache that a fresh read could contradict.
"""

import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from finetune_api.status import FineTuneRunStatus
from finetune_operator import due, kueue, manifests, policy, status, waiting
from finetune_operator.admission import Line
from finetune_operator.budget import Budget
from finetune_operator.children import Job, Pod
from finetune_operator.errors import RefusedError, TakenError
from finetune_operator.names import Key
from finetune_operator.policy import Action, Decision
from finetune_operator.run import Run
from finetune_operator.settings import Settings
from finetune_operator.world import ChildWarning, World

log = logging.getLogger(__name__)

_RETRY_SECONDS = 15.0
_ONLY_LOOK = frozenset({Action.IGNORE, Action.REST, Action.WAIT, Action.FOLLOW})
"""What needs no fresh read: nothing is created or ended by it."""


class Cluster(Protocol):
    """Where runs and their children live. `cluster` is Kubernetes, `local` this machine."""

    async def observe(self, key: Key, *, fresh: bool, now: datetime) -> World | None:
        """All that is known of a run, None if there is no such run; `fresh` reads it from the source."""

    async def warnings(self, world: World) -> tuple[ChildWarning, ...]:
        """What is wrong with the run's children."""

    async def workload(self, world: World) -> kueue.Workload | kueue.Silence:
        """What Kueue says of the newest attempt's Job."""

    async def create(self, run: Run, manifest: Mapping[str, Any]) -> None:
        """Create a child; nothing if it is there. Raises TakenError if the name is another's, RefusedError if the
        API server won't have it.
        """

    async def delete(self, run: Run, child: Job | Pod) -> None:
        """Delete exactly this child, with its pods, giving them their grace period; nothing if it is gone."""

    async def delete_run(self, run: Run) -> None:
        """Delete exactly the version of the run that was read. Raises ConflictError; nothing if it is gone."""

    async def write_status(self, run: Run, new: FineTuneRunStatus) -> Run:
        """Replace the status of exactly the version that was read. Raises ConflictError or GoneError."""

    async def post_event(self, manifest: Mapping[str, Any]) -> None:
        """Post a Kubernetes Event, once. Never raises: the history in the status is the record."""


class Boosts(Protocol):
    """Who tells Kueue which runs it had better not preempt."""

    async def keep(self, world: World, *, may_write: Callable[[], bool]) -> float | None:
        """Bring the run's boost to where it should be, and never raise for want of it; the seconds until it is due."""

    def forget(self, key: Key) -> None:
        """The run is gone."""


class Reconciler:
    """Brings one run to where it should be. Called with the same key by one worker at a time."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        line: Line,
        settings: Settings,
        clock: Callable[[], datetime],
        jitter: Callable[[], float] = random.random,
        changed: Callable[[FineTuneRunStatus, Run], None] = lambda *_: None,
        boosts: Boosts | None = None,
    ) -> None:
        self._cluster = cluster
        self._line = line
        self._settings = settings
        self._clock = clock
        self._jitter = jitter
        self._changed = changed
        self._boosts = boosts
        self._budget = Budget(per_second=settings.progress_writes_per_second, clock=clock)
        self._next_write: dict[Key, datetime] = {}

    async def __call__(self, key: Key) -> float | None:
        """One pass. Returns the seconds after which to look again even if nothing happens, None for no need.

        Raises TransientError for what is worth another try.
        """
        world = await self._observe(key, fresh=False)
        if world is None:
            return None
        decision = policy.decide(world)
        boost_due = await self._boost(world, decision)
        if decision.action not in _ONLY_LOOK and not _is_safe_unseen(world, decision):
            world = await self._observe(key, fresh=True)
            if world is None:
                return None
            decision = policy.decide(world)
        return _sooner(await self._carry_out(world, decision), boost_due)

    async def _boost(self, world: World, decision: Decision) -> float | None:
        """Before all else: Kueue may be about to let a run wait that had a boost while it ran."""
        if self._boosts is None or decision.action == Action.IGNORE:
            return None
        return await self._boosts.keep(world, may_write=self._budget.take)

    async def _observe(self, key: Key, *, fresh: bool) -> World | None:
        world = await self._cluster.observe(key, fresh=fresh, now=self._clock())
        if world is None:
            self._next_write.pop(key, None)
            if self._boosts is not None:
                self._boosts.forget(key)
            return None
        held = world.job is not None and world.job.suspended and kueue.concerns(world.run.spec)
        if held or world.evicted:
            world = replace(world, workload=await self._cluster.workload(world))
        return replace(world, turn=self._line.turn(world.run.metadata.uid))

    async def _carry_out(self, world: World, decision: Decision) -> float | None:
        if decision.action == Action.DELETE:
            await self._cluster.delete_run(world.run)
            return _RETRY_SECONDS  # for the case that it wasn't gone, whatever was answered
        if decision.action == Action.BEGIN:
            self._line.reserve(world.run.metadata.uid)
        refusal = await self._create(world) if decision.action == Action.CREATE else None
        if waiting.is_late(world, settings=self._settings):
            world = world.with_warnings(await self._cluster.warnings(world))
        why = refusal or waiting.why(world, settings=self._settings)
        new = status.compute(world, decision, waiting=why, settings=self._settings)
        delay = await self._report(world.run, new)
        if decision.action == Action.STOP:
            await self._stop(world)
        if refusal is not None:
            return _RETRY_SECONDS
        next_look = due.next_look(world, decision, settings=self._settings)
        if decision.action == Action.WAIT:
            return next_look  # thousands may wait, and their place is no reason to hurry
        return _sooner(delay, next_look)

    async def _stop(self, world: World) -> None:
        """End strays, or else the Job, whose pods go with it; without one, the pods that were left over."""
        current = (world.job,) if world.job is not None and not world.job.ended else ()
        jobs = world.strays or current
        for job in jobs:
            if not job.deleted:
                await self._cluster.delete(world.run, job)
        if jobs:
            return
        for pod in world.live_pods:
            if pod.deletion is None:
                await self._cluster.delete(world.run, pod)

    async def _create(self, world: World) -> waiting.Waiting | None:
        """Create claim, Service and Job. What the API server refuses is something to wait for, and to tell."""
        run = world.run
        assert run.spec is not None, "decide() refuses a run without a spec"
        try:
            if run.spec.storage.claim_name is None and world.claim is None:
                await self._cluster.create(run, manifests.claim(run))
            service = manifests.service(run)
            if service is not None:
                await self._cluster.create(run, service)
            await self._cluster.create(run, manifests.job(run, attempt=world.attempt, settings=self._settings))
        except (RefusedError, TakenError) as error:
            log.warning("cannot create the children of %s: %s", run.key, error)
            return waiting.refused(error)
        return None

    async def _report(self, run: Run, new: FineTuneRunStatus) -> float | None:
        """Write the status if it says something new; progress alone waits its turn. Returns the seconds to wait."""
        if new == run.status:
            return None
        now = self._clock()
        if status.material(new) == status.material(run.status):
            due_at = self._next_write.get(run.key)
            left = (due_at - now).total_seconds() if due_at else 0.0
            if left > 0:
                return left
            if not self._budget.take():
                return self._pause_between_writes()
        written = await self._cluster.write_status(run, new)
        self._next_write[run.key] = now + timedelta(seconds=self._pause_between_writes())
        self._changed(run.status, written)
        await self._tell(written, before=run.status)
        return None

    def _pause_between_writes(self) -> float:
        """Jittered, so that runs that began together don't write together."""
        return self._settings.progress_write_seconds * (0.9 + 0.2 * self._jitter())

    async def _tell(self, run: Run, *, before: FineTuneRunStatus) -> None:
        known = {event.sequence for event in before.events}
        for event in run.status.events:
            if event.sequence not in known:
                log.info("%s %s %s", run.key, event.type, event.message)
                await self._cluster.post_event(manifests.event(run, event))


def _sooner(*delays: float | None) -> float | None:
    return min((seconds for seconds in delays if seconds is not None), default=None)


def _is_safe_unseen(world: World, decision: Decision) -> bool:
    """The record of a first attempt says nothing of children, and is taken only for the version that was read."""
    return decision.action == Action.BEGIN and world.attempt == 0
