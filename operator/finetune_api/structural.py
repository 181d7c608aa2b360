"""A pydantic model as the structural schema that the API server wants.

No references, no null types, no titles; a rule for keys becomes a rule for their map. This module must never know a
particular field, and never hold a constraint of its own: those are in the models.
"""

import ast
import copy
import inspect
import itertools
import json
import textwrap
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

JsonObject = dict[str, Any]

_KEPT = (
    "type", "format", "enum", "default", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "maxProperties", "required", "x-kubernetes-int-or-string", "x-kubernetes-list-type", "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)  # fmt: skip


def schema_of(model: type[BaseModel]) -> JsonObject:
    """The structural schema of `model`."""
    full = model.model_json_schema(by_alias=True, schema_generator=_Generator)
    return _structural(full, full["$defs"])


class _Generator(GenerateJsonSchema):
    """pydantic's generator, with what an enum's values mean, and with defaults as the API server would fill them in."""

    def enum_schema(self, schema: core_schema.EnumSchema) -> JsonSchemaValue:
        return super().enum_schema(schema) | {"meanings": list(meanings(schema["cls"]).items())}

    def encode_default(self, dft: Any) -> Any:
        # `default: {}` is enough for an object: the API server goes on with the defaults inside it.
        if isinstance(dft, BaseModel):
            return dft.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return super().encode_default(dft)


def meanings(choices: type[Enum]) -> dict[str, str]:
    """What each value of an enum means, from the strings under its members (Python itself doesn't keep them)."""
    body = ast.parse(textwrap.dedent(inspect.getsource(choices))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for member, below in itertools.pairwise(body.body):
        match member, below:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(meaning))):
                found[str(choices[name].value)] = _flowing(meaning)
    return found


def _structural(node: Mapping[str, Any], defs: Mapping[str, Any]) -> JsonObject:
    """`node` as the API server wants it."""
    node = _resolved(node, defs)
    result: JsonObject = {"description": _description(node)} if "description" in node else {}
    result |= {key: copy.deepcopy(node[key]) for key in _KEPT if node.get(key) is not None}
    if "const" in node:
        result["enum"] = [node["const"]]
    if "properties" in node:
        result["properties"] = {name: _structural(child, defs) for name, child in node["properties"].items()}
    if "items" in node:
        result["items"] = _structural(node["items"], defs)
        result.setdefault("x-kubernetes-list-type", "atomic")
    if isinstance(node.get("additionalProperties"), Mapping):
        result["additionalProperties"] = _structural(node["additionalProperties"], defs)
    if "propertyNames" in node:
        result["x-kubernetes-validations"] = _key_rules(_resolved(node["propertyNames"], defs))
    return result


def _resolved(node: Mapping[str, Any], defs: Mapping[str, Any]) -> Mapping[str, Any]:
    """`node` with its reference and its "or null" replaced by what they stand for; what it says itself comes first."""
    while True:
        alternatives = [choice for choice in node.get("anyOf", ()) if choice != {"type": "null"}]
        if "$ref" in node:
            inner, outer = defs[node["$ref"].removeprefix("#/$defs/")], "$ref"
        elif len(alternatives) == 1:
            inner, outer = alternatives[0], "anyOf"
        else:
            return node
        node = {**inner, **{key: value for key, value in node.items() if key != outer}}


def _key_rules(names: Mapping[str, Any]) -> list[JsonObject]:
    """Rules for a map's keys, which a structural schema has no other place for."""
    limit = names["maxLength"]
    rules = [{"rule": f"self.all(key, size(key) <= {limit})", "message": f"keys must have at most {limit} characters"}]
    for rule in names.get("x-kubernetes-validations", ()):
        of_key = rule["rule"].replace("self.matches(", "key.matches(", 1)
        rules.append({"rule": f"self.all(key, {of_key})", "message": f"each key {rule['message']}"})
    return rules


def _description(node: Mapping[str, Any]) -> str:
    choices = [f"{value}: {meaning}" for value, meaning in node.get("meanings", ())]
    return "\n".join([_flowing(node["description"]), *choices])


def _flowing(text: str) -> str:
    """`text` without its source's line breaks; paragraphs stay."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def explained(node: Any) -> Any:
    """With each scalar default in the description, because `kubectl explain` shows it nowhere else."""
    if isinstance(node, list):
        return [explained(child) for child in node]
    if not isinstance(node, dict):
        return node
    result = {key: explained(child) for key, child in node.items()}
    if "description" in node and node.get("default") not in (None, "", [], {}) and "properties" not in node:
        result["description"] += f"\nDefault: {json.dumps(node['default']).strip(chr(34))}."
    return result


def without_defaults(node: Any) -> Any:
    """Without any default."""
    if isinstance(node, list):
        return [without_defaults(child) for child in node]
    if not isinstance(node, dict):
        return node
    return {key: without_defaults(child) for key, child in node.items() if key != "default"}


def left_open(node: JsonObject, path: Sequence[str]) -> JsonObject:
    """With no default for the fields of the object at `path`, so that one left out can be told from one that is given.

    Objects in it still begin as {}, so that a rule needs no has() for them; entries of lists keep their defaults.
    """
    fields = node["properties"]
    if path:
        return node | {"properties": fields | {path[0]: left_open(fields[path[0]], path[1:])}}
    return node | {"properties": {name: _open(child) for name, child in fields.items()}}


def _open(node: JsonObject) -> JsonObject:
    return left_open(node, ()) if "properties" in node else {key: node[key] for key in node if key != "default"}
