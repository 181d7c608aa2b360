"""A FineTuneRun as the operator knows it: its metadata, what it asks for under its profile, and its status."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from pydantic import ValidationError

from finetune_api.data import Task
from finetune_api.fields import cut
from finetune_api.spec import FineTuneRunSpec
from finetune_api.status import AppliedProfile, ConditionStatus, ConditionType, FineTuneRunStatus
from finetune_api.types import Metadata
from finetune_operator import profiles
from finetune_operator.errors import UserError
from finetune_operator.names import Key
from finetune_operator.profiles import Profile


@dataclass(frozen=True, kw_only=True)
class Run:
    """A FineTuneRun, parsed part by part: a spec that can't be read still has a status to say so in."""

    metadata: Metadata
    spec: FineTuneRunSpec | None
    """As it is carried out, under its profile."""
    problem: UserError | None
    status: FineTuneRunStatus
    written: Mapping[str, Any] = field(default_factory=dict)
    """The spec of a run that hasn't begun, as its user wrote it."""
    asked: FineTuneRunSpec | None = None
    """The same, parsed."""
    profile: AppliedProfile | None = None
    """The profile that is applied."""
    missing_profile: str = ""
    """The profile that the run names and that isn't there."""
    not_allowed: tuple[UserError, ...] = ()
    """What the run asks for and its profile doesn't allow."""

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Read an object of the API server. Raises pydantic.ValidationError if metadata or status can't be read."""
        spec, problem = None, None
        status = FineTuneRunStatus.parse(body.get("status") or {})
        written = body.get("spec") or {}
        try:
            effective = profiles.restore(written, status.profile) if status.profile else written
            spec = FineTuneRunSpec.parse(effective)
        except ValidationError as error:
            problem = _first_problem(error)
        except (ValueError, AttributeError, TypeError) as error:
            problem = UserError("status.profile.given", f"can't be read: {cut(str(error), 300)}")
        return cls(
            metadata=Metadata.parse(body["metadata"]),
            spec=spec,
            problem=problem,
            status=status,
            written=written if status.attempt == 0 else {},
            asked=spec if status.attempt == 0 else None,
            profile=status.profile,
        )

    def under(self, offered: Iterable[Profile]) -> Self:
        """The same under its profile as that is now; a run that has begun keeps what it began with."""
        if self.asked is None or self.status.is_finished:
            return self
        found = profiles.apply(self.asked, offered, written=self.written, namespace=self.metadata.namespace)
        return replace(
            self,
            spec=found.spec,
            profile=found.applied,
            missing_profile=found.missing,
            not_allowed=found.refused,
        )

    @property
    def key(self) -> Key:
        """Which run this is."""
        return Key(self.metadata.namespace, self.metadata.name)

    @property
    def valid_spec(self) -> FineTuneRunSpec:
        """Its spec, for what is only done for a run that has one that can be read."""
        assert self.spec is not None, "a run without a spec is refused before anything is built for it"
        return self.spec

    @property
    def is_custom(self) -> bool:
        """Whether it runs its user's command."""
        return self.valid_spec.task == Task.CUSTOM


def paused(run: Run) -> bool:
    """Whether it is recorded that a run is paused: no attempt is under way, and another one must begin."""
    condition = run.status.condition(ConditionType.SUSPENDED)
    return condition is not None and condition.status == ConditionStatus.TRUE


def _first_problem(error: ValidationError) -> UserError:
    first = error.errors(include_url=False)[0]
    about = first.get("ctx", {}).get("path", "")  # of a rule over several fields
    return UserError(".".join(("spec", *(str(part) for part in first["loc"]))) + about, cut(first["msg"], 500))
