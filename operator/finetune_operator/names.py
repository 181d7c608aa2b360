"""Names, labels and keys of what the operator creates: one function each, and nowhere else.

Names are deterministic, so that a create that was already done answers 409 instead of making a second object. No
label or annotation of the run is ever copied to a child: GitOps tools would take the child for their own and prune it.
"""

import hashlib
from typing import Any, NamedTuple

from finetune_api.types import GROUP

Manifest = dict[str, Any]
"""An object of the API server's, or a part of one, as it is sent."""

MANAGER = "finetune-operator"
"""Field manager, event source and value of the managed-by label."""

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
RUN_LABEL = f"{GROUP}/run"
ATTEMPT_LABEL = f"{GROUP}/attempt"
RUN_UID_ANNOTATION = f"{GROUP}/run-uid"
SELECTOR = f"{MANAGED_BY_LABEL}={MANAGER}"
"""Label selector of everything the operator creates."""

INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
"""By which Kubernetes numbers the pods of an Indexed Job."""
SERVICE_LABEL = f"{GROUP}/service"
"""Of the pods of a run on several nodes: the Service in which they have names."""

TRAINER_CONTAINER = "trainer"
_NAME_LIMIT = 63
_INDEX_ROOM = 5
"""A Job's pods are hosts named after it and their index, up to -1023."""


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
    return _fit(run, f"-{attempt}", limit=_NAME_LIMIT - _INDEX_ROOM)


def claim(run: str, uid: str) -> str:
    """The claim created for a run. It outlives the run, so a later run of the same name gets another."""
    return _fit(run, f"-{uid[:8]}")


def service(uid: str) -> str:
    """The headless Service of a run on several nodes; a Service's name begins with a letter."""
    return f"finetune-{uid[:8]}"


def event(run: str, uid: str, sequence: int) -> str:
    """The Kubernetes Event of one entry of the run's history."""
    return f"{run}.{uid[:8]}.{sequence}"


def _fit(run: str, suffix: str, *, limit: int = _NAME_LIMIT) -> str:
    """`run` + `suffix` within a limit, of a label value or less; what is cut is replaced by a digest of the whole."""
    if len(run) + len(suffix) <= limit:
        return run + suffix
    digest = hashlib.sha256(run.encode()).hexdigest()[:8]
    return f"{run[: limit - len(suffix) - 9].rstrip('-')}-{digest}{suffix}"
