"""Asks which pinned packages have known weaknesses: `python -m tests.release.advisories`, which is `make advisories`.

It asks the package index about each package, so it isn't part of `make verify`, which works offline. pip-audit lives in
a virtual environment of its own in the cache, and says "no known vulnerabilities" of packages that it couldn't ask
about. It must never pass so: 69 (EX_UNAVAILABLE) when there is no answer, 1 when something is found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import cached

LISTS = Path(__file__).resolve().parents[2] / "requirements"
PINS = LISTS / "pip-audit.txt"
FIRST = LISTS / "uv.txt"
"""Of one package: whether there are answers at all is found out by it."""
WAIVED: Mapping[str, str] = {}
"""Advisories that stay, each with the reason why it does no harm here."""

Report = Mapping[str, Any]


class NoAnswer(Exception):
    """Nothing can be said; the message says why."""


def ask(program: Path, pins: Path) -> Report:
    """What pip-audit reports of a list. Raises NoAnswer."""
    options = ("--disable-pip", "--require-hashes", "--progress-spinner", "off", "--format", "json")
    found = subprocess.run(
        [str(program), *options, "--requirement", str(pins)], capture_output=True, text=True, check=False
    )
    try:
        report: Report = json.loads(found.stdout)
    except ValueError:
        last = found.stderr.strip().splitlines()[-1:] or [f"pip-audit ended with {found.returncode}"]
        raise NoAnswer(last[0][:300]) from None
    return report


def unanswered(report: Report) -> Sequence[str]:
    """Why nothing is known of some packages."""
    return [one["skip_reason"] for one in report["dependencies"] if "skip_reason" in one]


def findings(report: Report, waived: Mapping[str, str]) -> Iterator[str]:
    """Each advisory that isn't waived, with the versions that have it no more."""
    for one in report["dependencies"]:
        for told in one.get("vulns", ()):
            if not {told["id"], *told["aliases"]} & waived.keys():
                mended = ", ".join(told["fix_versions"]) or "no version"
                yield f"{one['name']} {one['version']}: {told['id']}, mended in {mended}"


def audit(program: Path) -> int:
    """Ask about each list; the first shows whether anybody answers."""
    found = 0
    for pins in (FIRST, *sorted(set(LISTS.glob("*.txt")) - {FIRST})):
        try:
            report = ask(program, pins)
            without = unanswered(report)
            if without:
                raise NoAnswer(without[0])
        except NoAnswer as why:
            sys.stderr.write(f"no advisories to be had for requirements/{pins.name}: {why}\n")
            return os.EX_UNAVAILABLE
        for finding in findings(report, WAIVED):
            sys.stdout.write(f"requirements/{pins.name}: {finding}\n")
            found += 1
    sys.stdout.write(f"{found} advisories\n")
    return int(found > 0)


def main() -> int:
    """Have pip-audit, and ask."""
    return audit(cached.environment("pip-audit", PINS) / "pip-audit")


if __name__ == "__main__":
    sys.exit(main())
