"""One plan, played in a namespace of its own: proxy, operator, scenario, and what the oracles say of it."""

from __future__ import annotations

import asyncio
import dataclasses
import fnmatch
import math
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.api import ApiError
from tests.cluster.operatorprocess import NAMESPACE
from tests.cluster.stage import QUICK
from tests.faults import endstate, meanwhile, oracles, plans, volumes
from tests.faults.endstate import Expected, Flat
from tests.faults.ground import LOOK_SECONDS, Ground
from tests.faults.operators import Kubelet, environment
from tests.faults.oracles import Case, Finding
from tests.faults.plans import Plan, Seen
from tests.faults.proxy import Proxy
from tests.faults.rules import CRASHES, OF_A_WATCH, Do, RuleBook
from tests.faults.scenario import Late, Play, Scenario
from tests.faults.wire import Exchange

SETTINGS = {
    **QUICK,
    "training_poll_seconds": 0.2,
    "progress_write_seconds": 0.05,
    "queued_seconds": 30,
    "bind_address": "127.0.0.1",
    "health_port": 0,
    "metrics_port": 0,
    "log_format": "text",
    "lease_seconds": 0,
}
"""Every progress is written at once, so that each run of a scenario writes the same."""
QUIET_SECONDS = 1.0
RESTLESS_SECONDS = 15.0
KINDS_WATCHED = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a plan."""

    plan: Plan
    findings: Sequence[Finding]
    seconds: float
    exits: Sequence[int]
    lost_events: int
    folder: Path
    """The operator's log, the requests and every version of every object, if the plan is bad."""
    seen: Seen
    end: Flat

    @property
    def bad(self) -> bool:
        """Whether an oracle found something."""
        return bool(self.findings)

    @property
    def oracles(self) -> set[str]:
        """Which ones."""
        return {finding.oracle for finding in self.findings}


def _goes_on(watch: Exchange) -> bool:
    """Whether it was opened; one that was only slow was."""
    return not watch.fault or watch.fault.startswith(Do.DELAY)


class Performance:
    """Played once."""

    def __init__(self, ground: Ground, plan: Plan, *, expected: Expected | None, edited: bool = False) -> None:
        """`edited`: the scenario's edit is one of its steps, as the reference of plans with that meanwhile."""
        self._ground, self._plan, self._expected = ground, plan, expected
        self._namespace = f"fault-{uuid.uuid4().hex[:10]}"
        self._folder = ground.folder / f"gates-{self._namespace}"
        self._history = ground.recorder.of(self._namespace)
        self._scenario = Scenario.read(plan.scenario)
        edit = [{"patch": {"spec": self._scenario.edit}}] if edited else []
        self._steps = [*self._scenario.steps[:2], *edit, *self._scenario.steps[2:]]
        self._rules = RuleBook(plan.rules, clock=time.monotonic)
        self._restarted = 0.0
        self._damaged: list[str] = []

    async def outcome(self) -> Outcome:
        """Play it and judge it."""
        self._folder.mkdir(parents=True)
        if self._plan.meanwhile == "delete" or any("gone" in step.get("until", {}) for step in self._steps):
            await asyncio.shield(self._ground.garbage)
        began = time.monotonic()
        await self._ground.make(self._namespace)
        kubelet = Kubelet(self._ground.operators, log=self._folder / "operator.log", planted=self._plan.planted)
        async with Proxy(self._ground.server, tls=self._ground.tls, rules=self._rules, crash=kubelet.crash) as proxy:
            keeping = asyncio.create_task(kubelet.run(self._environment(proxy.port)))
            try:
                late = await self._perform(proxy, kubelet)
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
        found = self._judged(proxy, kubelet, late=late, seconds=time.monotonic() - began)
        await self._ground.clean_up(self._namespace)
        return found

    async def _perform(self, proxy: Proxy, kubelet: Kubelet) -> str:
        """The scenario to its end and to rest; what was late."""
        play = Play(
            self._ground.api,
            namespace=self._namespace,
            history=self._history,
            gates=self._folder,
            reached=self._rules.mark,
            deadline=lambda began: self._deadline(began, kubelet),
            fault=self._fault,
            look=self._look,
            image=self._plan.image,
        )
        crashes = asyncio.create_task(self._restart_after_crashes(play, kubelet))
        try:
            await self._until_lines_can_be_struck(proxy)
            await play.run(self._steps)
            await play.run([{"until": {"run": run, "gone": True}} for run in play.deleted])
            await self._settle(proxy, kubelet)
            if any(rule.do == Do.CRASH_LATE for rule in self._plan.rules):
                proxy.release()
                await proxy.delivered()
                await self._settle(proxy, kubelet)
        except (Late, ApiError) as error:
            return str(error)
        finally:
            crashes.cancel()
            await asyncio.gather(crashes, return_exceptions=True)
        return ""

    async def _until_lines_can_be_struck(self, proxy: Proxy) -> None:
        """Where a line of a watch is to be struck, the scenario waits for the watches: a list would hold the object."""
        began = time.monotonic()
        while any(rule.do in OF_A_WATCH for rule in self._rules.waiting) and not self._watches(proxy):
            if time.monotonic() > began + self._plan.bound:
                raise Late("the operator doesn't watch")
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        """Note what isn't whole in the volumes now."""
        for folder in await volumes.folders(self._ground.api, self._history):
            self._damaged.extend(volumes.damaged(folder))

    async def _fault(self, *, over: bool) -> None:
        """Until every rule has struck, or until all that lasts is over; at once where there is none."""
        began = time.monotonic()
        while self._rules.waiting or (over and not self._rules.over()):
            if self._rules.waiting and time.monotonic() > began + self._plan.bound:
                raise Late("the fault never came")
            await asyncio.sleep(LOOK_SECONDS)

    def _deadline(self, began: float, kubelet: Kubelet) -> float:
        """A step has its time from its beginning, from the end of the fault, or from the restart, whichever is last."""
        if kubelet.down.is_set():
            return math.inf
        return max(began, self._rules.last_end(), self._restarted) + self._plan.bound

    async def _restart_after_crashes(self, play: Play, kubelet: Kubelet) -> None:
        while True:
            await kubelet.down.wait()
            await meanwhile.happen(self._plan.meanwhile, play=play, scenario=self._scenario)
            self._restarted = time.monotonic()
            kubelet.up()

    async def _settle(self, proxy: Proxy, kubelet: Kubelet) -> None:
        """Until nothing has been written or has changed for a while, with an operator that is up and watches."""
        began = time.monotonic()
        while True:
            if time.monotonic() > self._deadline(began, kubelet) + RESTLESS_SECONDS:
                raise Late("it doesn't come to rest" if self._watches(proxy) else "not every watch was opened again")
            await asyncio.sleep(LOOK_SECONDS)
            if kubelet.down.is_set() or not self._rules.over() or not self._watches(proxy):
                continue
            changes = [version.at for version in self._history.versions[-1:]]
            writes = [write.at for write in proxy.writes if write.request.resource != "leases"]
            last = max([began, *changes, *writes[-1:]])
            if time.monotonic() - last > QUIET_SECONDS:
                return

    def _watches(self, proxy: Proxy) -> bool:
        """Whether every watch was opened since the restart, and since what no watch survives."""
        since = max(self._restarted, self._rules.watches_since())
        watches = [one for one in proxy.log if one.request.is_watch and one.at > since and _goes_on(one)]
        return len({watch.request.resource for watch in watches}) >= KINDS_WATCHED

    def _judged(self, proxy: Proxy, kubelet: Kubelet, *, late: str, seconds: float) -> Outcome:
        end = endstate.of(self._history, namespace=self._namespace)
        if self._plan.meanwhile == "delete":  # at whatever moment that was, there is a claim by then or there isn't
            end = {path: value for path, value in end.items() if not path.startswith("claim.")}
        end = {path: value for path, value in end.items() if not self._may_be(path)}
        findings = oracles.judge(self._case(proxy, kubelet, late=late, end=end))
        found = Outcome(
            plan=self._plan,
            findings=findings,
            seconds=seconds,
            exits=kubelet.exits,
            lost_events=oracles.lost_events(self._history),
            folder=self._folder,
            seen=plans.seen(proxy.log, proxy.lines),
            end=end,
        )
        self._keep(proxy, findings)
        self._ground.recorder.histories.pop(self._namespace)
        return found

    def _may_be(self, path: str) -> bool:
        """Whether it may differ from the reference: the scenario leaves it to chance, or it tells of the fault."""
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in self._scenario.varies):
            return True
        told = any(f".status.events[{kind} of " in path for kind in self._plan.may_tell)
        return told and (self._expected is None or path not in self._expected.common)

    def _case(self, proxy: Proxy, kubelet: Kubelet, *, late: str, end: Flat) -> Case:
        log = self._folder / "operator.log"
        return Case(
            history=self._history,
            end=end,
            expected=self._expected,
            writes=proxy.writes,
            late=late,
            never_struck=[str(rule) for rule in self._rules.waiting],
            crashes=(sum(rule.do in CRASHES for rule in self._plan.rules), kubelet.kills),
            exits=kubelet.exits,
            exits_allowed=self._plan.exits_allowed,
            log=log.read_text() if log.exists() and not self._plan.errors_allowed else "",
            damaged=self._damaged,
            most_active=self._scenario.most_active,
            job_may_come_late=any(rule.do == Do.CRASH_LATE and "jobs" in rule.at for rule in self._plan.rules),
        )

    def _keep(self, proxy: Proxy, findings: Sequence[Finding]) -> None:
        """For whoever looks into it; of a good plan nothing is kept, unless that is asked for."""
        if not findings and not self._ground.keep:
            shutil.rmtree(self._folder)
            return
        requests = [f"{one.at:.3f} {one.label} {one.code or '-'} {one.fault}" for one in proxy.log]
        (self._folder / "requests.txt").write_text("\n".join(requests))
        (self._folder / "versions.txt").write_text(oracles.dump(self._history))
        (self._folder / "findings.txt").write_text("\n".join([self._plan.name, *map(str, findings)]))

    def _environment(self, port: int) -> dict[str, str]:
        mine = {"namespaces": self._namespace, "lease_name": self._namespace, "lease_namespace": NAMESPACE}
        chosen = {**SETTINGS, **self._scenario.settings, **self._plan.settings, **mine}
        kubeconfig = self._ground.kubeconfig_through(port, into=self._folder)
        return environment(**chosen) | {"KUBECONFIG": str(kubeconfig)}
