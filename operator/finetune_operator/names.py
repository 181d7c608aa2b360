"""Names, labels and keys of what the operator creates: one function each, and nowhere else.

Names are deterministic, so that a create that was already done answers 409 instead of making a second object. No
label or annotation of the run is ever copied to a child: GitOps tools would take the child for their own and prune it.
"""

import hashlib
from typing import NamedTuple

from finetune_api.types import GROUP

MANAGER = "finetune-operator"
"""Field manager, event source and value of the managed-by label."""

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
RUN_LABEL = f"{GROUP}/run"
ATTEMPT_LABEL = f"{GROUP}/attempt"
RUN_UID_ANNOTATION = f"{GROUP}/run-uid"
SELECTOR = f"{MANAGED_BY_LABEL}={MANAGER}"
"""Label selector of everything the operator creates."""

TRAINER_CONTAINER = "trainer"
_NAME_LIMIT = 63


class Key(NamedTuple):
    """Which run: a name may be used again, so `uid` in the objects decides whether it is still the same one."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def labels(run: str, *, attempt: int | None = None) -> dict[str, str]:
    """Labels of a child."""
    found = {MANAGED_BY_LABEL: MANAGER, RUN_LABEL: run}
    return found if attempt is None else found | {ATTEMPT_LABEL: str(attempt)}


def job(run: str, attempt: int) -> str:
    """The Job of one attempt."""
    return _fit(run, f"-{attempt}")


def claim(run: str, uid: str) -> str:
    """The claim created for a run. It outlives the run, so a later run of the same name gets another."""
    return _fit(run, f"-{uid[:8]}")


def event(run: str, uid: str, sequence: int) -> str:
    """The Kubernetes Event of one entry of the run's history."""
    return f"{run}.{uid[:8]}.{sequence}"


def _fit(run: str, suffix: str) -> str:
    """`run` + `suffix` within the limit of a label value; what is cut is replaced by a digest of the whole."""
    if len(run) + len(suffix) <= _NAME_LIMIT:
        return run + suffix
    digest = hashlib.sha256(run.encode()).hexdigest()[:8]
    return f"{run[: _NAME_LIMIT - len(suffix) - 9].rstrip('-')}-{digest}{suffix}"
