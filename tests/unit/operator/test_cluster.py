"""Kubernetes as the loop sees it: reads that bring the cache up to date, and writes that are safe to repeat."""

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.status import Phase
from finetune_operator import kinds, manifests
from finetune_operator.cache import Cache
from finetune_operator.cluster import KubernetesCluster, merge_patch
from finetune_operator.connection import Connection
from finetune_operator.errors import ConflictError, GoneError, RefusedError, TakenError, TransientError
from tests import bodies, worlds
from tests.apiserver import ApiServer
from tests.worlds import KEY, SETTINGS

RUN_PATH = "/apis/finetune.dev/v1alpha1/namespaces/ml/finetuneruns/support-bot"
JOBS = "/apis/batch/v1/namespaces/ml/jobs"
PODS = "/api/v1/namespaces/ml/pods"
CLAIMS = "/api/v1/namespaces/ml/persistentvolumeclaims"
EVENTS = "/api/v1/namespaces/ml/events"


@pytest.fixture
def cache() -> Cache:
    return worlds.cache()


@pytest.fixture
def cluster(api: Connection, cache: Cache) -> KubernetesCluster:
    return KubernetesCluster(api, cache=cache)


def listed(*items: Any, version: int = 50) -> Any:
    return {"items": list(items), "metadata": {"resourceVersion": str(version)}}


def there_is(server: ApiServer, *, run: Any = None, jobs: Any = None, pods: Any = None, claims: Any = None) -> None:
    server.on("GET", RUN_PATH, run or worlds.body())
    server.on("GET", JOBS, jobs or listed())
    server.on("GET", PODS, pods or listed())
    server.on("GET", CLAIMS, claims or listed())


async def test_a_look_at_the_cache_asks_nobody(cluster: KubernetesCluster, cache: Cache, server: ApiServer) -> None:
    assert await cluster.observe(KEY, fresh=False, now=worlds.NOW) is None
    cache.put(kinds.RUN, worlds.body())
    assert await cluster.observe(KEY, fresh=False, now=worlds.NOW) == cache.world(KEY, now=worlds.NOW)
    assert server.asked == []


async def test_a_fresh_look_sees_what_no_watch_has_told(
    cluster: KubernetesCluster, cache: Cache, server: ApiServer
) -> None:
    cache.put(kinds.JOB, bodies.job(1))
    there_is(server, jobs=listed(bodies.job(2)), pods=listed(bodies.running(2)), claims=listed(bodies.claim()))
    world = await cluster.observe(KEY, fresh=True, now=worlds.NOW)
    assert world
    assert [job.attempt for job in world.jobs] == [2], "the first is gone"
    assert len(world.pods) == 1
    assert world.claim
    assert cache.world(KEY, now=worlds.NOW) == world
    selector = "app.kubernetes.io/managed-by=finetune-operator,finetune.dev/run=support-bot"
    asked = {asked.path: asked.query for asked in server.asked}
    assert asked == {RUN_PATH: {}} | {path: {"labelSelector": selector} for path in (JOBS, PODS, CLAIMS)}


async def test_a_run_that_is_gone_is_forgotten(cluster: KubernetesCluster, cache: Cache, server: ApiServer) -> None:
    cache.put(kinds.RUN, worlds.body())
    assert await cluster.observe(KEY, fresh=True, now=worlds.NOW) is None
    assert cache.world(KEY, now=worlds.NOW) is None


async def test_a_claim_that_the_user_named_is_read_by_its_name(cluster: KubernetesCluster, server: ApiServer) -> None:
    there_is(server, run=worlds.body({"storage.claimName": "mine"}))
    server.on("GET", f"{CLAIMS}/mine", {"metadata": {"name": "mine", "uid": "1"}, "status": {"phase": "Lost"}})
    world = await cluster.observe(KEY, fresh=True, now=worlds.NOW)
    assert world
    assert world.claim
    assert (world.claim.name, world.claim.phase) == ("mine", "Lost")


async def test_a_claim_of_the_user_may_be_missing(cluster: KubernetesCluster, server: ApiServer) -> None:
    there_is(server, run=worlds.body({"storage.claimName": "mine"}))
    world = await cluster.observe(KEY, fresh=True, now=worlds.NOW)
    assert world
    assert world.claim is None


def job_manifest() -> Any:
    return manifests.job(worlds.run(), attempt=1, settings=SETTINGS)


async def test_what_was_created_is_known_at_once(cluster: KubernetesCluster, cache: Cache, server: ApiServer) -> None:
    cache.put(kinds.RUN, worlds.body())
    server.on("POST", JOBS, bodies.job(), status=201)
    await cluster.create(worlds.run(), job_manifest())
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert len(world.jobs) == 1
    assert server.last().body == job_manifest()


@pytest.mark.parametrize(
    ("manifest", "path", "body"),
    [
        (job_manifest(), JOBS, bodies.job()),
        (manifests.claim(worlds.run()), CLAIMS, bodies.claim()),
    ],
    ids=["Job", "claim"],
)
async def test_what_is_there_already_and_the_runs_own_is_adopted(
    cluster: KubernetesCluster, cache: Cache, server: ApiServer, manifest: Any, path: str, body: Any
) -> None:
    """The create was done, and its answer was lost."""
    cache.put(kinds.RUN, worlds.body())
    server.refuses("POST", path, 409, reason="AlreadyExists")
    server.on("GET", f"{path}/{manifest['metadata']['name']}", body)
    await cluster.create(worlds.run(), manifest)
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert bool(world.jobs) != bool(world.claim)


@pytest.mark.parametrize(
    ("manifest", "path", "way_out"),
    [
        (job_manifest(), JOBS, "create the run under another name"),
        (manifests.claim(worlds.run()), CLAIMS, "name another in spec.storage.claimName"),
    ],
    ids=["Job", "claim"],
)
async def test_what_is_another_ones_is_left_alone(
    cluster: KubernetesCluster, server: ApiServer, manifest: Any, path: str, way_out: str
) -> None:
    name = manifest["metadata"]["name"]
    server.refuses("POST", path, 409, reason="AlreadyExists")
    stranger = {
        "name": name,
        "namespace": "ml",
        "uid": "1",
        "resourceVersion": "3",
        "labels": manifest["metadata"]["labels"],
    }
    server.on("GET", f"{path}/{name}", {"metadata": stranger})
    with pytest.raises(TakenError, match=f"{name} exists and isn't this run's: delete it, or {way_out}"):
        await cluster.create(worlds.run(), manifest)


@pytest.mark.parametrize(
    ("status", "expected"), [(403, RefusedError), (422, RefusedError), (409, ConflictError), (500, TransientError)]
)
async def test_a_create_that_is_refused_says_why(
    cluster: KubernetesCluster, server: ApiServer, status: int, expected: type[Exception]
) -> None:
    server.refuses("POST", JOBS, status, reason="Conflict", message="exceeded quota: tight")
    with pytest.raises(expected, match="exceeded quota: tight"):
        await cluster.create(worlds.run(), job_manifest())


async def test_a_status_is_written_over_the_version_that_was_read(
    cluster: KubernetesCluster, cache: Cache, server: ApiServer
) -> None:
    run = worlds.run(status=worlds.status(queue={"message": "waits"}))
    new = run.status.model_copy(update={"phase": Phase.RUNNING, "queue": None})
    answer = worlds.body(status=new, resourceVersion="8")
    server.on("PATCH", f"{RUN_PATH}/status", answer)
    written = await cluster.write_status(run, new)
    body = server.last().body
    assert body["metadata"] == {"resourceVersion": "7"}
    assert body["status"]["phase"] == "Running"
    assert body["status"]["queue"] is None, "what is gone has to be removed by name"
    assert written.status == new
    world = cache.world(KEY, now=worlds.NOW)
    assert world
    assert world.run.metadata.resource_version == "8", "it reads its own writes"


@pytest.mark.parametrize(("status", "expected"), [(409, ConflictError), (404, GoneError), (503, TransientError)])
async def test_a_status_that_cannot_be_written_changes_nothing(
    cluster: KubernetesCluster, cache: Cache, server: ApiServer, status: int, expected: type[Exception]
) -> None:
    server.refuses("PATCH", f"{RUN_PATH}/status", status, reason="Conflict")
    with pytest.raises(expected):
        await cluster.write_status(worlds.run(), worlds.status())
    assert cache.world(KEY, now=worlds.NOW) is None


@pytest.mark.parametrize(
    ("status", "reason", "level"),
    [
        (201, "", None),
        (409, "AlreadyExists", logging.DEBUG),
        (403, "Forbidden", logging.WARNING),
        (500, "", logging.WARNING),
    ],
    ids=["posted", "posted before", "not allowed", "trouble outside"],
)
async def test_an_event_never_stops_a_run(
    cluster: KubernetesCluster,
    server: ApiServer,
    caplog: pytest.LogCaptureFixture,
    status: int,
    reason: str,
    level: int | None,
) -> None:
    server.refuses("POST", EVENTS, status, reason=reason)
    event = manifests.event(worlds.run(), worlds.status().events[0])
    with caplog.at_level(logging.DEBUG, logger="finetune_operator"):
        await cluster.post_event(event)
    assert server.last().body == event
    assert [record.levelno for record in caplog.records] == ([level] if level else [])


async def test_warnings_are_those_about_what_the_run_waits_for(cluster: KubernetesCluster, server: ApiServer) -> None:
    server.on("GET", EVENTS, listed())
    world = worlds.world(
        worlds.run(status=worlds.status()), claim=worlds.claim(), jobs=(worlds.job(),), pods=(worlds.pod(),)
    )
    assert await cluster.warnings(world) == ()
    assert [asked.query["fieldSelector"] for asked in server.asked] == ["involvedObject.uid=pod-1,type=Warning"]


JSON = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("abc"), JSON, max_size=3)


def apply(patch: Any, target: Any) -> Any:
    """MergePatch of RFC 7386, as it is written there."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = apply(value, result.get(name))
    return result


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_makes_the_old_into_the_new(old: Any, new: Any) -> None:
    assert apply(merge_patch(old, new), old) == new
