"""The API reference, docs/api.md: every field with its type, default, limits and meaning, written from the CRD.

It must never say anything that the CRD doesn't.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Node = Mapping[str, Any]

_INTRODUCTION = """\
<!-- Written by `make generate` from operator/finetune_api; change the models, not this file. -->
# {kind}

`apiVersion: {group}/{version}`, `kind: {kind}`; {scope}; `kubectl get {short}`, `kubectl explain {short}.spec`.

{description}

A field in **bold** has to be given. A field without a default may be left out, and its text says what that means.
{selectable}"""


def markdown(crd: Node, root: Node) -> str:
    """The whole page: `crd` for the names, `root` for the fields."""
    spec = crd["spec"]
    (version,) = spec["versions"]
    introduction = _INTRODUCTION.format(
        kind=spec["names"]["kind"],
        group=spec["group"],
        version=version["name"],
        short=spec["names"]["shortNames"][0],
        description=root["description"],
        scope={"Namespaced": "namespaced", "Cluster": "for the whole cluster"}[spec["scope"]],
        selectable=_selectable(version),
    )
    parts = [introduction, *_rules(root)]
    for name in ("spec", "status"):
        if name not in root["properties"]:
            continue
        parts.extend(_section(node, path=path) for path, node in objects(root["properties"][name], path=name))
    return "\n".join(parts)


def _selectable(version: Node) -> str:
    fields = [f"`{field['jsonPath'].removeprefix('.')}`" for field in version.get("selectableFields", ())]
    return f"Fields that may select: {', '.join(fields)}.\n" if fields else ""


def objects(node: Node, *, path: str) -> Iterator[tuple[str, Node]]:
    """The object at `path` and those inside it, each before its own; a list's path ends with []."""
    if "properties" in node:
        yield path, node
        for name, child in node["properties"].items():
            yield from objects(child, path=f"{path}.{name}")
    elif "items" in node:
        yield from objects(node["items"], path=f"{path}[]")


def _section(node: Node, *, path: str) -> str:
    required = node.get("required", ())
    rows = [
        _row(child, name=name, path=f"{path}.{name}", is_required=name in required)
        for name, child in node["properties"].items()
    ]
    table = ["| Field | Type | Default | Limits | Meaning |", "| --- | --- | --- | --- | --- |", *rows]
    return "\n".join([f"## {path}", "", node.get("description", ""), "", *table, "", *_rules(node)])


def _row(node: Node, *, name: str, path: str, is_required: bool) -> str:
    field = f"**`{name}`**" if is_required else f"`{name}`"
    meaning, *choices = node.get("description", "").split("\n")
    named = [re.sub(r"^(\w+): ", r"`\1`: ", choice) for choice in choices]
    cells = (field, _type(node, path=path), _default(node), _limits(node), "<br>".join([meaning, *named]))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(node: Node, *, path: str) -> str:
    match node:
        case {"x-kubernetes-int-or-string": True}:
            name = "integer or string"
        case {"format": "date-time"}:
            name = "time"
        case {"additionalProperties": {"type": kind}}:
            name = f"map of {kind}s"
        case {"items": {"type": kind}}:
            name = f"list of {kind}s"
        case {"type": kind}:
            name = kind
        case _:
            raise ValueError(f"{path} has no type")
    has_section = "properties" in node or "properties" in node.get("items", {})
    return f"[{name}](#{re.sub('[^a-z0-9]', '', path.lower())})" if has_section else name


def _default(node: Node) -> str:
    if "default" not in node or "properties" in node:
        return ""
    default = node["default"]
    return f"`{default}`" if default and isinstance(default, str) else f"`{json.dumps(default)}`"


def _limits(node: Node) -> str:
    said = [_without_must(rule["message"]) for rule in node.get("x-kubernetes-validations", ())]
    if "properties" in node:
        said = []
    said.extend(_numbers(node))
    if "items" in node and "properties" not in node["items"]:
        said.extend(f"each: {limit}" for limit in [_limits(node["items"])] if limit)
    if "additionalProperties" in node:
        said.extend(f"each value: {limit}" for limit in [_limits(node["additionalProperties"])] if limit)
    return "; ".join(said)


def _without_must(message: str) -> str:
    return message.removeprefix("must be ").replace(" must be ", ": ").replace(" must have ", ": ")


def _numbers(node: Node) -> Iterator[str]:
    for least, most, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " entries"),
        ("minProperties", "maxProperties", " entries"),
    ):
        if least in node and most in node:
            yield f"{node[least]} to {node[most]}{unit}"
        elif most in node:
            yield f"at most {node[most]}{unit}"
    if "enum" in node and "\n" not in node.get("description", ""):
        yield "one of " + ", ".join(f"`{value}`" for value in node["enum"])


def _rules(node: Node) -> Sequence[str]:
    """What must hold between the fields of an object; that the spec can't change is said in its description."""
    rules = [rule for rule in node.get("x-kubernetes-validations", ()) if "oldSelf" not in rule["rule"]]
    lines = [f"- {_about(rule)}{rule['message']}." for rule in rules]
    return [*lines, ""] if lines else []


def _about(rule: Mapping[str, str]) -> str:
    return f"`{rule['fieldPath'].removeprefix('.')}`: " if "fieldPath" in rule else ""
