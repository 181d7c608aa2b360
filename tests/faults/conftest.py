"""Plays the plans that the chosen tests are about, all in one go, and gives each test its own outcome."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence

import pytest

from tests.cluster import kube
from tests.faults.__main__ import cluster
from tests.faults.performance import Outcome
from tests.faults.plans import Plan

REFERENCES = 2
Played = Callable[[Plan], Outcome]


@pytest.fixture(scope="session")
def played(request: pytest.FixtureRequest) -> Played:
    """The outcome of a plan that one of the chosen tests is parametrized with, as `plan`."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    mine = [item.callspec.params["plan"] for item in items if "played" in item.fixturenames]
    plans = {plan.name: plan for plan in mine if isinstance(plan, Plan)}
    try:
        outcomes = asyncio.run(play(list(plans.values())))
    except kube.KubeUnavailable as error:
        if os.environ.get("CI"):
            pytest.fail(f"no Kubernetes: {error}", pytrace=False)
        pytest.skip(f"no Kubernetes: {error}")
    return lambda plan: outcomes[plan.name]


async def play(plans: Sequence[Plan]) -> Mapping[str, Outcome]:
    """On a control plane of their own, which lasts no longer."""
    async with cluster(references=REFERENCES) as rig:
        found = await rig.play_all(plans, done=lambda outcome: None)
    return {outcome.plan.name: outcome for outcome in found}
