"""The lease: when it is free by one's own clock, what its holder does in time, and that a loser acts no more."""

import asyncio
import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_operator import lease
from finetune_operator.election import Record, Sight, Times, Watcher
from finetune_operator.errors import ConflictError, ExistsError, GoneError, OperatorError, RefusedError, TransientError
from finetune_operator.lease import Lease
from finetune_operator.settings import Settings

NAMED = "/apis/coordination.k8s.io/v1/namespaces/operators/leases/finetune-operator"
SECONDS = 1.5
"""Shorter than a setting may be: renewed 4 times a second, over after a second."""
ME, OTHER = "pod-a_1", "pod-b_2"


def record(holder: str = OTHER, *, seconds: float = 12, renewed: str = "t0", version: str = "1") -> Record:
    return Record(holder=holder, seconds=seconds, renewed=renewed, transitions=0, version=version)


class TestWhenItIsFree:
    def test_one_that_nobody_ever_had(self) -> None:
        assert Watcher(ME).see(None, now=100) == Sight.FREE

    def test_one_that_was_released(self) -> None:
        assert Watcher(ME).see(record("", renewed=""), now=100) == Sight.FREE

    def test_anothers_only_after_its_own_length_without_a_change_on_our_clock(self) -> None:
        watcher = Watcher(ME)
        assert watcher.see(record(), now=100) == Sight.HELD
        assert watcher.wait(now=100) == 12
        assert watcher.see(record(), now=111.9) == Sight.HELD
        assert watcher.see(record(), now=112) == Sight.FREE

    def test_each_renewal_starts_the_wait_anew(self) -> None:
        watcher = Watcher(ME)
        watcher.see(record(renewed="t0", version="1"), now=100)
        assert watcher.see(record(renewed="t1", version="2"), now=111) == Sight.HELD
        assert watcher.see(record(renewed="t1", version="2"), now=122.9) == Sight.HELD
        assert watcher.see(record(renewed="t1", version="2"), now=123) == Sight.FREE

    @pytest.mark.parametrize("renewed", ["1970-01-01T00:00:00.0Z", "2999-01-01T00:00:00.0Z", "nonsense"])
    def test_what_another_machines_clock_says_does_not_matter(self, renewed: str) -> None:
        watcher = Watcher(ME)
        assert watcher.see(record(renewed=renewed), now=100) == Sight.HELD
        assert watcher.see(record(renewed=renewed), now=112) == Sight.FREE

    def test_the_holders_own_length_counts(self) -> None:
        watcher = Watcher(ME)
        watcher.see(record(seconds=60), now=100)
        assert watcher.see(record(seconds=60), now=159) == Sight.HELD

    def test_one_whose_holder_was_removed_by_hand_is_waited_out(self) -> None:
        watcher = Watcher(ME)
        assert watcher.see(record("", renewed="t0"), now=100) == Sight.HELD
        assert watcher.see(record("", renewed="t0"), now=112) == Sight.FREE

    def test_one_that_vanished_is_waited_out(self) -> None:
        watcher = Watcher(ME)
        watcher.see(record(), now=100)
        assert watcher.see(None, now=111) == Sight.HELD
        assert watcher.see(None, now=112) == Sight.FREE

    def test_one_given_to_us_by_hand_is_waited_out(self) -> None:
        assert Watcher(ME).see(record(ME), now=100) == Sight.HELD

    def test_one_that_we_took_without_hearing_of_it_is_ours(self) -> None:
        watcher = Watcher(ME)
        watcher.wrote("t0")
        watcher.wrote("t1")
        assert watcher.see(record(ME, renewed="t0"), now=100) == Sight.MINE


@given(lease=st.integers(min_value=3, max_value=600))
def test_whatever_its_length_a_holder_stops_first(lease: int) -> None:
    times = Times(lease=lease)
    assert times.retry * 1.2 < times.deadline, "as client-go demands"
    assert 2 * times.request < times.deadline
    longest = times.writes - times.deadline
    assert longest > times.delivery, "there is time for the last write"
    assert times.deadline + longest < times.lease


@dataclass
class Clock:
    """Seconds that pass when the test says so."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Leases:
    """An API server that knows one Lease, with what it may do to a request."""

    body: dict[str, Any] | None = None
    versions: Any = field(default_factory=lambda: itertools.count(1))
    faults: list[Any] = field(default_factory=list)
    """For the next requests: an error for an answer, `lost` after it was carried out, what to do before it, or `ok`."""
    asked: list[str] = field(default_factory=list)
    frozen: bool = False

    async def get(self, path: str, **query: str) -> dict[str, Any]:
        return await self._answer("GET", self._found)

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        def create() -> dict[str, Any]:
            if self.body is not None:
                raise ExistsError("there is one")
            return self.set(body["spec"])

        return await self._answer("POST", create)

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        assert path == NAMED

        def merge() -> dict[str, Any]:
            if body["metadata"]["resourceVersion"] != self._found()["metadata"]["resourceVersion"]:
                raise ConflictError("has changed")
            spec = {**self._found()["spec"], **body["spec"]}
            return self.set({key: value for key, value in spec.items() if value is not None})

        return await self._answer("PATCH", merge)

    def set(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Write it, as anybody may."""
        self.body = {"metadata": {"resourceVersion": str(next(self.versions))}, "spec": dict(spec)}
        return self.body

    @property
    def holder(self) -> str:
        return str(self._found()["spec"].get("holderIdentity", ""))

    def _found(self) -> dict[str, Any]:
        if self.body is None:
            raise GoneError("there is none")
        return self.body

    async def _answer(self, verb: str, do: Any) -> dict[str, Any]:
        self.asked.append(verb)
        if self.frozen:
            await asyncio.Event().wait()
        fault = self.faults.pop(0) if self.faults else "ok"
        if isinstance(fault, Exception):
            raise fault
        if callable(fault):
            await fault()
        answer: dict[str, Any] = do()
        if fault == "lost":
            raise TransientError("the answer was lost")
        return answer


@dataclass
class Candidate:
    """One lease, and what became of it."""

    lease: Lease
    lost: list[str]
    over: asyncio.Event


@pytest.fixture
def leases() -> Leases:
    return Leases()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def candidate(leases: Leases, *, identity: str = ME, clock: Any = lease.clock, seconds: float = SECONDS) -> Candidate:
    lost: list[str] = []
    chosen = Settings(lease_namespace="operators").model_copy(update={"lease_seconds": seconds})
    over = asyncio.Event()

    def lose(reason: str) -> None:
        lost.append(reason)
        over.set()

    return Candidate(Lease(leases, settings=chosen, identity=identity, lost=lose, clock=clock), lost, over)


def held_by(identity: str) -> dict[str, Any]:
    return {"holderIdentity": identity, "leaseDurationSeconds": SECONDS, "renewTime": "t", "leaseTransitions": 4}


async def test_the_first_makes_it(leases: Leases, clock: Clock) -> None:
    found = candidate(leases, clock=clock, seconds=12)
    assert found.lease.left() == 0
    await found.lease.acquire()
    spec = leases._found()["spec"]
    assert spec["renewTime"] == spec["acquireTime"]
    assert spec["renewTime"].endswith("Z")
    assert len(spec["renewTime"]) == len("2026-01-01T00:00:00.000000Z"), "a MicroTime has six places, always"
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == (ME, 12, 0)
    assert found.lease.seen
    found.lease.stop()


async def test_what_may_be_written_shrinks_until_the_deadline(leases: Leases, clock: Clock) -> None:
    found = candidate(leases, clock=clock, seconds=12)
    await found.lease.acquire()
    assert found.lease.left() == 11
    clock.now += 7.9
    assert found.lease.left() == pytest.approx(3.1)
    clock.now += 0.1
    assert found.lease.left() == 0
    found.lease.stop()


async def test_it_counts_from_before_the_request_was_sent(leases: Leases, clock: Clock) -> None:
    """Whoever watches counts from later."""
    create = leases.post

    async def slow(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = await create(path, body)
        clock.now += 2
        return answer

    leases.post = slow  # type: ignore[method-assign] # one answer is late
    found = candidate(leases, clock=clock, seconds=12)
    await found.lease.acquire()
    assert found.lease.left() == 9
    found.lease.stop()


async def test_one_who_waits_takes_it_when_it_has_run_out(leases: Leases, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    leases.set(held_by(OTHER))
    found = candidate(leases)
    began = lease.clock()
    await found.lease.acquire()
    assert 1.5 <= lease.clock() - began < 2.0
    assert leases.holder == ME
    assert leases._found()["spec"]["leaseTransitions"] == 5
    assert leases.asked[-1] == "PATCH"
    assert leases.asked[:-1] in (["GET"] * 7, ["GET"] * 6), "once in a sixth of its length"
    assert caplog.text.count("held by pod-b_2: standing by") == 1
    found.lease.stop()


async def test_of_two_who_want_it_one_gets_it(leases: Leases) -> None:
    candidates = [candidate(leases, identity=f"pod_{number}") for number in range(2)]
    tasks = [asyncio.create_task(one.lease.acquire()) for one in candidates]
    done, waiting = await asyncio.wait(tasks, timeout=0.5)
    assert (len(done), len(waiting)) == (1, 1)
    assert [one.lease.left() > 0 for one in candidates].count(True) == 1
    for task in waiting:
        task.cancel()
    for one in candidates:
        one.lease.stop()


@pytest.mark.parametrize(
    "fault",
    [TransientError("away"), RefusedError("forbidden"), OperatorError("odd"), GoneError("no such namespace")],
    ids=["away", "refused", "odd", "gone"],
)
async def test_waiting_ends_by_nothing_but_the_lease(
    leases: Leases, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    leases.faults = [fault, fault, "ok", fault] if isinstance(fault, GoneError) else [fault] * 3
    found = candidate(leases)
    await found.lease.acquire()
    assert leases.holder == ME
    assert found.lost == []
    assert found.lease.trouble() is None
    found.lease.stop()


async def test_an_api_server_that_is_silent_is_asked_again_and_again(leases: Leases) -> None:
    leases.frozen = True
    found = candidate(leases)
    task = asyncio.create_task(found.lease.acquire())
    await asyncio.sleep(2.3)
    assert len(leases.asked) == 3, "each is given up after 0.75 s, and then there is a pause"
    assert not found.lease.seen
    leases.frozen = False
    await task
    found.lease.stop()


def test_waiting_that_does_not_go_on_is_trouble(leases: Leases, clock: Clock) -> None:
    found = candidate(leases, clock=clock)
    clock.now += 44
    assert found.lease.trouble() is None
    clock.now += 2
    assert found.lease.trouble() == "no look at the lease has ended for 46 s"


async def test_one_that_was_taken_without_an_answer_is_found_to_be_ours(leases: Leases) -> None:
    leases.faults = ["ok", "lost"]
    found = candidate(leases)
    async with asyncio.timeout(2):
        await found.lease.acquire()
    assert found.lease.left() > 0
    found.lease.stop()


@pytest.fixture
async def leader(leases: Leases) -> Any:
    found = candidate(leases)
    await found.lease.acquire()
    task = asyncio.create_task(found.lease.hold())
    yield found
    task.cancel()
    await asyncio.wait([task])
    found.lease.stop()


async def test_a_holder_renews(leader: Candidate, leases: Leases) -> None:
    before = leases._found()["spec"]
    await asyncio.sleep(1.6)
    after = leases._found()["spec"]
    assert leader.lease.left() > 0.9
    assert leader.lost == []
    assert after["renewTime"] > before["renewTime"]
    assert after["acquireTime"] == before["acquireTime"]
    assert after["leaseTransitions"] == 0
    assert 6 <= leases.asked.count("PATCH") <= 8


async def test_a_renewal_that_fails_is_repeated(leader: Candidate, leases: Leases) -> None:
    leases.faults = [TransientError("away"), "lost"]
    await asyncio.sleep(1.6)
    assert leader.lost == []
    assert leader.lease.left() > 0


async def test_renewals_that_went_through_without_an_answer_twice_are_found(leader: Candidate, leases: Leases) -> None:
    leases.faults = ["lost", "ok", "ok", "lost", "lost", "ok", "ok"]
    await asyncio.sleep(1.6)
    assert leader.lost == []
    assert leader.lease.left() > 0


@pytest.mark.parametrize("frozen", [False, True], ids=["refuses", "says nothing"])
async def test_at_the_deadline_a_holder_is_no_more(leader: Candidate, leases: Leases, frozen: bool) -> None:
    leases.frozen, leases.faults = frozen, [TransientError("away")] * 1000
    began = lease.clock()
    await leader.over.wait()
    assert 0.7 < lease.clock() - began < 1.2
    assert leader.lost[0] == "it wasn't renewed for 1 s"
    assert leader.lease.left() == 0


async def test_once_another_has_it_a_holder_is_no_more(leader: Candidate, leases: Leases) -> None:
    leases.set(held_by(OTHER))
    async with asyncio.timeout(1):
        await leader.over.wait()
    assert leases.holder == OTHER


async def test_once_it_is_deleted_a_holder_is_no_more(leader: Candidate, leases: Leases) -> None:
    leases.body = None
    async with asyncio.timeout(1):
        await leader.over.wait()


async def test_an_edit_that_changes_nothing_of_it_is_no_loss(leader: Candidate, leases: Leases) -> None:
    leases.set(leases._found()["spec"])
    await asyncio.sleep(1.2)
    assert leader.lost == []
    assert leader.lease.left() > 0


async def test_a_conflict_of_which_nothing_can_be_learnt_is_left_to_the_deadline(
    leader: Candidate, leases: Leases
) -> None:
    leases.faults = [ConflictError("changed"), TransientError("away")]
    await asyncio.sleep(1.2)
    assert leader.lost == []
    assert leader.lease.left() > 0


async def test_released_it_is_taken_at_once(leader: Candidate, leases: Leases) -> None:
    other = candidate(leases, identity=OTHER)
    task = asyncio.create_task(other.lease.acquire())
    await asyncio.sleep(0.2)
    leader.lease.stop()
    assert leader.lease.left() == 0
    await leader.lease.release()
    began = lease.clock()
    await task
    assert lease.clock() - began < 0.6
    assert leader.lost == [], "it left, it didn't lose"
    other.lease.stop()


async def test_a_renewal_that_runs_into_the_release_is_no_loss(leader: Candidate, leases: Leases) -> None:
    done = asyncio.Event()

    async def leave() -> None:
        leader.lease.stop()
        await leader.lease.release()
        done.set()

    leases.faults = [leave]
    await done.wait()
    await asyncio.sleep(0.1)
    assert leases.holder == ""
    assert leader.lost == []


async def test_anothers_is_never_released(leases: Leases) -> None:
    leases.set(held_by(OTHER))
    found = candidate(leases)
    found.lease.stop()
    await found.lease.release()
    assert leases.holder == OTHER
    assert leases.asked == ["GET"]


async def test_a_renewal_that_comes_back_after_the_end_revives_nothing(leases: Leases, clock: Clock) -> None:
    found = candidate(leases, clock=clock)
    await found.lease.acquire()
    found.lease.stop()
    await found.lease._renew(clock.now)
    assert found.lease.left() == 0


def test_every_process_has_an_identity_of_its_own() -> None:
    assert lease.identity() != lease.identity()


@given(data=st.data())
@settings(max_examples=200)
def test_no_two_ever_hold_it_whatever_is_slow_lost_or_paused(data: st.DataObject) -> None:
    """Two candidates whose clocks differ by any amount, on one time line. Each look and write may be late or lost."""
    times = Times(lease=12)
    leases: tuple[str, str, int] = ("", "", 0)  # holder, renewed, version
    offsets = (0.0, data.draw(st.floats(-1e6, 1e6)))
    watchers = (Watcher("p0_0"), Watcher("p1_1"))
    until = [0.0, 0.0]
    now = 0.0
    for step in range(data.draw(st.integers(5, 40))):
        now += data.draw(st.floats(0, 5))
        which = data.draw(st.sampled_from([0, 1]))
        holder, renewed, version = leases
        mine = f"p{which}_{which}"
        began = now
        seen = Record(holder=holder, seconds=12, renewed=renewed, transitions=0, version=str(version))
        sight = watchers[which].see(seen, now=now + offsets[which])
        leading = until[which] > now
        if not leading and sight == Sight.HELD:
            continue
        stamp = f"t{step}"
        watchers[which].wrote(stamp)
        now += data.draw(st.floats(0, 3))  # on the way there
        fate = data.draw(st.sampled_from(["ok", "lost", "dropped"]))
        if fate != "dropped":
            if leases[2] != version:
                continue
            leases = (mine, stamp, version + 1)
        now += data.draw(st.floats(0, 3))  # on the way back
        if fate == "ok":
            until[which] = began + times.deadline
        assert sum(end > now for end in until) <= 1
