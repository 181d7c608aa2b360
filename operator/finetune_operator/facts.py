"""What a status follows from, and what several of its parts ask of it. Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetune_api.status import FineTuneRunStatus, Progress
from finetune_operator import progress
from finetune_operator.policy import Action, Decision
from finetune_operator.run import paused
from finetune_operator.settings import Settings
from finetune_operator.waiting import Waiting
from finetune_operator.world import World

ENDS = frozenset({Action.REFUSE, Action.SUCCEED, Action.FAIL, Action.CANCEL})
"""Actions with which a run has ended."""


@dataclass(frozen=True)
class Facts:
    """All that a status follows from; `waiting` is None for a run that ends."""

    world: World
    decision: Decision
    waiting: Waiting | None
    settings: Settings

    @property
    def now(self) -> datetime:
        """When the world was looked at."""
        return self.world.now

    @property
    def old(self) -> FineTuneRunStatus:
        """The status so far."""
        return self.world.run.status

    @property
    def attempt(self) -> int:
        """Number of the newest attempt after this."""
        return self.old.attempt + (1 if self.decision.action == Action.BEGIN else 0)

    @property
    def ends(self) -> bool:
        """Whether the run has ended with this decision."""
        return self.decision.action in ENDS

    @property
    def attempt_ends(self) -> bool:
        """Whether the newest attempt is over with this decision."""
        return self.ends or self.decision.action in (Action.BEGIN, Action.PAUSE)

    @property
    def rests(self) -> bool:
        """Whether the run is paused, also while something is left over of it."""
        stays = self.decision.action == Action.STOP and paused(self.world.run)
        return stays or self.decision.action == Action.PAUSE

    @property
    def running(self) -> bool:
        """From the pod's start to the attempt's end, also while the pod is gone and its Job hasn't ended yet."""
        started = self.world.all_started if self.world.pod else self.world.started
        follows = self.decision.action in (Action.FOLLOW, Action.STOP)
        return follows and not self.rests and started is not None

    @property
    def progress(self) -> Progress | None:
        """How far the training is."""
        snapshot = self.world.newest_snapshot
        found = progress.fold(self.old.progress, snapshot) if snapshot else self.old.progress
        if found is None:
            return None
        update: dict[str, Any] = {"stale": self._is_stale(found)}
        if self.attempt_ends:
            update |= {"eta_seconds": None, "eta": ""}
        if self.decision.action == Action.SUCCEED:
            update |= {"percent": 100, "done": "100%"}
        return found.model_copy(update=update)

    def _is_stale(self, found: Progress) -> bool:
        if self.attempt_ends or not self.running or found.reported_time is None:
            return False
        return (self.now - found.reported_time).total_seconds() > self.settings.stale_seconds
