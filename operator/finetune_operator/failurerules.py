"""The ends of a pod that its Job's own condition tells apart: its pod failure policy, written and read. Pure."""

import re

from finetune_api.snapshot import FINAL_CODES, ExitCode
from finetune_operator import kueue, names
from finetune_operator.names import Manifest
from finetune_operator.run import Run

DISRUPTION = "DisruptionTarget"
_ALL: tuple[ExitCode | str, ...] = (*sorted(FINAL_CODES), DISRUPTION, ExitCode.STOPPED, ExitCode.STORAGE)
"""By their place here. A Job without retries fails anyway; but its pod may be gone, as after an eviction, before the
operator sees how it ended.
"""


def of(run: Run) -> tuple[ExitCode | str, ...]:
    """Those of the run's Jobs. Under Kueue a pod that was stopped hasn't failed: its Job is suspended, and goes on."""
    queued = kueue.concerns(run.spec)
    return tuple(rule for rule in _ALL if not (queued and rule == ExitCode.STOPPED))


def named_by(message: str, *, rules: tuple[ExitCode | str, ...] = _ALL) -> ExitCode | str | None:
    """Which rule a Job's condition speaks of: the exit code that a pod ended with, or DISRUPTION."""
    found = re.search(r" matching FailJob rule at index (\d+)$", message)
    return rules[int(found[1])] if found and int(found[1]) < len(rules) else None


def manifest(rule: ExitCode | str) -> Manifest:
    """As the Job has it."""
    if not isinstance(rule, ExitCode):
        return {"action": "FailJob", "onPodConditions": [{"type": rule, "status": "True"}]}
    codes = {"containerName": names.TRAINER_CONTAINER, "operator": "In", "values": [rule.value]}
    return {"action": "FailJob", "onExitCodes": codes}
