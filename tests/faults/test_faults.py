"""The plans of `subset.yaml`, played on a real control plane; `make faults` plays all there are."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.faults import report
from tests.faults.conftest import Played
from tests.faults.plans import Plan, find

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

SUBSET = [find(name) for name in yaml.safe_load(Path(__file__).with_name("subset.yaml").read_text())]


@pytest.mark.parametrize("plan", SUBSET, ids=lambda plan: plan.name)
def test_a_fault_changes_nothing_in_the_end(plan: Plan, played: Played) -> None:
    outcome = played(plan)
    assert not outcome.bad, "\n".join(report.failure(outcome))
