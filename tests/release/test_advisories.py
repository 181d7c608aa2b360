"""What is made of pip-audit's reports: silence is no good news."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.release import advisories

FOUND = {
    "dependencies": [
        {"name": "fine", "version": "1.0", "vulns": []},
        {
            "name": "bad",
            "version": "1.0",
            "vulns": [
                {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1", "2.0"], "description": ""},
                {"id": "PYSEC-2", "aliases": [], "fix_versions": [], "description": ""},
            ],
        },
    ],
    "fixes": [],
}
SILENT = {"dependencies": [{"name": "odd", "skip_reason": "Dependency not found on PyPI: odd (1.0)"}], "fixes": []}


def test_an_advisory_is_named_with_what_mends_it() -> None:
    assert list(advisories.findings(FOUND, {})) == [
        "bad 1.0: PYSEC-1, mended in 1.1, 2.0",
        "bad 1.0: PYSEC-2, mended in no version",
    ]
    assert list(advisories.unanswered(FOUND)) == []


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_one_that_is_waived_stays_out(name: str) -> None:
    assert list(advisories.findings(FOUND, {name: "it isn't called"})) == ["bad 1.0: PYSEC-2, mended in no version"]


def pip_audit(folder: Path, *, out: str = "", error: str = "", code: int = 0) -> Path:
    """A pip-audit that says so."""
    program = folder / "pip-audit"
    program.write_text(f"#!/bin/sh\necho '{out}'\necho '{error}' >&2\nexit {code}\n")
    program.chmod(0o755)
    return program


SAID: dict[str, tuple[dict[str, object], int, str]] = {
    "nothing known of a package": ({"out": json.dumps(SILENT)}, 69, "no advisories to be had for requirements/uv.txt"),
    "no report": (
        {"error": "Traceback\nConnectionError: no route", "code": 1},
        69,
        "uv.txt: ConnectionError: no route",
    ),
    "findings": ({"out": json.dumps(FOUND), "code": 1}, 1, "requirements/dev.txt: bad 1.0: PYSEC-1"),
    "none": ({"out": json.dumps({"dependencies": FOUND["dependencies"][:1], "fixes": []})}, 0, "0 advisories"),
}


@pytest.mark.parametrize(("said", "code", "told"), SAID.values(), ids=SAID)
def test_it_passes_only_when_all_was_answered_and_nothing_found(
    said: dict[str, object],
    code: int,
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert advisories.audit(pip_audit(tmp_path, **said)) == code  # type: ignore[arg-type]  # a table's row
    assert told in "".join(capsys.readouterr())


def test_waivers_have_reasons() -> None:
    assert all(len(reason) > 20 for reason in advisories.WAIVED.values())
