"""The loop: observe, decide, apply, report.

Level-triggered: called at any time and any number of times, it comes to the same end. It never creates or ends anything
on the word of a cache that a fresh read could contradict.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Protocol

from finetune_api.status import FineTuneRunStatus
from finetune_operator import manifests, policy, status, waiting
from finetune_operator.errors import RefusedError, TakenError
from finetune_operator.names import Key
from finetune_operator.policy import Action, Decision
from finetune_operator.settings import Settings
from finetune_operator.world import ChildWarning, Run, World

log = logging.getLogger(__name__)

_REFUSED_RETRY_SECONDS = 15.0
_LATE_LOOK_SECONDS = 15.0


class Cluster(Protocol):
    """Where runs and their children live. `cluster` is Kubernetes, `local` this machine."""

    async def observe(self, key: Key, *, fresh: bool) -> World | None:
        """All that is known of a run, None if there is no such run; `fresh` reads it from the source."""

    async def warnings(self, world: World) -> tuple[ChildWarning, ...]:
        """What is wrong with the run's children."""

    async def create(self, run: Run, manifest: Mapping[str, Any]) -> None:
        """Create a child; nothing if it is there. Raises TakenError if the name is another's, RefusedError if the
        API server won't have it.
        """

    async def write_status(self, run: Run, new: FineTuneRunStatus) -> Run:
        """Replace the status of exactly the version that was read. Raises ConflictError or GoneError."""

    async def post_event(self, manifest: Mapping[str, Any]) -> None:
        """Post a Kubernetes Event, once. Never raises: the history in the status is the record."""


class Reconciler:
    """Brings one run to where it should be. Called with the same key by one worker at a time."""

    def __init__(self, cluster: Cluster, *, settings: Settings, clock: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._written: dict[Key, datetime] = {}

    async def __call__(self, key: Key) -> float | None:
        """One pass. Returns the seconds after which to look again even if nothing happens, None for no need.

        Raises TransientError for what is worth another try.
        """
        world = await self._cluster.observe(key, fresh=False)
        if world is None:
            self._written.pop(key, None)
            return None
        decision = policy.decide(world)
        if decision.action not in (Action.IGNORE, Action.REST, Action.FOLLOW):
            world = await self._cluster.observe(key, fresh=True)
            if world is None:
                return None
            decision = policy.decide(world)
        return await self._carry_out(world, decision)

    async def _carry_out(self, world: World, decision: Decision) -> float | None:
        refusal = await self._create(world) if decision.action == Action.CREATE else None
        now = self._clock()
        if waiting.is_late(world, settings=self._settings, now=now):
            world = world.with_warnings(await self._cluster.warnings(world))
        why = refusal or waiting.why(world, settings=self._settings, now=now)
        new = status.compute(world, decision, waiting=why, settings=self._settings, now=now)
        delay = await self._report(world.run, new)
        if refusal is not None:
            return _REFUSED_RETRY_SECONDS
        return delay or self._next_look(world, decision, now)

    async def _create(self, world: World) -> waiting.Waiting | None:
        """Create claim and Job. What the API server refuses is something to wait for, and to tell."""
        run = world.run
        assert run.spec is not None, "decide() refuses a run without a spec"
        try:
            if run.spec.storage.claim_name is None and world.claim is None:
                await self._cluster.create(run, manifests.claim(run))
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
            since = now - self._written.get(run.key, datetime.min.replace(tzinfo=now.tzinfo))
            left = self._settings.progress_write_seconds - since.total_seconds()
            if left > 0:
                return left
        written = await self._cluster.write_status(run, new)
        self._written[run.key] = now
        await self._tell(written, before=run.status)
        return None

    async def _tell(self, run: Run, *, before: FineTuneRunStatus) -> None:
        known = {event.sequence for event in before.events}
        for event in run.status.events:
            if event.sequence not in known:
                log.info("%s %s %s", run.key, event.type, event.message)
                await self._cluster.post_event(manifests.event(run, event))

    def _next_look(self, world: World, decision: Decision, now: datetime) -> float | None:
        """A run that should be training by now, and isn't, is looked at again: what it waits for sends no event."""
        if decision.action == Action.BEGIN:
            return 0.0  # recorded, and now to be created; one's own write sends no event
        if decision.action == Action.CREATE:
            return self._settings.queued_seconds
        if decision.action != Action.FOLLOW or world.job is None or (world.pod and world.pod.started):
            return None
        return (
            _LATE_LOOK_SECONDS
            if waiting.is_late(world, settings=self._settings, now=now)
            else self._settings.queued_seconds
        )
