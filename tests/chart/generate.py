"""Writes what the chart has from elsewhere: CRDs, rights, what is asked of creators, and a table of values.

`python -m tests.chart.generate` writes, `--check` only compares. The rights are those of examples/operator-rbac.yaml,
with which the operator's tests run; the table's text is the comment above each value of values.yaml. It must never
change a value.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "finetune-operator"
RBAC = ROOT / "examples" / "operator-rbac.yaml"
CREATORS = ROOT / "examples" / "creator-rights.yaml"
WHOLE = {"resources", "dashboards.additionalLabels"}
"""Mappings that are one value: what is within is the user's."""
BEGIN, END = "<!-- values -->\n", "<!-- /values -->\n"


class Value(NamedTuple):
    """One line of the table."""

    path: str
    default: str
    meaning: str


def values(text: str) -> Iterator[Value]:
    """Each value of values.yaml with the comment above it; of a mapping, those within."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    yield from _within(root, text.splitlines(), path="")


def _within(node: yaml.MappingNode, lines: Sequence[str], *, path: str) -> Iterator[Value]:
    for key, value in node.value:
        name, meaning = f"{path}{key.value}", _comment(lines, above=key.start_mark.line)
        if isinstance(value, yaml.MappingNode) and value.value and name not in WHOLE:
            if meaning:
                yield Value(name, "", meaning)
            yield from _within(value, lines, path=f"{name}.")
        else:
            yield Value(name, _default(value), meaning)


def _comment(lines: Sequence[str], *, above: int) -> str:
    found: list[str] = []
    while above > 0 and lines[above - 1].lstrip().startswith("#"):
        above -= 1
        found.insert(0, lines[above].lstrip("# ").strip())
    return " ".join(found)


def _default(node: yaml.Node) -> str:
    loader = yaml.SafeLoader("")
    value = loader.construct_object(node, deep=True)
    flow = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000) if value else ""
    if isinstance(value, str):
        return value or '""'
    return flow.removesuffix("\n").removesuffix("\n...") or str(value).lower()


def table(found: Iterator[Value]) -> str:
    """The values as Markdown."""
    rows = [f"| {name(v)} | {f'`{v.default}`' if v.default else ''} | {v.meaning.replace('|', '/')} |\n" for v in found]
    return "| value | default | meaning |\n| --- | --- | --- |\n" + "".join(rows)


def name(value: Value) -> str:
    """Its path; what only heads others is in bold."""
    return f"`{value.path}`" if value.default else f"**{value.path}**"


def rules(text: str) -> str:
    """The rules of the ClusterRole that the operator has everywhere."""
    found = yaml.safe_load_all(text)
    role = next(o for o in found if o["kind"] == "ClusterRole" and o["metadata"]["name"] == CHART.name)
    return f"# Written by `make generate` from examples/operator-rbac.yaml.\n{yaml.safe_dump(role['rules'])}"


def policy(text: str) -> str:
    """What is asked of a run's creator."""
    found, _ = yaml.safe_load_all(text)
    spec = yaml.safe_dump(found["spec"], width=120)
    return f"# Written by `make generate` from examples/creator-rights.yaml.\n{spec}"


def wanted() -> Mapping[Path, str]:
    """Each generated file and what it should hold."""
    readme = CHART / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    text = table(values((CHART / "values.yaml").read_text()))
    crds = {CHART / "files" / "crds" / path.name: path.read_text() for path in sorted((ROOT / "crds").glob("*.yaml"))}
    rights = {CHART / "files" / "rules.yaml": rules(RBAC.read_text())}
    rights[CHART / "files" / "creator-rights.yaml"] = policy(CREATORS.read_text())
    return {readme: f"{before}{BEGIN}\n{text}\n{END}{after}", **rights, **crds}


def stale() -> Iterator[Path]:
    """What isn't as it should be, and CRDs that there are no more."""
    found = wanted()
    yield from (path for path, text in found.items() if not path.exists() or path.read_text() != text)
    yield from (path for path in (CHART / "files" / "crds").glob("*") if path not in found)


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or with --check 1 if something is stale."""
    parser = argparse.ArgumentParser(description="Writes what the chart has from elsewhere.")
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if something is stale")
    check = parser.parse_args(arguments).check
    for path in list(stale()):
        if check:
            sys.stderr.write(f"{path.relative_to(ROOT)} is stale: make generate\n")
        elif path in wanted():
            path.write_text(wanted()[path])
        else:
            path.unlink()
    return int(check and any(stale()))


if __name__ == "__main__":
    sys.exit(main())
