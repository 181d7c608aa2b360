"""One snapshot of the world: which Job and pod count, and whose word is taken."""

import pytest
from pydantic import ValidationError

from finetune_operator import names
from finetune_operator.run import Run
from finetune_operator.world import ChildWarning, World
from tests import worlds
from tests.worlds import KEY, UID


def test_a_run_is_read_with_its_key_and_status() -> None:
    found = worlds.run(status=worlds.status(2))
    assert found.key == KEY
    assert found.problem is None
    assert found.status.attempt == 2


def test_a_spec_that_cannot_be_read_is_a_problem_that_names_the_field() -> None:
    found = worlds.run({"training.maxDuration": "3 epochs"})
    assert found.spec is None
    assert found.problem is not None
    assert found.problem.field == "spec.training.maxDuration"
    assert "e.g. 3ep" in found.problem.message
    assert "'3 epochs'" in found.problem.message


def test_a_status_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(ValidationError):
        Run.parse(worlds.body(status={"attempt": "many"}))


def test_the_job_is_the_newest_attempt_s() -> None:
    found = worlds.world(worlds.run(status=worlds.status(2)), jobs=(worlds.job(1), worlds.job(2)))
    assert found.attempt == 2
    assert found.job == worlds.job(2)
    assert worlds.world(worlds.run(status=worlds.status(3)), jobs=(worlds.job(2),)).job is None


def test_the_pod_is_the_one_that_runs_or_the_last_one_made() -> None:
    old = worlds.ended(1, name="old", created=worlds.at(1))
    new = worlds.ended(1, name="new", created=worlds.at(9))
    runs = worlds.running(name="runs", created=worlds.at(5))
    other = worlds.running(2, name="other")
    run = worlds.run(status=worlds.status(1))
    assert worlds.world(run, pods=(new, old, other)).pod == new
    assert worlds.world(run, pods=(new, runs, old)).pod == runs
    assert worlds.world(run, pods=(other,)).pod is None


def told(world: World) -> int | None:
    snapshot = world.newest_snapshot
    return snapshot.progress.batch if snapshot and snapshot.progress else None


@pytest.mark.parametrize(
    ("world", "batch"),
    [
        pytest.param({}, None, id="nobody said anything"),
        pytest.param({"snapshot": worlds.snapshot(5)}, 5, id="the answer to a poll"),
        pytest.param({"snapshot": worlds.snapshot(5, attempt=2)}, None, id="an answer of another attempt"),
        pytest.param({"snapshot": worlds.snapshot(5, run_uid="other")}, None, id="an answer about another run"),
        pytest.param(
            {"snapshot": worlds.snapshot(5), "pods": (worlds.ended(0, last_word=worlds.last_word()),)},
            20,
            id="the last word goes before a poll",
        ),
        pytest.param(
            {"snapshot": worlds.snapshot(5), "pods": (worlds.ended(1, last_word="Segmentation fault"),)},
            5,
            id="a last word that is no snapshot",
        ),
        pytest.param(
            {"pods": (worlds.ended(0, last_word=worlds.last_word().replace("Z", "")),)},
            None,
            id="a time without a zone",
        ),
        pytest.param(
            {"pods": (worlds.ended(0, last_word=worlds.last_word(run_uid="other")),)},
            None,
            id="a last word about another run",
        ),
    ],
)
def test_whose_word_is_taken(world: dict[str, object], batch: int | None) -> None:
    assert told(worlds.world(worlds.run(status=worlds.status(1)), **world)) == batch


def test_warnings_are_added_and_nothing_else_changes() -> None:
    warning = ChildWarning(kind="Job", name=names.job(KEY.name, 1), reason="FailedCreate", message="quota")
    world = worlds.world(jobs=(worlds.job(),))
    assert world.with_warnings((warning,)).warnings == (warning,)
    assert world.with_warnings((warning,)).with_warnings(()) == world
    assert world.run.metadata.uid == UID
