"""The fault rig: many plans on one control plane, each with a namespace, a proxy and an operator of its own.

    async with Rig.ready(control_plane, kubeconfig=..., folder=..., keep=False) as rig:
        outcomes = await rig.play_all(plans, done=print)

Plans mostly wait, so several are played at once. Every scenario is first played undisturbed, and what its plans come to
is compared with that; plans whose reference is bad are bad.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from tests.cluster.controlplane import ControlPlane
from tests.faults.endstate import Expected
from tests.faults.ground import Ground
from tests.faults.oracles import Finding
from tests.faults.performance import Outcome, Performance
from tests.faults.plans import Plan, Seen

AT_ONCE = 6
REFERENCES = 3


@dataclasses.dataclass(frozen=True)
class Reference:
    """What the undisturbed runs of a scenario come to."""

    expected: Expected
    seen: Seen
    findings: Sequence[Finding]
    """What is wrong with them; there must be nothing."""


class Rig:
    """Plays plans."""

    def __init__(self, ground: Ground, *, at_once: int, references: int) -> None:
        self._ground = ground
        self._room = asyncio.Semaphore(at_once)
        self._wanted = references
        self._references: dict[tuple[str, str], asyncio.Task[Reference]] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def ready(
        cls,
        control_plane: ControlPlane,
        *,
        kubeconfig: Path,
        folder: Path,
        keep: bool,
        at_once: int = AT_ONCE,
        references: int = REFERENCES,
    ) -> AsyncIterator[Rig]:
        """As long as the block lasts."""
        async with Ground.ready(control_plane, kubeconfig=kubeconfig, folder=folder, keep=keep) as ground:
            yield cls(ground, at_once=at_once, references=references)

    async def play_all(self, wanted: Sequence[Plan], *, done: Callable[[Outcome], None]) -> Sequence[Outcome]:
        """All of them, as many at once as there is room; `done` is told of each."""

        async def one(plan: Plan) -> Outcome:
            outcome = await self.play(plan)
            done(outcome)
            return outcome

        return await asyncio.gather(*(one(plan) for plan in wanted))

    async def play(self, plan: Plan) -> Outcome:
        """One plan, judged against its reference."""
        reference = await self.reference(plan.scenario, "edit" if plan.meanwhile == "edit" else "")
        # of a run that is deleted meanwhile nothing is left, whatever its scenario is
        expected = Expected({}, frozenset()) if plan.meanwhile == "delete" else reference.expected
        async with self._room:
            found = await Performance(self._ground, plan, expected=expected).outcome()
        return dataclasses.replace(found, findings=[*reference.findings, *found.findings])

    async def reference(self, scenario: str, variant: str = "") -> Reference:
        """What a scenario comes to undisturbed; it is played once, however many ask."""
        key = (scenario, variant)
        if key not in self._references:
            self._references[key] = asyncio.create_task(self._refer(scenario, variant))
        return await self._references[key]

    async def _refer(self, scenario: str, variant: str) -> Reference:
        name = f"{scenario}/reference" + (f"+{variant}" if variant else "")

        async def one(number: int) -> Outcome:
            plan = Plan(name=f"{name}/{number}", scenario=scenario)
            async with self._room:
                return await Performance(self._ground, plan, expected=None, edited=bool(variant)).outcome()

        outcomes = await asyncio.gather(*(one(number) for number in range(1, self._wanted + 1)))
        return Reference(
            Expected.of([outcome.end for outcome in outcomes]),
            Seen.in_all([outcome.seen for outcome in outcomes]),
            [Finding(f"reference/{one.oracle}", one.what) for outcome in outcomes for one in outcome.findings],
        )
