"""Thousands of odd runs, each from its first look to its end, with children that another client has mutated.

Each is refused by a field's name, or handled, or in a condition that has a name; nothing is ever raised but what the
queue expects. ODD_RUNS=10000 tries as many, ODD_SEED another ten thousand.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from finetune_api.snapshot import LastError, Snapshot
from finetune_api.status import ConditionStatus, ConditionType, Phase
from finetune_operator import jobs
from finetune_operator.admission import Line
from finetune_operator.children import Pod
from finetune_operator.errors import TransientError, UserError
from finetune_operator.memory import CLAIM, JOB, POD, Memory, Ref
from finetune_operator.names import Key
from finetune_operator.run import Run
from finetune_operator.settings import Limits
from tests import worlds
from tests.odd.cached import Cached
from tests.odd.generator import WORDS, Generator, Oddity
from tests.odd.mutations import CODES, mutated

COUNT = int(os.environ.get("ODD_RUNS", "1200"))
SEED = int(os.environ.get("ODD_SEED", "0"))
PARTS = 4
NUMBERS = (0.0, 1.0, 0.5, 1e300, 1e-300, 100_000.0)


@pytest.fixture(autouse=True)
def nothing_is_logged() -> Iterator[None]:
    log = logging.getLogger("finetune_operator")
    level = log.level
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(level)


class Story:
    """One odd run in a cluster of its own."""

    def __init__(self, number: int) -> None:
        self.make = Generator(SEED * 1_000_000 + number)
        self.chance = self.make.random
        self.clock = worlds.Clock()
        self.memory = Memory(clock=self.clock)
        self.cluster = Cached(self.memory)
        self.reconcile = worlds.reconciler(self.cluster, line=Line(Limits()), clock=self.clock)
        self.oddity = self.chance.choice((Oddity.BROKEN, Oddity.VALID, Oddity.TAME, Oddity.TAME))
        body = self.make.run(self.make.name(number), namespace="odd", oddity=self.oddity)
        self.key = Key("odd", body["metadata"]["name"])
        self.tampered = self.chance.random() < 0.1
        profile = body["spec"].get("profile")
        if isinstance(profile, str) and self.chance.random() < 0.7:
            self.memory.add(self.make.profile(profile))
        self.memory.add(body | {"status": self.make.status() if self.tampered else {"observedGeneration": -1}})

    def look(self, times: int = 2) -> None:
        for _ in range(times):
            try:
                worlds.finish(self.reconcile(self.key))
            except (TransientError, UserError):
                self.clock.tick(1)

    def tell(self) -> None:
        """From beginning to end."""
        self.look(3)
        jobs.control(self.memory)
        self.under_another_s_hands()
        for ref in self.pods():
            jobs.start_pod(self.memory, ref)
        self.clock.tick(self.chance.choice((1, 60, 10**6)))
        self.look()
        self.answer()
        self.under_another_s_hands()
        self.look()
        for ref in self.pods():
            word = self.chance.choice((*WORDS, "[]", '{"', worlds.last_word(), "x" * 5000))
            jobs.end_pod(self.memory, ref, exit_code=self.chance.choice(CODES), last_word=word)
        jobs.control(self.memory)
        self.under_another_s_hands()
        self.look(3)

    def under_another_s_hands(self) -> None:
        children = [body for kind in (JOB, POD, CLAIM) for body in self.memory.all(kind)]
        self.cluster.instead = {
            body["metadata"]["uid"]: mutated(body, self.chance) for body in children if self.chance.random() < 0.5
        }
        self.look()
        self.cluster.instead = {}
        self.look()

    def pods(self) -> list[Ref]:
        return [Ref.of(body) for body in self.memory.all(POD) if not Pod.parse(body).ended]

    def answer(self) -> None:
        """Of a trainer that may say anything that a snapshot can hold."""
        found = self.run
        if found is None or found.status.attempt == 0:
            return
        chance = self.chance
        told = worlds.progress().model_copy(
            update={
                "batch": chance.choice((0, 1, 2**53 - 1)),
                "total_batches": chance.choice((0, 1, 2**53 - 1)),
                "eta_seconds": chance.choice((None, 0, 2**53 - 1)),
                "loss": chance.choice((None, -1e300, *NUMBERS)),
                "learning_rate": chance.choice((None, *NUMBERS)),
                "device_utilization": chance.choice((None, 0.0, 1.0)),
                "cpu_utilization": chance.choice((None, 0.0, 100_000.0)),
                "tokens": 2**53 - 1,
                "in_tokens": chance.random() < 0.5,
                "total_tokens": chance.choice((0, 1, 2**53 - 1)),
                "last_step_time": chance.choice((None, worlds.at(-(10**9)), worlds.at(10**9))),
            }
        )
        saved = tuple(worlds.saved(step, path="a" * 512) for step in chance.choice(((), (1, 1), tuple(range(100)))))
        error = LastError(reason="Hung", message=self.make.text(1024), exit_code=chance.choice((0, 75, 255)))
        self.memory.snapshots[self.key] = Snapshot(
            run_uid=found.metadata.uid,
            attempt=found.status.attempt,
            sequence=chance.choice((0, 2**53 - 1)),
            time=chance.choice((worlds.NOW, worlds.at(10**9))),
            progress=told,
            checkpoints=saved,
            error=chance.choice((None, error)),
        )

    @property
    def run(self) -> Run | None:
        body = self.memory.get(Ref.run(self.key))
        return Run.parse(body) if body else None


def outcome(found: Run | None) -> str:
    """In one word; an AssertionError for one that nobody understands."""
    if found is None:
        return "deleted"
    status = found.status
    if found.spec is not None and found.spec.managed_by != "finetune.dev/operator":
        return "left alone"
    if status.is_finished and status.phase is Phase.COMPLETED:
        return "Completed"
    if status.is_finished and status.failure is not None and status.failure.attempt is not None:
        return f"failed: {status.failure.reason}"
    accepted = status.condition(ConditionType.ACCEPTED)
    if accepted is not None and accepted.status == ConditionStatus.FALSE:
        assert "spec." in accepted.message, "a field is named"
        return "refused"
    assert status.phase is not None, "something is told of it"
    if status.is_finished:
        return status.phase.value
    active = status.condition(ConditionType.RECONCILING)
    assert active is not None
    assert active.reason
    return status.phase.value


@pytest.mark.parametrize("part", range(PARTS))
def test_odd_runs_are_refused_by_name_or_handled_or_in_a_condition_with_a_name(part: int) -> None:
    found: Counter[str] = Counter()
    for number in range(part, COUNT, PARTS):
        story = Story(number)
        try:
            story.tell()
            found["tampered" if story.tampered else outcome(story.run)] += 1
        except ValidationError:
            assert story.tampered, "only who writes a run's status can make one that nothing may follow"
            found["tampered"] += 1
        except Exception as error:
            error.add_note(f"run {number} of seed {SEED}, {story.oddity.name}, tampered: {story.tampered}")
            raise
    told = {word.partition(":")[0] for word in found}
    assert told >= {"refused", "failed", "deleted", "Completed"}, f"the generator has lost its teeth: {found}"


def test_the_same_seed_makes_the_same_runs() -> None:
    for number in (1, 2, 3):
        one, other = (Generator(number).run("x", namespace="n", oddity=Oddity.VALID) for _ in range(2))
        assert one == other
