"""What is wrong with a configuration, for the person who wrote it: each field by its path, and what would be right."""

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from finetune_api.fields import ApiModel, cut

MOST = 5
"""Mistakes that are told at once."""


def told(error: ValidationError, model: type[ApiModel]) -> str:
    """All mistakes, or the first of many."""
    found = error.errors(include_url=False)
    more = f"; and {len(found) - MOST} more" if len(found) > MOST else ""
    return "; ".join(_told(each, model) for each in found[:MOST]) + more


def unknown(name: str, known: Sequence[str]) -> str:
    """A field that isn't there, and which one may have been meant."""
    by_letters = {_letters(field): field for field in known}
    near = difflib.get_close_matches(_letters(name), by_letters, n=1, cutoff=0.6)
    return (
        f"unknown field; did you mean {by_letters[near[0]]}?"
        if near
        else f"unknown field; known are {', '.join(known)}"
    )


def fields_at(path: Sequence[int | str], model: type[ApiModel]) -> list[str]:
    """The fields of the object at a place in one of the model, as users write them."""
    for part in path:
        field = next((f for f in model.model_fields.values() if f.alias == part), None)
        if field is not None:
            model = next(_models(field.annotation), model)
    return [field.alias or name for name, field in model.model_fields.items()]


def _told(mistake: Mapping[str, Any], model: type[ApiModel]) -> str:
    location = mistake["loc"]
    path = ".".join(map(str, location)) or "the whole"
    match mistake["type"]:
        case "extra_forbidden":
            return f"{path}: {unknown(str(location[-1]), fields_at(location[:-1], model))}"
        case "missing":
            return f"{path}: is required"
        case _:
            return f"{path}: {mistake['msg']}{_given(mistake)}"


def _given(mistake: Mapping[str, Any]) -> str:
    """The value, where it is short and the sentence doesn't show it."""
    value = mistake.get("input")
    if not isinstance(value, str | int | float | bool) or str(value) in mistake["msg"]:
        return ""
    return f", not {cut(repr(value), 60)}"


def _letters(name: str) -> str:
    return name.replace("_", "").lower()


def _models(annotation: Any) -> Iterator[type[ApiModel]]:
    """The models of an annotation such as `Lora | None`."""
    if isinstance(annotation, type) and issubclass(annotation, ApiModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)
