"""The cache: fed in any order, by anyone, it ends with what is newest."""

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator import kinds
from finetune_operator.cache import Cache
from finetune_operator.kinds import CLAIM, JOB, POD, RUN
from tests import bodies, builders, worlds
from tests.worlds import KEY, UID


@pytest.fixture
def cache() -> Cache:
    """With the run in it, at version 7."""
    found = Cache()
    found.put(RUN, worlds.body())
    return found


def test_a_run_is_news_once() -> None:
    cache = Cache()
    assert cache.put(RUN, worlds.body()) == KEY
    assert cache.put(RUN, worlds.body()) is None
    assert cache.put(RUN, worlds.body(resourceVersion="6")) is None
    assert cache.put(RUN, worlds.body(resourceVersion="10")) == KEY, "numbers, not texts: 10 is newer than 7"


def test_children_wake_their_run_and_are_found_by_its_uid(cache: Cache) -> None:
    assert [cache.put(JOB, bodies.job()), cache.put(POD, bodies.running()), cache.put(CLAIM, bodies.claim())] == [
        KEY
    ] * 3
    world = cache.world(KEY)
    assert world
    assert [job.name for job in world.jobs] == ["support-bot-1"]
    assert [pod.ip for pod in world.pods] == ["10.0.0.7"]
    assert world.claim
    assert world.claim.name == f"support-bot-{UID[:8]}"


def test_children_of_an_earlier_run_of_the_same_name_are_not_this_ones(cache: Cache) -> None:
    other = {"ownerReferences": [{"controller": True, "uid": "another"}]}
    cache.put(JOB, bodies.job(metadata=other))
    cache.put(POD, bodies.running(metadata={"annotations": {"finetune.dev/run-uid": "another"}}))
    world = cache.world(KEY)
    assert world
    assert (world.jobs, world.pods) == ((), ())


def test_a_pod_is_known_to_be_the_runs_even_when_its_job_is_gone(cache: Cache) -> None:
    cache.put(JOB, bodies.job())
    cache.put(POD, bodies.running())
    cache.delete(JOB, bodies.job(version=11))
    world = cache.world(KEY)
    assert world
    assert (len(world.jobs), len(world.pods)) == (0, 1)


def test_children_that_come_before_their_run_are_kept_for_it() -> None:
    cache = Cache()
    cache.put(JOB, bodies.job())
    assert cache.world(KEY) is None
    cache.put(RUN, worlds.body())
    world = cache.world(KEY)
    assert world
    assert len(world.jobs) == 1


def test_what_was_deleted_does_not_come_back_by_a_late_answer(cache: Cache) -> None:
    assert cache.delete(RUN, worlds.body(resourceVersion="9")) == KEY
    assert cache.put(RUN, worlds.body(resourceVersion="8")) is None
    assert cache.world(KEY) is None
    assert cache.delete(RUN, worlds.body(resourceVersion="9")) is None


def test_a_list_shows_what_is_gone(cache: Cache) -> None:
    cache.put(JOB, bodies.job(1, version=10))
    cache.put(JOB, bodies.job(2, version=12))
    cache.put(JOB, bodies.job(3, version=30))
    assert cache.prune(JOB, namespace=None, seen=["job-2"], version="20") == {KEY}
    world = cache.world(KEY)
    assert world
    assert [job.uid for job in world.jobs] == ["job-2", "job-3"], "the third is newer than the list"


def test_a_list_of_one_namespace_says_nothing_of_others(cache: Cache) -> None:
    assert cache.prune(RUN, namespace="elsewhere", seen=[], version="99") == set()
    assert cache.world(KEY)
    assert cache.prune(RUN, namespace="ml", seen=[], version="99") == {KEY}
    assert cache.world(KEY) is None


def test_a_list_of_one_runs_children_says_nothing_of_others(cache: Cache) -> None:
    other = worlds.body(uid="other", name="other")
    owner = {"ownerReferences": [{"controller": True, "uid": "other"}], "labels": {"finetune.dev/run": "other"}}
    cache.put(RUN, other)
    cache.put(JOB, bodies.job(uid="job-of-other", metadata=owner))
    cache.put(JOB, bodies.job())
    cache.put(POD, bodies.pod())
    cache.prune_children(JOB, run_uid=UID, seen=[], version="99")
    mine, others = cache.world(KEY), cache.world(KEY._replace(name="other"))
    assert mine
    assert others
    assert (len(mine.jobs), len(mine.pods), len(others.jobs)) == (0, 1, 1)


def test_a_run_made_again_under_its_name_takes_its_place(cache: Cache) -> None:
    cache.put_snapshot(worlds.snapshot())
    assert cache.put(RUN, worlds.body(uid="second", resourceVersion="20")) == KEY
    late = cache.put(RUN, worlds.body(resourceVersion="19"))
    world = cache.world(KEY)
    assert world
    assert (world.run.metadata.uid, world.snapshot, late) == ("second", None, KEY)
    cache.delete(RUN, worlds.body(resourceVersion="21"))
    assert cache.world(KEY), "the deletion of the first is not the second's"


def test_an_object_that_cannot_be_read_hides_itself_alone(cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    broken = bodies.job(2, status={"conditions": [{"status": "True"}]})
    with caplog.at_level(logging.WARNING):
        cache.put(JOB, broken)
        cache.put(JOB, broken)
        cache.put(JOB, bodies.job(1))
    world = cache.world(KEY)
    assert world
    assert [job.attempt for job in world.jobs] == [1]
    assert [record.message for record in caplog.records] == [
        "Job ml/support-bot-2 can't be read and is left alone: KeyError 'type'"
    ]


def test_a_run_whose_status_became_unreadable_is_not_acted_on(cache: Cache) -> None:
    cache.put(RUN, worlds.body(status={"attempt": "many"}, resourceVersion="8"))
    assert cache.world(KEY) is None
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
    world = cache.world(KEY)
    assert world
    assert world.snapshot
    assert (world.snapshot == known.model_copy(update=change)) is (news or not change)


def test_a_snapshot_goes_with_its_run(cache: Cache) -> None:
    cache.put_snapshot(worlds.snapshot())
    cache.forget(KEY)
    cache.put(RUN, worlds.body(resourceVersion="8"))
    world = cache.world(KEY)
    assert world
    assert world.snapshot is None


def test_active_runs_are_those_that_have_not_ended(cache: Cache) -> None:
    ended = {"type": "Finished", "status": "True", "reason": "Completed", "lastTransitionTime": builders.CREATED}
    cache.put(RUN, worlds.body(uid="2", name="ended", status={"conditions": [ended], "phase": "Completed"}))
    assert [run.key for run in cache.active()] == [KEY]
    assert sorted(cache.phases()) == ["Completed", "Pending"]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 6)), max_size=30), st.randoms(use_true_random=False))
def test_any_order_of_arrival_ends_with_what_is_newest(arrivals: list[tuple[str, int]], order: Any) -> None:
    """Versions of two Jobs; the sixth version of a Job is its deletion."""
    order.shuffle(arrivals)
    cache = Cache()
    cache.put(RUN, worlds.body())
    for name, version in arrivals:
        body = bodies.job(1, uid=name, version=version, status={"active": version})
        cache.delete(JOB, body) if version == 6 else cache.put(JOB, body)
    newest = {name: max(version for other, version in arrivals if other == name) for name, _ in arrivals}
    world = cache.world(KEY)
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
