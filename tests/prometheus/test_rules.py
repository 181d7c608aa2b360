"""Alerts and recording rules: what promtool makes of them, and whether each alert has all that people need."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.prometheus import programs

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "charts" / "finetune-operator" / "files" / "prometheus" / "rules.yaml"
CASES = Path(__file__).with_name("rules.test.yaml")


def groups(file: Path, key: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))[key]
    return found


ALERTS = {rule["alert"]: rule for group in groups(RULES, "groups") for rule in group["rules"] if "alert" in rule}


def promtool(*arguments: str | Path) -> tuple[int, str]:
    result = subprocess.run(
        [programs.promtool(), *arguments], cwd=CASES.parent, capture_output=True, text=True, check=False
    )
    return result.returncode, result.stdout + result.stderr


def test_promtool_finds_nothing_wrong() -> None:
    code, said = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert code == 0, said


def test_each_alert_fires_when_it_must_and_not_before() -> None:
    code, said = promtool("test", "rules", CASES)
    assert code == 0, said


def test_each_alert_has_a_case_in_which_it_fires() -> None:
    cases = [case for group in groups(CASES, "tests") for case in group.get("alert_rule_test", ())]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_has_a_severity_and_a_runbook_that_names_it(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}
    page = (ROOT / rule["annotations"]["runbook"]).read_text(encoding="utf-8")
    assert f"`{name}`" in page


def test_no_runbook_is_left_over() -> None:
    named = {(ROOT / rule["annotations"]["runbook"]).name for rule in ALERTS.values()}
    assert {page.name for page in (ROOT / "docs" / "runbooks").iterdir()} == named
