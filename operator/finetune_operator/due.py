"""When a run is to be looked at again though nothing happens to it: what is due by the clock sends no event. Pure."""

from collections.abc import Iterator
from datetime import timedelta

from finetune_operator import failures, kueue, policy, waiting
from finetune_operator.policy import Action, Decision
from finetune_operator.settings import Settings
from finetune_operator.world import World

LATE_LOOK_SECONDS = 15.0
"""Between two looks at an attempt that should run by now."""
_LONGEST_SECONDS = 86_400.0
_NEAR_SECONDS, _FAR_SECONDS = 10, 600
_A_MOMENT = 0.05


def next_look(world: World, decision: Decision, *, settings: Settings) -> float | None:
    """Seconds, None for no need."""
    return min(_reasons(world, decision, settings), default=None)


def _reasons(world: World, decision: Decision, settings: Settings) -> Iterator[float]:
    match decision.action:
        case Action.BEGIN:
            yield 0.0  # recorded, and now to be created; one's own write sends no event
        case Action.FOLLOW if failures.is_early(decision.failure):
            yield 0.0  # likewise
        case Action.REFUSE | Action.SUCCEED | Action.FAIL | Action.CANCEL if policy.has_time_to_live(world):
            yield 0.0  # likewise, to learn when the run is to be deleted
        case Action.CREATE | Action.STOP:
            yield settings.queued_seconds
        case Action.WAIT:
            yield float(min(max(world.turn.position or 0, _NEAR_SECONDS), _FAR_SECONDS))
        case Action.REST:
            yield from _seconds(policy.expires(world))
        case Action.FOLLOW:
            yield from _while_it_runs(world, settings)


def _while_it_runs(world: World, settings: Settings) -> Iterator[float]:
    if world.job is not None and world.job.suspended and world.job.created is not None:
        yield kueue.pause(waited=world.now - world.job.created).total_seconds()
    elif world.started is None and world.job is not None and not world.job.ended:
        late = waiting.is_late(world, settings=settings)
        yield LATE_LOOK_SECONDS if late else settings.queued_seconds
    if world.started is not None:
        yield from _seconds(policy.time_left(world))
    if any(pod.deletion for pod in world.live_pods):
        yield LATE_LOOK_SECONDS


def _seconds(left: timedelta | None) -> Iterator[float]:
    if left is not None:
        yield min(max(left.total_seconds(), 0.0) + _A_MOMENT, _LONGEST_SECONDS)
