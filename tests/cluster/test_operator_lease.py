"""Two operators, of which one acts: whatever happens to it the other follows, and there are never two that write.

Who wrote what, and when, is read from the API server's audit log: each process has a user agent of its own. A training
whose progress is written several times a second makes a leader that acts when it mustn't show at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.cluster import forwarder, operatorprocess
from tests.cluster.audit import AuditLog
from tests.cluster.conftest import Kubectl
from tests.cluster.forwarder import Network
from tests.cluster.operatorprocess import NAMESPACE, USER, OperatorProcess
from tests.cluster.stage import QUICK, Stage, until

pytestmark = pytest.mark.cluster

SHORT = 4
"""Seconds; after two thirds of them a leader that can't renew ends."""
PRODUCTION = 12
BUSY: Mapping[str, Any] = {**QUICK, "training_poll_seconds": 0.2, "progress_write_seconds": 0.2}
ENDLESS = {"steps": 100_000, "step_seconds": 0.1}


@dataclasses.dataclass
class Pair:
    """Two operators that want the same lease; each has its own way to the API server."""

    stage: Stage
    lease: str
    operators: Sequence[OperatorProcess]
    networks: Sequence[Network]
    audit: AuditLog
    mark: int

    def identities(self, operator: OperatorProcess) -> Sequence[str]:
        """Under which this one has held the lease, one for each of its processes."""
        return re.findall(r"is ours, as (\S+)", operator.log.read_text())

    def leader(self) -> int | None:
        """Which of the two holds the lease."""
        holder = self.holder()
        held = [n for n, operator in enumerate(self.operators) if holder and holder in self.identities(operator)]
        return held[0] if held else None

    def holder(self) -> str:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/{self.lease}"
        if self.stage.gone(path):
            return ""
        return str(self.stage.api.request("GET", path)["spec"].get("holderIdentity", ""))

    def lead(self) -> tuple[OperatorProcess, OperatorProcess, Network]:
        """Who leads, who stands by, and the leader's network, once the leader writes all the time."""
        first = until(self.leader, lambda found: found is not None, what="the leader")
        until(lambda: len(self.writes()), lambda number: number > 12, what="writes")
        ready(self.operators[1 - first])
        return self.operators[first], self.operators[1 - first], self.networks[first]

    def acts(self, operator: OperatorProcess, *, since: float = 0, seconds: float = 30) -> float:
        """Wait until it writes; when it first did after `since`, in seconds since 1970."""
        mine = until(
            lambda: [w for w in self.writes() if w.began > since and w.by in self.identities(operator)],
            bool,
            what="writes",
            seconds=seconds,
        )
        return float(mine[0].began)

    def writes(self) -> Sequence[Write]:
        """Every write to the runs' namespace that went through, in the order in which they did."""
        return [write for write in self.tries() if write.went_through]

    def tries(self) -> Sequence[Write]:
        """The same, with those that the API server refused."""
        records = self.audit.writes(self.mark, user=USER, namespace=self.stage.namespace)
        return sorted(map(Write.of, records), key=lambda write: write.ended)

    def taken(self) -> Sequence[Write]:
        """The first write that each process made to the lease."""
        records = self.audit.writes(self.mark, user=USER, namespace=NAMESPACE)
        mine = [Write.of(r) for r in records if r["objectRef"]["resource"] == "leases"]
        first: dict[str, Write] = {}
        for write in mine:
            if write.went_through:
                first.setdefault(write.by, write)
        return list(first.values())

    def no_two_wrote(self) -> None:
        """Each one's last write, even one that was refused, was over before the next took the lease."""
        writers = [write.by for write in self.writes()]
        assert len(set(writers)) >= 2, "the test is of no use unless both wrote"
        turns = [by for number, by in enumerate(writers) if number == 0 or writers[number - 1] != by]
        assert len(turns) == len(set(turns)), f"they took turns: {turns}"
        taken = {write.by: write for write in self.taken()}
        for by, following in itertools.pairwise(turns):
            late = [write for write in self.tries() if write.by == by and write.ended >= taken[following].began]
            assert late == []


@dataclasses.dataclass(frozen=True)
class Write:
    """One record of the audit log; times in seconds since 1970, by the API server's clock."""

    by: str
    began: float
    ended: float
    what: str
    code: int

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Write:
        found = re.search(r"\((\S+)\)", record["userAgent"])
        assert found, f"a write by {record['userAgent']}"
        began, ended = record["requestReceivedTimestamp"], record["stageTimestamp"]
        what, code = f"{record['verb']} {record['requestURI']}", record["responseStatus"]["code"]
        return cls(found[1], _seconds(began), _seconds(ended), what, code)

    @property
    def went_through(self) -> bool:
        """Whether it changed something."""
        return self.code < 300


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


Start = Callable[..., Pair]


@pytest.fixture
def start(stage: Stage, operator_account: Path, audit_log: AuditLog, tmp_path: Path) -> Iterator[Start]:
    """Start two operators, and a training that keeps whoever leads busy."""
    with contextlib.ExitStack() as stack:

        def start(*, lease_seconds: int = SHORT, apart: str = "") -> Pair:
            mark, lease = audit_log.mark(), f"lease-{uuid.uuid4().hex[:8]}"
            networks, operators = [], []
            for name in ("a", "b"):
                content = json.loads(operator_account.read_text())
                server = content["clusters"][0]["cluster"]
                networks.append(stack.enter_context(forwarder.to(urlsplit(server["server"]).port or 0)))
                server["server"] = f"https://127.0.0.1:{networks[-1].port}"
                kubeconfig = tmp_path / f"{name}.kubeconfig"
                kubeconfig.write_text(json.dumps(content))
                settings = {**BUSY, "lease_seconds": lease_seconds, "lease_name": lease + apart * (name == "b")}
                running = operatorprocess.running(
                    kubeconfig, folder=tmp_path, namespaces=[stage.namespace], log=f"{name}.log", **settings
                )
                operators.append(stack.enter_context(running))
            stage.submit("busy", script=ENDLESS)
            return Pair(stage, lease, operators, networks, audit_log, mark)

        yield start
    for name in ("a", "b"):
        sys.stdout.write(f"{name}:\n{(tmp_path / f'{name}.log').read_text()}")


def test_one_leads_and_the_other_stands_by_in_good_health(start: Start) -> None:
    pair = start()
    leader, standby, _ = pair.lead()
    for operator in (leader, standby):
        ready(operator)
        assert operator.healthy()
    time.sleep(2 * SHORT)
    assert {write.by for write in pair.writes()} == set(pair.identities(leader))
    assert pair.identities(standby) == []
    assert f"is held by {pair.holder()}: standing by" in standby.log.read_text()
    asked: dict[str, set[str]] = {}
    for record in pair.audit.since(pair.mark):
        by = re.search(r"finetune-operator/.*\((\S+)\)", record["userAgent"])
        if by:
            asked.setdefault(by[1], set()).add(record["objectRef"]["resource"])
    assert asked.pop(pair.holder()) >= {"leases", "finetuneruns", "jobs"}
    assert list(asked.values()) == [{"leases"}], "one who stands by lists nothing"


def ready(operator: OperatorProcess, *, seconds: float = 30) -> None:
    until(lambda: operator.says("/readyz"), lambda said: said == "ok", what="readiness", seconds=seconds)


def test_two_that_write_would_be_noticed(start: Start) -> None:
    """Each has a lease of its own: what the other tests look for is found."""
    pair = start(apart="-2")
    for operator in pair.operators:
        ready(operator)
    writers = until(lambda: [write.by for write in pair.writes()], lambda found: len(found) > 30, what="writes")
    assert len(set(writers)) == 2
    with pytest.raises(AssertionError, match="they took turns"):
        pair.no_two_wrote()


def test_killed_it_is_followed(start: Start) -> None:
    pair = start()
    leader, standby, _ = pair.lead()
    leader.kill()
    leader.start()
    pair.acts(standby, seconds=3 * SHORT)
    pair.no_two_wrote()
    ready(leader)
    assert pair.holder() in pair.identities(standby)


def test_stopped_and_continued_it_writes_nothing_more(start: Start) -> None:
    pair = start()
    leader, standby, _ = pair.lead()
    leader.pause()
    pair.acts(standby, seconds=4 * SHORT)
    time.sleep(1)
    leader.resume()
    assert leader.ended(seconds=2) == os.EX_TEMPFAIL
    time.sleep(1)
    pair.no_two_wrote()
    assert "the lease is lost" in leader.log.read_text()


@pytest.mark.parametrize("how", ["cut", "freeze"])
def test_off_the_network_it_ends_and_is_followed(start: Start, how: str) -> None:
    pair = start()
    leader, standby, network = pair.lead()
    began = time.monotonic()
    network.cut() if how == "cut" else network.freeze()
    assert leader.ended(seconds=SHORT) == os.EX_TEMPFAIL
    assert time.monotonic() - began < SHORT, "before another may have it"
    leader.start()  # as Kubernetes does
    pair.acts(standby, seconds=4 * SHORT)
    until(leader.healthy, bool, what="health without an API server")
    assert leader.says("/readyz") == "the lease hasn't been seen yet"
    network.open()
    ready(leader, seconds=10)
    time.sleep(1)
    pair.no_two_wrote()


@pytest.mark.parametrize(
    "theft",
    [
        ("patch", "--type=merge", '-p={"spec": {"holderIdentity": "another"}}'),
        ("patch", "--type=merge", '-p={"spec": {"holderIdentity": null}}'),
        ("delete",),
    ],
    ids=["taken", "emptied", "deleted"],
)
def test_its_lease_taken_by_hand_it_ends_before_another_acts(
    start: Start, kubectl: Kubectl, theft: Sequence[str]
) -> None:
    pair = start()
    leader, standby, _ = pair.lead()
    verb, *options = theft
    kubectl(verb, "lease", pair.lease, "-n", NAMESPACE, *options)
    assert leader.ended(seconds=2) == os.EX_TEMPFAIL
    pair.acts(standby, seconds=4 * SHORT)
    pair.no_two_wrote()


def test_asked_to_leave_it_hands_over_at_once(start: Start) -> None:
    pair = start()
    leader, standby, _ = pair.lead()
    began = time.monotonic()
    assert leader.stop(seconds=4) == 0
    left = time.monotonic() - began
    pair.acts(standby, seconds=SHORT)
    sys.stdout.write(f"left in {left:.2f} s, the next wrote {time.monotonic() - began:.2f} s after the signal\n")
    assert "is released" in leader.log.read_text()
    pair.no_two_wrote()


@pytest.mark.parametrize("state", ["standing by", "leading without a network", "waiting without a network"])
def test_asked_to_leave_it_leaves_in_every_state(start: Start, state: str) -> None:
    pair = start()
    leader, standby, network = pair.lead()
    operator = standby if state == "standing by" else leader
    if "without" in state:
        network.freeze()
    if state.startswith("waiting"):
        leader.ended(seconds=2 * SHORT)
        leader.start()
        until(leader.healthy, bool, what="health")
    assert operator.stop(seconds=4) == 0
    assert "Traceback" not in operator.log.read_text()


def test_while_the_api_server_is_away_both_wait_without_hurry_and_then_one_goes_on(start: Start) -> None:
    pair = start()
    leader, standby, _ = pair.lead()
    for network in pair.networks:
        network.cut()
    assert leader.ended(seconds=2 * SHORT) == os.EX_TEMPFAIL
    leader.start()
    until(leader.healthy, bool, what="health")
    before = [network.attempts for network in pair.networks]
    time.sleep(8)
    asked = [network.attempts - known for network, known in zip(pair.networks, before, strict=True)]
    assert max(asked) <= 16, "two requests a second"
    assert min(asked) >= 4
    assert leader.healthy()
    assert standby.healthy()
    known = len(pair.writes())
    for network in pair.networks:
        network.open()
    until(lambda: len(pair.writes()), lambda now: now > known, what="writes", seconds=10)
    pair.no_two_wrote()


@pytest.mark.slow
def test_with_the_settings_of_production_another_acts_within_20_seconds(start: Start) -> None:
    pair = start(lease_seconds=PRODUCTION)
    leader, standby, _ = pair.lead()
    began = time.time()
    leader.kill()
    leader.start()
    killed = pair.acts(standby, since=began, seconds=20) - began
    began = time.time()
    standby.pause()
    stopped = pair.acts(leader, since=began, seconds=20) - began
    time.sleep(max(0.0, 30 - (time.time() - began)))
    standby.resume()
    assert standby.ended(seconds=2) == os.EX_TEMPFAIL
    time.sleep(1)
    pair.no_two_wrote()
    sys.stdout.write(f"takeover after SIGKILL {killed:.1f} s, after SIGSTOP {stopped:.1f} s\n")
    assert max(killed, stopped) < 20
