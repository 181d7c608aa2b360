"""The rig is tested: six defects are planted, each has to be caught, and by the oracle that is there for it.

The same plans without the defect have to be good, or an oracle that always complains would pass.
"""

from __future__ import annotations

import pytest

from tests.faults import saver
from tests.faults.conftest import Played
from tests.faults.plans import Plan, find

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

IN_A_SAVE = find("killed-in-save/undisturbed")
PLANTED = [
    (find("succeed/crash-late/POST-jobs").with_defect("generated-names"), "one-job-per-attempt"),
    (
        find("succeed/crash-late/PATCH-status-Running-STARTED").with_defect("status-overwritten"),
        "history-goes-forward",
    ),
    (find("reborn/crash-late/DELETE-finetuneruns").with_defect("delete-without-uid"), "end-state"),
    (find("doomed/late-list-after-crash").with_defect("index-as-truth"), "nothing-for-the-dead"),
    (find("succeed/status-refused-503-for-10s-without-resync").with_defect("short-back-offs"), "converges"),
    (IN_A_SAVE.with_trainer(saver.TORN), "checkpoints-are-whole"),
]
SOUND = [find(plan.name.partition(" with ")[0]) for plan, _ in PLANTED]


@pytest.mark.parametrize(("plan", "oracle"), PLANTED, ids=[plan.name for plan, _ in PLANTED])
def test_a_planted_defect_is_caught_by_the_oracle_that_is_there_for_it(plan: Plan, oracle: str, played: Played) -> None:
    outcome = played(plan)
    assert oracle in outcome.oracles, "\n".join(map(str, outcome.findings)) or "nothing was found"


@pytest.mark.parametrize("plan", SOUND, ids=lambda plan: plan.name)
def test_the_same_plan_without_the_defect_is_good(plan: Plan, played: Played) -> None:
    outcome = played(plan)
    assert not outcome.bad, "\n".join(map(str, outcome.findings))
