"""Whether a training hangs: no step for a long time, and a second sign, since a slow one is none. Pure.

Told from one answer of the trainer by its own clock, so that neither a late poll nor a clock that differs makes a hang.
What doesn't answer gives no second sign: it isn't called hung, its progress counts as stale.
"""

from datetime import timedelta

from finetune_api.snapshot import EventType
from finetune_operator.world import World

IDLE = 0.05
"""A device, or one CPU core, that was busy for less than this share of the last minute does nothing."""


def why(world: World, *, timeout: timedelta) -> str | None:
    """What shows that the newest attempt hangs, the same words as long as it does; None if that doesn't show."""
    if world.pod is None or world.pod.ended or world.live_snapshot is None:
        return None
    said = world.live_snapshot
    progress = said.progress
    over = any(milestone.type == EventType.TRAIN_FINISHED for milestone in said.milestones)
    if progress is None or progress.last_step_time is None or over:
        return None
    if said.time - progress.last_step_time < timeout:
        return None
    sign = None
    if progress.device_utilization is not None and progress.device_utilization < IDLE:
        sign = "the device is idle"
    elif progress.cpu_utilization is not None and progress.cpu_utilization < IDLE:
        sign = "the trainer uses no CPU"
    since = progress.last_step_time.strftime("%Y-%m-%d %H:%M:%S UTC")
    return sign and f"No step since batch {progress.batch} at {since}, and {sign}"
