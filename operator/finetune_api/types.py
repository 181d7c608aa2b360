"""The kinds of the API group `finetune.dev`, as the API server keeps them.

These models are the one source: the CRDs, the API reference and the constraint tests come from them.
"""

from datetime import datetime
from typing import ClassVar, Final, Literal

from pydantic import ConfigDict

from finetune_api.fields import ApiModel, Rule
from finetune_api.profile import ClusterFineTuneProfileSpec
from finetune_api.spec import FineTuneRunSpec
from finetune_api.status import FineTuneRunStatus

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION: Final = "finetune.dev/v1alpha1"
KIND: Final = "FineTuneRun"
PLURAL = "finetuneruns"
PROFILE_KIND: Final = "ClusterFineTuneProfile"
PROFILE_PLURAL = "clusterfinetuneprofiles"


class Metadata(ApiModel):
    """What this software reads of an object's metadata."""

    model_config = ConfigDict(extra="ignore")

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 1
    resource_version: str = ""
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None


class FineTuneRun(ApiModel):
    """A record of one training of a language model.

    Apply one, and the operator trains: it creates a claim for checkpoints and output, starts a Job, and reports
    progress, events and checkpoints in the status. What was trained stays when the run is deleted.
    """

    model_config = ConfigDict(extra="ignore")

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION
    kind: Literal["FineTuneRun"] = KIND
    metadata: Metadata
    spec: FineTuneRunSpec
    """What is to be trained. Immutable once created, except suspend, cancel, ttlSecondsAfterFinished,
    activeDeadlineSeconds and queue.priority."""
    status: FineTuneRunStatus = FineTuneRunStatus()
    """What has become of the run."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')",
            says="metadata.name must be a DNS label of at most 63 characters, e.g. support-bot",
            check=lambda run: len(run.metadata.name) <= 63 and "." not in run.metadata.name,
        ),
    )


class ClusterFineTuneProfile(ApiModel):
    """What a platform team offers to runs: devices, defaults and limits.

    A run names it in `spec.profile`. What the run leaves out comes from the profile; a run that asks for more than the
    profile allows is refused. A run that has begun keeps what it began with, whatever becomes of the profile.
    """

    model_config = ConfigDict(extra="ignore")

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION
    kind: Literal["ClusterFineTuneProfile"] = PROFILE_KIND
    metadata: Metadata
    spec: ClusterFineTuneProfileSpec
    """What is offered, what holds by default, and up to where."""
