"""Every constraint of a CRD, found by walking its schema, with a manifest that obeys it and one that doesn't.

Bounds, types, enums and required fields give their own values. Formats and rules have rows in constraint_rows.py; a new
one without a row fails a test, and so does a row without one.
"""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests import builders, constraint_rows, profile_rows
from tests.constraint_rows import SPEC, STATUS

Node = Mapping[str, Any]
Object = dict[str, Any]

CONTEXTS = {**constraint_rows.CONTEXTS, **profile_rows.CONTEXTS}
FORMATS = {**constraint_rows.FORMATS, **profile_rows.FORMATS}
RULES = {**constraint_rows.RULES, **profile_rows.RULES}
LONGER = {**constraint_rows.LONGER, **profile_rows.LONGER}
SHORT_FORMATS = constraint_rows.SHORT_FORMATS | profile_rows.SHORT_FORMATS
RUN, PROFILE = ("spec", "status"), ("profile",)
"""What the paths of a kind begin with."""

WRONG_TYPE = {"string": 7, "integer": "x", "number": "x", "boolean": "yes", "object": "x", "array": "x"}


@dataclass(frozen=True)
class Case:
    """One constraint: a manifest that obeys it, one that doesn't, and the words that the rejection must hold."""

    name: str
    accepted: Object
    rejected: Object
    words: tuple[str, ...]
    ours: str = ""
    """The sentence, if it is one of the models' and not the API server's."""

    @property
    def is_status(self) -> bool:
        """Whether it is about the status."""
        return self.name.startswith("status")


def cases(schema: Node, roots: Sequence[str] = RUN) -> Iterator[Case]:
    """A case for every constraint below the roots, several for formats."""
    for name in roots:
        for path, node in fields(schema["properties"][_field(name)], path=name):
            yield from _cases_of(path, node)


def _field(root: str) -> str:
    return "spec" if root == "profile" else root


def fields(node: Node, *, path: str) -> Iterator[tuple[str, Node]]:
    """Every field, `[]` for a list's entries and `{}` for a map's values, each before what is inside it."""
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from fields(child, path=f"{path}.{name}")
    if "items" in node:
        yield from fields(node["items"], path=f"{path}[]")
    if "additionalProperties" in node:
        yield from fields(node["additionalProperties"], path=f"{path}{{}}")


def formats(schema: Node, root: str = "spec") -> set[str]:
    """Fields whose value, or whose keys, have a format of their own."""
    found = fields(schema["properties"]["spec"], path=root)
    return {path for path, node in found if any(map(_is_format, rules(node)))}


def object_rules(schema: Node, root: str = "spec") -> set[tuple[str, str]]:
    """Objects, and the field that each of their rules is about."""
    found = fields(schema["properties"]["spec"], path=root)
    return {(path, rule["fieldPath"]) for path, node in found for rule in rules(node) if "fieldPath" in rule}


def rules(node: Node) -> list[Mapping[str, str]]:
    """The rules of a node that a single object can be judged by."""
    return [rule for rule in node.get("x-kubernetes-validations", ()) if "oldSelf" not in rule["rule"]]


def _is_format(rule: Mapping[str, str]) -> bool:
    return "fieldPath" not in rule and not _key_limit(rule)


def _key_limit(rule: Mapping[str, str]) -> int:
    found = re.fullmatch(r"keys must have at most (\d+) characters", rule["message"])
    return int(found[1]) if found else 0


def manifest(path: str = "spec", value: Any = ...) -> Object:
    """The full manifest with `value` at `path`; None removes the field."""
    context = next((more for prefix, more in CONTEXTS.items() if path.startswith(prefix)), {})
    if path.startswith("profile"):
        body = builders.profile("constraints", **builders.merged(profile_rows.SPEC, context))
    else:
        body = builders.run("constraints", **builders.merged(SPEC, context)) | {"status": copy.deepcopy(STATUS)}
    if value is not ...:
        _put(body, path, value)
    return body


def _put(body: Object, path: str, value: Any) -> None:
    """Set the field; in a list that is its first entry, in a map the value of its first key."""
    *parents, last = _parts(path)
    at: Any = body
    for part in parents:
        at = at[_key(at, part)]
    if value is None:
        del at[last]
    else:
        at[_key(at, last)] = value


def _key(at: Any, part: str) -> Any:
    return {"[]": 0, "{}": next(iter(at), "")}.get(part, part)


def value_at(body: Object, path: str) -> Any:
    """What is there."""
    at: Any = body
    for part in _parts(path):
        at = at[_key(at, part)]
    return at


def _parts(path: str) -> list[str]:
    first, *rest = re.findall(r"[^.\[\]{}]+|\[\]|\{\}", path)
    return [_field(first), *rest]


def shown(path: str) -> str:
    """The path as the API server writes it, up to where it would name an entry."""
    root, dot, rest = re.split(r"\[\]|\{\}", path)[0].partition(".")
    return f"{_field(root)}{dot}{rest}"


def _cases_of(path: str, node: Node) -> Iterator[Case]:
    yield from _type_case(path, node)
    yield from (case for key, make in _BOUNDS.items() if key in node for case in make(path, node))
    for name in node.get("required", ()):
        if "." in path:  # at the root the list of fields is all that is required, and below it each is tried
            yield Case(f"{path}.{name} required", manifest(path), manifest(f"{path}.{name}", None), ("Required value",))
    for rule in rules(node):
        if "fieldPath" in rule:
            yield _rule_case(path, rule)
        elif limit := _key_limit(rule):
            yield from _key_length(path, limit, says=rule["message"])
        else:
            yield from _format_cases(path, says=rule["message"])


def _type_case(path: str, node: Node) -> Iterator[Case]:
    if "x-kubernetes-int-or-string" in node:
        return _case(path, "type", "Auto", 1.5, "must be of type integer,string")
    if "." not in path:
        return iter(())
    kind = node.get("format", node["type"])
    return _case(path, "type", value_at(manifest(path), path), WRONG_TYPE[node["type"]], f"must be of type {kind}")


def _case(path: str, kind: str, accepted: Any, rejected: Any, *words: str, ours: str = "") -> Iterator[Case]:
    yield Case(f"{path} {kind}", manifest(path, accepted), manifest(path, rejected), (shown(path), *words), ours)


def _minimum(path: str, node: Node) -> Iterator[Case]:
    least = node["minimum"]
    below = least - 1 if node["type"] == "integer" else least - 0.0001
    return _case(path, "minimum", least, below, f"should be greater than or equal to {least}")


def _maximum(path: str, node: Node) -> Iterator[Case]:
    most = node["maximum"]
    above = most + 1 if node["type"] == "integer" else most + 0.0001
    return _case(path, "maximum", most, above, "should be less than or equal to")


def _min_length(path: str, node: Node) -> Iterator[Case]:
    assert node["minLength"] == 1
    return _case(path, "minLength", "a", "", "should be at least 1 chars long")


def _max_length(path: str, node: Node) -> Iterator[Case]:
    sample, most = value_at(manifest(path), path), node["maxLength"]
    accepted = sample if path in SHORT_FORMATS else _longer(path, sample, length=most)
    rejected = _longer(path, sample, length=most + 1)
    return _case(path, "maxLength", accepted, rejected, f"may not be more than {most} bytes")


def _longer(path: str, text: str, *, length: int) -> str:
    return LONGER[path](text, length) if path in LONGER else text.ljust(length, "a")


def _min_items(path: str, node: Node) -> Iterator[Case]:
    assert node["minItems"] == 1
    return _case(path, "minItems", value_at(manifest(path), path), [], "should have at least 1 items")


def _max_items(path: str, node: Node) -> Iterator[Case]:
    sample, most = value_at(manifest(path), path)[0], node["maxItems"]
    is_object = isinstance(sample, dict)
    entries: list[Any] = [_numbered(sample, node, at=n) if is_object else sample for n in range(most + 1)]
    # Where the key is an enum, as of conditions, its values are fewer than the limit.
    accepted = [entry for entry in entries[:most] if not isinstance(entry, dict) or _has_known_key(entry, node)]
    return _case(path, "maxItems", accepted, entries, f"must have at most {most} items")


def _numbered(sample: Object, node: Node, *, at: int) -> Object:
    """An entry unlike the others in what the list goes by."""
    changed: dict[str, Any] = {}
    for key in node.get("x-kubernetes-list-map-keys", ()):
        field = node["items"]["properties"][key]
        words = [*field.get("enum", ()), *(f"x{n}" for n in range(at + 1))]
        changed[key] = at + 1 if field["type"] == "integer" else words[at]
    return sample | changed


def _has_known_key(entry: Object, node: Node) -> bool:
    keys = node.get("x-kubernetes-list-map-keys", ())
    return all(entry[key] in node["items"]["properties"][key].get("enum", [entry[key]]) for key in keys)


def _max_properties(path: str, node: Node) -> Iterator[Case]:
    most = node["maxProperties"]
    entries = {f"k{n}": "v" for n in range(most + 1)}
    accepted = {key: entries[key] for key in list(entries)[:most]}
    return _case(path, "maxProperties", accepted, entries, f"must have at most {most} items")


def _enum(path: str, node: Node) -> Iterator[Case]:
    wrong = 5 if node["type"] == "integer" else "nonsense"
    words = ("Unsupported value", *(f'"{value}"' for value in node["enum"]))
    return _case(path, "enum", value_at(manifest(path), path), wrong, *words)


def _date_time(path: str, node: Node) -> Iterator[Case]:
    return _case(path, "date-time", "2026-01-02T03:04:05.678901Z", "yesterday", "must be of type date-time")


def _unique(path: str, node: Node) -> Iterator[Case]:
    (entry,) = value_at(manifest(path), path)
    if node["x-kubernetes-list-type"] == "map":
        yield from _case(path, "unique", [entry], [entry, entry], "Duplicate value")


_BOUNDS: Mapping[str, Callable[[str, Node], Iterator[Case]]] = {
    "minimum": _minimum,
    "maximum": _maximum,
    "minLength": _min_length,
    "maxLength": _max_length,
    "minItems": _min_items,
    "maxItems": _max_items,
    "maxProperties": _max_properties,
    "enum": _enum,
    "format": _date_time,
    "x-kubernetes-list-map-keys": _unique,
}
ANNOTATIONS = frozenset(
    {
        "description", "type", "default", "properties", "items", "additionalProperties", "required",
        "x-kubernetes-list-type", "x-kubernetes-int-or-string", "x-kubernetes-validations",
    }
)  # fmt: skip
"""What isn't a constraint, or isn't one of a single keyword."""


def unknown_keywords(schema: Node) -> set[str]:
    """Keywords for which there are no cases."""
    return {key for _, node in fields(schema, path="") for key in node} - set(_BOUNDS) - ANNOTATIONS


def _key_length(path: str, limit: int, *, says: str) -> Iterator[Case]:
    longest, too_long = (_longer(path, "a", length=length) for length in (limit, limit + 1))
    return _case(path, "key length", {longest: "v"}, {too_long: "v"}, says)


def _format_cases(path: str, *, says: str) -> Iterator[Case]:
    good, bad = FORMATS[path]
    for n in range(max(len(good), len(bad))):
        accepted, rejected = good[n % len(good)], bad[n % len(bad)]
        yield from _case(
            path, f"{accepted!r} not {rejected!r}", accepted, rejected, says, ours=says.removeprefix("each key ")
        )


def _rule_case(path: str, rule: Mapping[str, str]) -> Case:
    good, bad = RULES[path, rule["fieldPath"]]
    whole = manifest("profile" if path.startswith("profile") else "spec")
    accepted, rejected = (builders.merged(whole, {"spec": change}) for change in (good, bad))
    field = f"{path}{rule['fieldPath']}".replace("[]", "[0]")
    words = (field.replace("profile.", "spec.", 1), rule["message"])
    return Case(f"{field} rule", accepted, rejected, words, rule["message"])
