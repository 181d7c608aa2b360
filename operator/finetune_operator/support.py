"""What the API has and this version does not do yet. A run that asks for it is refused; nothing is silently ignored.

When a field is built, its line here goes.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from finetune_api.fields import ApiModel, cut
from finetune_api.spec import FineTuneRunSpec
from finetune_operator.errors import UserError


class Gap(NamedTuple):
    """A field, what of it isn't built, and what to do instead."""

    field: str
    lacks: Callable[[Any], bool]
    instead: str


def _is_set(value: Any) -> bool:
    return value is not None and value != "" and value is not False


GAPS: tuple[Gap, ...] = (
    Gap("profile", _is_set, "remove it and set resources"),
    Gap("queue.name", _is_set, "remove it"),
    Gap("tracking.mlflow", _is_set, "remove it"),
    Gap("tracking.tensorBoard", _is_set, "use false"),
)


def gaps(spec: FineTuneRunSpec) -> Iterator[UserError]:
    """What this spec asks for and won't get."""
    for gap in GAPS:
        value = _value(spec, gap.field)
        if gap.lacks(value):
            shown = "" if isinstance(value, ApiModel) else f" {_shown(value)}"
            yield UserError(
                f"spec.{gap.field}", f"{_last(gap.field)}{shown} is not supported by this version: {gap.instead}"
            )


def _value(spec: FineTuneRunSpec, path: str) -> Any:
    value: Any = spec
    for part in path.split("."):
        if value is None:
            return None
        name = next(name for name, field in type(value).model_fields.items() if field.alias == part)
        value = getattr(value, name)
    return value


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else cut(str(value), 100)
