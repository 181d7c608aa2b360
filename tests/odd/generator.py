"""Odd runs, made from the CRD's own schema: every limit, the emptiest and the longest, all combinations of what is
optional, letters of all the world. Seeded: the same seed, the same runs.

Valid by the schema's types and bounds. Its formats and rules are CEL, so values for them come from the constraint
tests; `Oddity.BROKEN` breaks some of them, `Oddity.TAME` repairs what this version would refuse, so that the run goes
further.
"""

import copy
import random
import string
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any

from pydantic import ValidationError

from finetune_api import crd, types
from finetune_api.profile import ClusterFineTuneProfileSpec
from finetune_api.spec import FineTuneRunSpec
from tests import builders, constraint_rows, profile_rows
from tests.constraint_rows import SPEC

Node = Mapping[str, Any]
Object = dict[str, Any]

SCHEMA, PROFILE_SCHEMA = crd.schema(), crd.schema(crd.PROFILE)
FORMATS = {**constraint_rows.FORMATS, **profile_rows.FORMATS}
MOST = 4
"""Entries of a list or map, mostly; sometimes as many as may be."""
WORDS: Sequence[str] = (
    "",
    " ",
    "a",
    "spec",
    "null",
    "-1",
    "{}",
    '"',
    "'; rm -rf /",
    "$(HOME) $$ ${x}",
    "%s %d {0} {name}",
    "../../etc/passwd",
    "naïve café",
    "训练数据",
    "בדיקה",
    "🙂👩‍👩‍👧",
    "\u202etxt.exe",
    "zero\u200bwidth",
    "tab\tnew\nline\r",
    "nul\x00byte",
    "\x1b[31mred",
    "\U0001d56f\U0001d586",
    "İstanbul ß",
    "\ufffd\uffff",
)
TIMES = ("2026-03-01T12:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-03-01T12:00:00+14:00")
KEYS = ("a", "example.com/a.b_c", "kubernetes.io/arch", "x" * 63)


class Oddity(Enum):
    """How odd."""

    BROKEN = auto()
    """Some formats and rules are broken."""
    VALID = auto()
    """As the schema takes it."""
    TAME = auto()
    """As VALID, and most start."""


class Generator:
    """Of one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def run(self, name: str, *, namespace: str, oddity: Oddity) -> Object:
        """A manifest."""
        spec = self.of(SCHEMA["properties"]["spec"], "spec", broken=0.03 if oddity is Oddity.BROKEN else 0.0)
        spec = spec if isinstance(spec, dict) else {}
        if oddity is Oddity.TAME:
            spec = tame(spec, self.random)
        elif oddity is Oddity.VALID:
            spec = repaired(spec)
        labels = {key: "x" * self.random.randint(0, 63) for key in self.random.sample(KEYS, 2)}
        metadata = {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": {"example.com/a": self.text()},
        }
        return {"apiVersion": types.API_VERSION, "kind": types.KIND, "metadata": metadata, "spec": spec}

    def profile(self, name: str) -> Object:
        """One that the API server would keep."""
        spec: Object = self.of(PROFILE_SCHEMA["properties"]["spec"], "profile", broken=0.0)
        try:
            ClusterFineTuneProfileSpec.parse(spec)
        except ValidationError:
            spec.pop("defaults", None)
            spec.pop("tolerations", None)
        return builders.profile(name, **spec)

    def status(self) -> Object:
        """One that the API server would keep."""
        found: Object = self.of(SCHEMA["properties"]["status"], "status", broken=0.0)
        return found

    def name(self, number: int) -> str:
        """A run's name, sometimes the longest."""
        shortest = f"odd-{number}"
        return shortest if self.random.random() < 0.8 else shortest.ljust(63, "z")

    def of(self, node: Node, path: str, *, broken: float) -> Any:
        """A value for that place in the schema."""
        if path in FORMATS:
            good, bad = FORMATS[path]
            return copy.deepcopy(self.random.choice(bad if bad and self.random.random() < broken else good))
        if "enum" in node:
            return self.random.choice(node["enum"])
        if node.get("x-kubernetes-int-or-string"):
            return self.random.choice(("Auto", 1, 2048))
        makers: Mapping[str, Callable[..., Any]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
            "boolean": lambda *_, **__: self.random.random() < 0.5,
        }
        return makers[node["type"]](node, path, broken=broken)

    def _object(self, node: Node, path: str, *, broken: float) -> Object:
        if "additionalProperties" in node:
            count = self._count(node.get("maxProperties", 16), least=0)
            keys = [f"k{number}_{self.text(20)}" if broken else f"k{number}" for number in range(count)]
            return {key: self.of(node["additionalProperties"], f"{path}{{}}", broken=broken) for key in keys}
        required, share = node.get("required", ()), self.random.choice((0.0, 0.2, 0.5, 0.8, 1.0))
        return {
            name: self.of(child, f"{path}.{name}", broken=broken)
            for name, child in node.get("properties", {}).items()
            if (name in required and self.random.random() >= broken / 10) or self.random.random() < share
        }

    def _array(self, node: Node, path: str, *, broken: float) -> list[Any]:
        count = self._count(node.get("maxItems", 16), least=node.get("minItems", 0))
        entries = [self.of(node["items"], f"{path}[]", broken=broken) for _ in range(count)]
        keys = node.get("x-kubernetes-list-map-keys")
        return list({entry[keys[0]]: entry for entry in entries}.values()) if keys else entries

    def _count(self, most: int, *, least: int) -> int:
        return self.random.choice((least, least, min(most, max(1, least)), min(most, MOST), most))

    def _string(self, node: Node, path: str, *, broken: float) -> str:
        if node.get("format") == "date-time":
            return self.random.choice(TIMES)
        least, most = node.get("minLength", 0), node.get("maxLength", 253)
        return self.text(most) if least == 0 else (self.text(most) or "x" * least)[:most].ljust(least, "x")

    def text(self, most: int = 200) -> str:
        """Of any letters, or the longest."""
        pick = self.random.random()
        if pick < 0.1:
            return self.random.choice(("é", "x", "🙂"))[: most or 1] * most
        if pick < 0.2:
            return "".join(self.random.choices(string.printable, k=min(most, 40)))
        return self.random.choice(WORDS)[:most]

    def _integer(self, node: Node, path: str, *, broken: float) -> int:
        least, most = int(node.get("minimum", -(2**31))), int(node.get("maximum", 2**31))
        inside = [value for value in (0, 1, 2, 60, 3600) if least <= value <= most]
        return self.random.choice((least, most, least + 1, most - 1, self.random.randint(least, most), *inside))

    def _number(self, node: Node, path: str, *, broken: float) -> float:
        least, most = node.get("minimum", 0.0), node.get("maximum", 1.0)
        return float(self.random.choice((least, most, self.random.uniform(least, most), (least + most) / 2)))


def repaired(spec: Object) -> Object:
    """Without what the API's own rules refuse."""
    found = copy.deepcopy(spec)
    for _ in range(50):
        try:
            FineTuneRunSpec.parse(found)
        except ValidationError as error:
            for wrong in reversed(error.errors(include_url=False)):  # so that places in lists stay what they are
                about = [part for part in str(wrong.get("ctx", {}).get("path", "")).split(".") if part]
                _drop(found, [*wrong["loc"], *about])
        else:
            return found
    raise AssertionError("it can't be repaired")


def tame(spec: Object, chance: random.Random) -> Object:
    """The same, mostly without what keeps a run from starting."""
    found = repaired(spec)
    verbs = ("cancel", "suspend", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
    for field in (*verbs, "managedBy", "queue", "profile"):
        if chance.random() < 0.7:
            found.pop(field, None)
    return found


REQUIRED = frozenset({"model", "model.uri", "dataset", "dataset.train", "dataset.train.uri"})


OTHERWISE: Mapping[str, Sequence[str]] = {"trainer.image": ("task",), "trainer.command": ("task",)}
"""What goes in place of a field that isn't there where a rule asks for it."""


def _drop(body: Object, path: Sequence[Any]) -> None:
    """Remove what is there of a path, the innermost of it; what is required gets its plain value."""
    path = OTHERWISE.get(".".join(map(str, path)), path)
    container: Any = body
    key, at, plain = path[0], container, SPEC
    for part in path:
        if not (isinstance(at, list) or (isinstance(at, dict) and part in at)):
            break
        container, key, at = at, part, at[part]
    if ".".join(map(str, path)) in REQUIRED:
        *parents, last = path
        inner: Any = body
        for part in parents:
            inner, plain = inner.setdefault(part, {}), plain[part]
        inner[last] = copy.deepcopy(plain[last])
    elif isinstance(container, list):
        container.pop(key)
    else:
        container.pop(key, None)
