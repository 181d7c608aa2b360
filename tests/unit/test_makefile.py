"""The Makefile's own words: `make` lists every target, and every target runs even if a file has its name."""

import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z0-9-]+):(?!=)", MAKEFILE, flags=re.MULTILINE))


def make(*arguments: str) -> str:
    # Without the variables of an outer `make test`, whose flags would be taken over.
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "ARGS"}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in outer},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_make_alone_lists_every_target_in_one_line_each() -> None:
    listed = [line.split(maxsplit=2) for line in make().splitlines()]
    assert {line[1] for line in listed} == TARGETS
    assert len(listed) == len(TARGETS)
    assert all(len(line) == 3 and line[2].endswith(".") for line in listed)


def test_every_target_is_phony() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.MULTILINE)
    assert set(phony.split()) == TARGETS


def test_another_interpreter_can_be_named() -> None:
    assert "a-python-of-mine -m tests.cluster.kube" in make("--dry-run", "PYTHON=a-python-of-mine", "kube")
