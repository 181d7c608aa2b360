"""The cache: fed in any order, by anyone, it ends with what is newest."""

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.snapshot import Snapshot
from finetune_api.status import ResolvedModel
from finetune_operator import kinds
from finetune_operator.admission import Line
from finetune_operator.cache import Cache
from finetune_operator.errors import UserError
from finetune_operator.kinds import CLAIM, JOB, POD, RUN
from finetune_operator.settings import Limits
from tests import bodies, builders, worlds
from tests.worlds import KEY, UID


@pytest.fixture
def cache() -> Cache:
    """With the run in it, at version 7."""
    found = worlds.cache()
    found.put(RUN, worlds.body())
    return found


def test_a_run_is_news_once() -> None:
    cache = worlds.cache()
    assert cache.put(RUN, worlds.body()) == KEY
    assert cache.put(RUN, worlds.body()) is None
    assert cache.put(RUN, worlds.body(resourceVersion="6")) is None
    assert cache.put(RUN, worlds.body(resourceVersion="10")) == KEY, "numbers, not texts: 10 is newer than 7"


def test_children_wake_their_run_and_are_found_by_its_uid(cache: Cache) -> None:
    assert [cache.put(JOB, bodies.job()), cache.put(POD, bodies.running()), cache.put(CLAIM, bodies.claim())] == [
        KEY
    ] * 3
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert [job.name for job in world.jobs] == ["support-bot-1"]
    assert [pod.ip for pod in world.pods] == ["10.0.0.7"]
    assert world.claim
    assert world.claim.name == f"support-bot-{UID[:8]}"


def test_children_of_an_earlier_run_of_the_same_name_are_not_this_ones(cache: Cache) -> None:
    other = {"ownerReferences": [{"controller": True, "uid": "another"}]}
    cache.put(JOB, bodies.job(metadata=other))
    cache.put(POD, bodies.running(metadata={"annotations": {"finetune.dev/run-uid": "another"}}))
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert (world.jobs, world.pods) == ((), ())


def test_a_pod_is_known_to_be_the_runs_even_when_its_job_is_gone(cache: Cache) -> None:
    cache.put(JOB, bodies.job())
    cache.put(POD, bodies.running())
    cache.delete(JOB, bodies.job(version=11))
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert (len(world.jobs), len(world.pods)) == (0, 1)


def test_children_that_come_before_their_run_are_kept_for_it() -> None:
    cache = worlds.cache()
    cache.put(JOB, bodies.job())
    assert cache.world(KEY, now=worlds.NOW) is None
    cache.put(RUN, worlds.body())
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert len(world.jobs) == 1


def test_what_was_deleted_does_not_come_back_by_a_late_answer(cache: Cache) -> None:
    assert cache.delete(RUN, worlds.body(resourceVersion="9")) == KEY
    assert cache.put(RUN, worlds.body(resourceVersion="8")) is None
    assert cache.world(KEY, now=worlds.NOW) is None
    assert cache.delete(RUN, worlds.body(resourceVersion="9")) is None


def test_a_list_shows_what_is_gone(cache: Cache) -> None:
    cache.put(JOB, bodies.job(1, version=10))
    cache.put(JOB, bodies.job(2, version=12))
    cache.put(JOB, bodies.job(3, version=30))
    assert cache.prune(JOB, namespace=None, seen=["job-2"], version="20") == {KEY}
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert [job.uid for job in world.jobs] == ["job-2", "job-3"], "the third is newer than the list"


def test_a_list_of_one_namespace_says_nothing_of_others(cache: Cache) -> None:
    assert cache.prune(RUN, namespace="elsewhere", seen=[], version="99") == set()
    assert cache.world(KEY, now=worlds.NOW)
    assert cache.prune(RUN, namespace="ml", seen=[], version="99") == {KEY}
    assert cache.world(KEY, now=worlds.NOW) is None


def test_a_list_of_one_runs_children_says_nothing_of_others(cache: Cache) -> None:
    other = worlds.body(uid="other", name="other")
    owner = {"ownerReferences": [{"controller": True, "uid": "other"}], "labels": {"finetune.dev/run": "other"}}
    cache.put(RUN, other)
    cache.put(JOB, bodies.job(uid="job-of-other", metadata=owner))
    cache.put(JOB, bodies.job())
    cache.put(POD, bodies.pod())
    cache.prune_children(JOB, run_uid=UID, seen=[], version="99")
    mine, others = cache.world(KEY, now=worlds.NOW), cache.world(KEY._replace(name="other"), now=worlds.NOW)
    assert mine
    assert others
    assert (len(mine.jobs), len(mine.pods), len(others.jobs)) == (0, 1, 1)


def test_a_run_made_again_under_its_name_takes_its_place(cache: Cache) -> None:
    cache.put_snapshot(worlds.snapshot())
    assert cache.put(RUN, worlds.body(uid="second", resourceVersion="20")) == KEY
    late = cache.put(RUN, worlds.body(resourceVersion="19"))
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert (world.run.metadata.uid, world.snapshot, late) == ("second", None, KEY)
    cache.delete(RUN, worlds.body(resourceVersion="21"))
    assert cache.world(KEY, now=worlds.NOW), "the deletion of the first is not the second's"


def test_an_object_that_cannot_be_read_hides_itself_alone(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    broken = bodies.job(2, status={"conditions": [{"status": "True"}]})
    with caplog.at_level(logging.WARNING):
        cache.put(JOB, broken)
        cache.put(JOB, broken)
        cache.put(JOB, bodies.job(1))
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert [job.attempt for job in world.jobs] == [1]
    assert [record.message for record in caplog.records] == [
        "Job ml/support-bot-2 can't be read and is left alone: KeyError 'type'"
    ]


def test_a_run_whose_status_became_unreadable_is_not_acted_on(cache: Cache) -> None:
    cache.put(RUN, worlds.body(status={"attempt": "many"}, resourceVersion="8"))
    assert cache.world(KEY, now=worlds.NOW) is None
    assert list(cache.active()) == []


@pytest.mark.parametrize(
    ("change", "news"),
    [({}, False), ({"sequence": 5}, False), ({"sequence": 7}, True), ({"attempt": 2, "sequence": 1}, True)],
    ids=["the same again", "an older one", "a newer one", "the next attempt's first"],
)
def test_a_snapshot_is_news_if_it_says_more(cache: Cache, change: dict[str, Any], news: bool) -> None:
    known = worlds.snapshot()
    assert cache.put_snapshot(known)
    assert cache.put_snapshot(known.model_copy(update=change)) is news
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert world.snapshot
    assert (world.snapshot == known.model_copy(update=change)) is (news or not change)


def test_a_snapshot_goes_with_its_run(cache: Cache) -> None:
    cache.put_snapshot(worlds.snapshot())
    cache.forget(KEY)
    cache.put(RUN, worlds.body(resourceVersion="8"))
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert world.snapshot is None


def test_active_runs_are_those_that_have_not_ended(cache: Cache) -> None:
    ended = {"type": "Finished", "status": "True", "reason": "Completed", "lastTransitionTime": builders.CREATED}
    cache.put(RUN, worlds.body(uid="2", name="ended", status={"conditions": [ended], "phase": "Completed"}))
    assert [run.key for run in cache.active()] == [KEY]
    assert sorted(run.status.phase or "" for run, _ in cache.seen()) == ["", "Completed"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 6)), max_size=30), st.randoms(use_true_random=False))
def test_any_order_of_arrival_ends_with_what_is_newest(arrivals: list[tuple[str, int]], order: Any) -> None:
    """Versions of two Jobs; the sixth version of a Job is its deletion."""
    order.shuffle(arrivals)
    cache = worlds.cache()
    cache.put(RUN, worlds.body())
    for name, version in arrivals:
        body = bodies.job(1, uid=name, version=version, status={"active": version})
        cache.delete(JOB, body) if version == 6 else cache.put(JOB, body)
    newest = {name: max(version for other, version in arrivals if other == name) for name, _ in arrivals}
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert {job.uid: job.active for job in world.jobs} == {n: v for n, v in newest.items() if v != 6}


@pytest.mark.parametrize(
    ("kind", "namespace", "name", "path"),
    [
        (RUN, None, None, "/apis/finetune.dev/v1alpha1/finetuneruns"),
        (RUN, "ml", "x", "/apis/finetune.dev/v1alpha1/namespaces/ml/finetuneruns/x"),
        (JOB, "ml", None, "/apis/batch/v1/namespaces/ml/jobs"),
        (POD, "ml", "x", "/api/v1/namespaces/ml/pods/x"),
        (CLAIM, None, None, "/api/v1/persistentvolumeclaims"),
    ],
)
def test_where_the_api_server_keeps_things(
    kind: kinds.Kind, namespace: str | None, name: str | None, path: str
) -> None:
    assert kind.path(namespace, name) == path


def test_a_run_s_place_in_the_line_follows_what_is_seen_of_it() -> None:
    line = Line(Limits(1))
    cache = Cache(line=line)
    for number, name in enumerate(("first", "second")):
        cache.put(RUN, worlds.body(uid=name, name=name, creationTimestamp=f"2026-03-01T12:00:0{number}Z"))
    assert [run.key.name for run in cache.active()] == ["first"], "nothing can happen to one that waits"
    assert line.turn("second").position == 2
    cache.delete(RUN, worlds.body(uid="first", name="first", resourceVersion="8"))
    assert [run.key.name for run in cache.active()] == ["second"]
    cache.put(RUN, worlds.body(uid="third", name="third", resourceVersion="9"))
    cache.put(RUN, worlds.body(uid="second", name="second", status={"attempt": "many"}, resourceVersion="10"))
    assert [run.key.name for run in cache.active()] == ["third"], "one that can't be read takes no part"
    cache.prune(RUN, namespace=None, seen=["second"], version="11")
    assert line.called() == frozenset()


def test_a_run_made_again_under_its_name_gives_up_its_place_in_the_line() -> None:
    line = Line(Limits(1))
    cache = Cache(line=line)
    cache.put(RUN, worlds.body(uid="old", status=worlds.status(1)))
    cache.put(RUN, worlds.body(uid="new", resourceVersion="20"))
    assert line.called() == {"new"}


def test_the_world_has_what_the_model_stands_for(cache: Cache) -> None:
    """Of another run of the same namespace alone."""
    child = worlds.body({"model.uri": "run://parent"}, uid="child", name="child")
    cache.put(RUN, child)
    key = KEY._replace(name="child")
    world = cache.world(key, now=worlds.NOW)
    assert world
    assert isinstance(world.model, UserError)
    ended = {"type": "Finished", "status": "True", "reason": "Completed", "lastTransitionTime": builders.CREATED}
    told = {"conditions": [ended], "phase": "Completed", "output": {"uri": "pvc://parent/output"}}
    for number, namespace in enumerate(("elsewhere", KEY.namespace)):
        found = worlds.body(
            {"model.uri": "hf://org/tiny"}, uid=namespace, name="parent", namespace=namespace, status=told
        )
        assert isinstance(world.model, UserError), f"parent {number} is not in the namespace"
        cache.put(RUN, found)
        world = cache.world(key, now=worlds.NOW)
        assert world
    assert world.model == ResolvedModel(uri="hf://org/tiny", adapter_uri="pvc://parent/output")


def test_of_a_pod_that_is_deleted_as_soon_as_it_has_ended_the_last_word_is_kept(cache: Cache) -> None:
    cache.put(POD, bodies.running())
    state = {"terminated": {"exitCode": 75, "message": worlds.last_word(75)}}
    end = {"phase": "Failed", "containerStatuses": [{"name": "trainer", "state": state}]}
    cache.delete(POD, bodies.pod(status=end, version=12))
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert [pod.exit_code for pod in world.pods] == [75]
    word = Snapshot.decode(world.pods[0].last_word)
    assert word.error
    assert word.error.exit_code == 75


@pytest.mark.parametrize("word", ["", "Segmentation fault", '{"half', "[]"])
def test_a_pod_that_leaves_no_word_leaves_none(cache: Cache, word: str) -> None:
    state = {"terminated": {"exitCode": 1, "message": word}}
    cache.delete(POD, bodies.pod(status={"containerStatuses": [{"name": "trainer", "state": state}]}, version=12))
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert world.snapshot is None
