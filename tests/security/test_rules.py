"""S13: each rule of ours finds what it is for and leaves alone what is right, so that its silence means something."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from tests.security import scan

RULES = [rule["id"] for rule in yaml.safe_load(scan.RULES.read_text())["rules"]]
FIXTURES = yaml.safe_load((scan.RULES.parent / "fixtures.yaml").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, str]]:
    """Rule and file of each finding: one scan of a checkout in which each text has a file of its own."""
    root = tmp_path_factory.mktemp("checkout")
    for rule, texts in FIXTURES.items():
        for kind in ("bad", "good"):
            for number, text in enumerate(texts[kind]):
                target = place(rule, kind, number)
                (root / target).parent.mkdir(parents=True, exist_ok=True)
                (root / target).write_text(text)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)  # the rules' paths begin at a checkout's root
    return {(rule, path) for rule, path, _ in scan.semgrep(root)}


def place(rule: str, kind: str, number: int) -> Path:
    """Beside the module that a text stands for; cluster.py itself where the rule looks at nothing else."""
    where = Path(FIXTURES[rule]["place"])
    return where.with_name(f"{rule.replace('-', '_')}_{kind}_{number}.py")


def test_each_rule_has_its_fixtures() -> None:
    assert sorted(FIXTURES) == sorted(RULES)


@pytest.mark.parametrize("rule", FIXTURES)
def test_a_rule_finds_what_is_bad_and_leaves_what_is_good(found: set[tuple[str, str]], rule: str) -> None:
    texts = FIXTURES[rule]
    missed = [text for number, text in enumerate(texts["bad"]) if (rule, str(place(rule, "bad", number))) not in found]
    wrong = [text for number, text in enumerate(texts["good"]) if (rule, str(place(rule, "good", number))) in found]
    assert missed == []
    assert wrong == []


KEY = "AKIA" + "IOSFODNN7EXAMPL3"
"""Of the form of a key, and none: it must not stand here in one piece."""


def test_a_key_that_lies_in_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "ROOT", tmp_path)
    monkeypatch.setattr(scan, "WAIVERS", tmp_path / "waivers.yaml")
    scan.WAIVERS.write_text("secrets: []\n")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    assert scan.check_secrets()
    (tmp_path / "settings.py").write_text(f"access = '{KEY}'\n")
    assert not scan.check_secrets()
    scan.WAIVERS.write_text("secrets: [{what: AWS Access Key, where: settings.py, why: a test}]\n")
    assert scan.check_secrets()
    (tmp_path / "settings.py").unlink()
    assert not scan.check_secrets(), "the waiver waives nothing any more"
