"""A run under a ClusterFineTuneProfile: what the profile gives it, and what it doesn't allow. Pure; holds no I/O.

A profile is applied once, when the run's first attempt is recorded: what it gave is written down with that, as a part
of a spec, and is all that later attempts go by. What a run says comes first. It must never give what it doesn't allow.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import ValidationError

from finetune_api.profile import ClusterFineTuneProfileSpec
from finetune_api.spec import FineTuneRunSpec
from finetune_api.status import AppliedProfile
from finetune_api.types import Metadata
from finetune_operator import allowance
from finetune_operator.errors import UserError

Part = dict[str, Any]
"""Of a spec, as JSON."""
Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A profile, parsed; `gives` is the same as it was written."""

    metadata: Metadata
    spec: ClusterFineTuneProfileSpec
    gives: Mapping[str, Any]

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Read an object of the API server. Raises pydantic.ValidationError."""
        spec = body.get("spec") or {}
        return cls(
            metadata=Metadata.parse(body["metadata"]), spec=ClusterFineTuneProfileSpec.parse(spec), gives=dict(spec)
        )

    @property
    def name(self) -> str:
        """What runs call it."""
        return self.metadata.name

    def is_for(self, namespace: str) -> bool:
        """Whether runs of that namespace may name it."""
        return not self.spec.namespaces or namespace in self.spec.namespaces


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A spec under its profile: as it is carried out, or why it isn't."""

    spec: FineTuneRunSpec
    applied: AppliedProfile | None = None
    """What is to be recorded."""
    missing: str = ""
    """The profile that isn't there."""
    refused: tuple[UserError, ...] = ()
    """What the run asks for and the profile doesn't allow."""


def choose(spec: FineTuneRunSpec, profiles: Iterable[Profile], *, namespace: str) -> Profile | None:
    """The profile that the run names, or else the newest one that is for runs that name none."""
    if spec.profile is not None:
        return next((profile for profile in profiles if profile.name == spec.profile), None)
    general = [profile for profile in profiles if profile.spec.is_default and profile.is_for(namespace)]
    return max(general, key=lambda one: (str(one.metadata.creation_timestamp), one.name), default=None)


def apply(
    asked: FineTuneRunSpec, profiles: Iterable[Profile], *, written: Mapping[str, Any], namespace: str
) -> Outcome:
    """A spec under its profile; `asked` is what was `written`, parsed."""
    profile = choose(asked, profiles, namespace=namespace)
    if profile is None:
        return Outcome(spec=asked, missing=asked.profile or "")
    refused = tuple(allowance.of_the_profile(asked, profile.spec, name=profile.name, namespace=namespace))
    if refused:
        return Outcome(spec=asked, refused=refused)
    try:
        given = _given(written, profile.spec, profile.gives)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(("spec", *(str(part) for part in first["loc"])))
        return Outcome(spec=asked, refused=(UserError(where, f"{first['msg']}, with profile {profile.name}"),))
    spec = FineTuneRunSpec.parse(_over(written, given))
    generation = profile.metadata.generation
    text = json.dumps(given, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return Outcome(
        spec=spec,
        applied=AppliedProfile(name=profile.name, generation=generation, given=text),
        refused=tuple(allowance.of_the_limits(spec, profile.spec.limits, name=profile.name)),
    )


def restore(written: Mapping[str, Any], applied: AppliedProfile) -> Part:
    """The spec of a run that has begun. Raises ValueError if what was recorded can't be read."""
    return _over(written, json.loads(applied.given or "{}"))


def _given(written: Mapping[str, Any], profile: ClusterFineTuneProfileSpec, gives: Mapping[str, Any]) -> Part:
    """What the profile adds: what every run of it has, and of the defaults what the run doesn't say or rule out."""
    given: Part = {}
    for path, value in _musts(gives):
        _put(given, path, value)
    FineTuneRunSpec.parse(_over(written, given))
    defaults = _defaults(profile, gives)
    return _with(written, given, [(path, value) for path, value in defaults if _says_nothing(written, path)])


def _with(written: Mapping[str, Any], given: Part, wanted: Sequence[tuple[Path, Any]]) -> Part:
    """The defaults too, but for those that contradict what the run says, e.g. an adapter's for one that trains all
    weights. They are found by halves: mostly there are none.
    """
    more: Part = json.loads(json.dumps(given))
    for path, value in wanted:
        if _says_nothing(more, path):
            _put(more, path, value)
    if _obeys(written, more):
        return more
    if len(wanted) == 1:
        return given
    half = len(wanted) // 2
    return _with(written, _with(written, given, wanted[:half]), wanted[half:])


def _obeys(written: Mapping[str, Any], given: Part) -> bool:
    try:
        FineTuneRunSpec.parse(_over(written, given))
    except ValidationError:
        return False
    return True


def _musts(gives: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """What holds whatever the run says, of which it was seen that it contradicts none; its own labels stay beside."""
    for path, there in (
        (("resources", "nodeSelector"), bool(gives.get("nodeSelector"))),
        (("resources", "deviceResource"), "deviceResource" in gives),
        (("resources", "tolerations"), bool(gives.get("tolerations"))),
        (("resources", "priorityClassName"), bool(gives.get("priorityClassName"))),
    ):
        if there:
            yield path, gives[path[-1]]


def _defaults(profile: ClusterFineTuneProfileSpec, gives: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Each field for itself. After the profile's defaults what follows from its limits where the API's default is over
    them: the first that is said holds.
    """
    defaults = gives.get("defaults") or {}
    for section in ("method", "training", "checkpoint", "recovery", "resources"):
        yield from _leaves(defaults.get(section) or {}, (section,))
    yield from _leaves(defaults.get("claimTemplate") or {}, ("storage", "claimTemplate"))
    if defaults.get("mlflow"):
        yield ("tracking", "mlflow"), defaults["mlflow"]
    if profile.image:
        yield ("trainer", "image"), profile.image
    yield from allowance.defaults(profile.limits)


def _leaves(node: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Any]]:
    for name, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, name))
        elif value is not None:
            yield (*path, name), value


def _says_nothing(written: Mapping[str, Any], path: Path) -> bool:
    """Empty is nothing where it is the API's default: the image, a class."""
    at: Any = written
    for part in path:
        at = at.get(part) if isinstance(at, Mapping) else None
    return at is None or at == ""


def _put(part: Part, path: Path, value: Any) -> None:
    for name in path[:-1]:
        part = part.setdefault(name, {})
    part[path[-1]] = value


def _over(base: Mapping[str, Any], changes: Mapping[str, Any]) -> Part:
    """`base` with `changes`, object by object. Neither is altered."""
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        is_deeper = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = _over(below, value) if is_deeper else value  # type: ignore[arg-type] # both are mappings
    return result
