"""The building blocks of the API's models: the base model, formats and rules.

A rule is written once, with the sentence a user reads when it is broken, and holds in both places where a manifest is
checked: as CEL in the CRD, and in Python when a model is parsed. This module must never know a particular field.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A condition over several fields of one object.

    `cel` is what the API server evaluates, `check` the same condition in Python (None for transition rules, which
    compare with `oldSelf` and can't be judged from one object), `says` what the user reads, `path` the field it is
    about, relative to the object and in CEL's notation (".claimName").
    """

    cel: str
    says: str
    check: Callable[[Any], bool] | None = None
    path: str = ""

    def as_schema(self) -> dict[str, str]:
        """The entry of `x-kubernetes-validations`."""
        entry = {"rule": self.cel, "message": self.says}
        return entry | {"fieldPath": self.path, "reason": "FieldValueForbidden"} if self.path else entry


@dataclass(frozen=True)
class Format:
    """A string that matches `regex` (in RE2 and Python alike), or else the user reads `says`."""

    regex: str
    says: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        rule = Rule(cel=f"self.matches(r'{self.regex}')", says=self.says)
        return handler(schema) | {"x-kubernetes-validations": [rule.as_schema()]}

    def _check(self, value: str) -> str:
        if not re.fullmatch(self.regex, value, re.ASCII):
            raise PydanticCustomError("format", "{says}, not {value}", {"says": self.says, "value": repr(value[:80])})
        return value


@dataclass(frozen=True)
class WordOrInteger:
    """One certain word, or a whole number from `least` to `most`."""

    word: str
    least: int
    most: int

    @property
    def says(self) -> str:
        """What the user reads for anything else."""
        return f"must be {self.word} or a whole number from {self.least} to {self.most}"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        in_range = f"self >= {self.least} && self <= {self.most}"
        rule = Rule(cel=f"type(self) == int ? {in_range} : self == '{self.word}'", says=self.says)
        return {"x-kubernetes-int-or-string": True, "x-kubernetes-validations": [rule.as_schema()]}

    def _check(self, value: Any) -> Any:
        in_range = isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most
        if not in_range and value != self.word:
            raise PydanticCustomError("format", "{says}, not {value}", {"says": self.says, "value": repr(value)[:80]})
        return value


@dataclass(frozen=True)
class UniqueBy:
    """A list in which no two objects have the same `key`, so that server-side apply can merge them one by one."""

    key: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [self.key]}

    def _check(self, entries: tuple[Any, ...]) -> tuple[Any, ...]:
        if len({getattr(entry, self.key) for entry in entries}) < len(entries):
            raise PydanticCustomError("unique", "no two entries may have the same {key}", {"key": self.key})
        return entries


class ApiModel(BaseModel):
    """Base of all models: frozen, camelCase outside, snake_case inside, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
    )

    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obey_rules(self) -> "ApiModel":
        for rule in self.rules:
            if rule.check is not None and not rule.check(self):
                raise PydanticCustomError("rule", "{says}", {"says": rule.says, "path": rule.path})
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler.resolve_ref_schema(handler(schema))
        if cls.rules:
            found["x-kubernetes-validations"] = [rule.as_schema() for rule in cls.rules]
        return found

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Read an object as strictly as the API server does: no type becomes another, no field goes by its Python name.

        Raises pydantic.ValidationError.
        """
        return cls.model_validate_json(json.dumps(body, default=dict), strict=True, by_alias=True, by_name=False)

    def to_wire(self) -> dict[str, Any]:
        """The JSON object as users write it: camelCase, without what is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


_DNS = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"

NAME_PATTERN = rf"{_DNS}(\.{_DNS})*"
"""What the API server takes as the name of most objects (RFC 1123 subdomain)."""
_NAME_SAYS = "must be the name of a Kubernetes object: lower-case letters, digits, - and ., e.g. my-claim"

Name = Annotated[str, Field(max_length=253), Format(rf"^{NAME_PATTERN}$", _NAME_SAYS)]
"""Name of another object, in the same namespace if it has one: there is no way to name another namespace."""

NameOrEmpty = Annotated[str, Field(max_length=253), Format(rf"^({NAME_PATTERN})?$", f'{_NAME_SAYS}, or ""')]
"""As Name, or nothing."""

LabelName = Annotated[str, Field(max_length=63), Format(rf"^{NAME_PATTERN}$", _NAME_SAYS)]
"""Name of another object that must fit a label's value."""

_POSITIVE = r"([0-9]*[1-9][0-9]*(\.[0-9]+)?|[0-9]+\.[0-9]*[1-9][0-9]*)"

Cores = Annotated[
    str,
    Field(max_length=32),
    Format(rf"^{_POSITIVE}m?$", 'must be a number of CPU cores above 0, e.g. "8", "0.5" or 500m'),
]
"""An amount of CPU; kept as it was written, so that GitOps tools see no drift."""

Bytes = Annotated[
    str,
    Field(max_length=32),
    Format(rf"^{_POSITIVE}(k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$", "must be a number of bytes above 0, e.g. 64Gi or 500M"),
]
"""An amount of memory or storage; kept as it was written."""

Decimal = Annotated[str, Field(max_length=32)]
"""A number in a status, as text: Kubernetes APIs carry no floating-point numbers."""

Time = Annotated[datetime, AfterValidator(lambda time: time.astimezone(UTC).replace(microsecond=0))]
"""A moment, in UTC and to the second, as Kubernetes writes it."""

Message = Annotated[str, Field(max_length=1024)]
"""A sentence for people."""

_WORD = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"

LabelKey = Annotated[
    str,
    Field(max_length=317),
    Format(rf"^({NAME_PATTERN}/)?{_WORD}$", "must be the key of a label, e.g. kubernetes.io/arch"),
]
LabelValue = Annotated[
    str,
    Field(max_length=63),
    Format(rf"^({_WORD})?$", "must be the value of a label: letters, digits, -, _ and ., e.g. amd64"),
]


def cut(message: str, limit: int = 1024) -> str:
    """`message` in at most `limit` characters and without control characters, so that it fits a status field."""
    plain = "".join(char if char.isprintable() or char == "\n" else " " for char in message).strip()
    return plain if len(plain) <= limit else plain[: limit - 2].rstrip() + " …"
