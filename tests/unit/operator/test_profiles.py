"""A run under its profile: the user's word comes first, no limit is ever passed, and what began stays as it was."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.compute import AccessMode, ClaimTemplate
from finetune_api.spec import FineTuneRunSpec
from finetune_operator import allowance, kinds, names, policy
from finetune_operator.admission import Line
from finetune_operator.cache import Cache
from finetune_operator.manifests import job
from finetune_operator.names import Key
from finetune_operator.policy import Action
from finetune_operator.profiles import Profile
from finetune_operator.run import Run
from finetune_operator.settings import Limits
from finetune_operator.world import World
from tests import builders, worlds

LARGE: Mapping[str, Any] = {
    "deviceResource": "amd.com/gpu",
    "nodeSelector": {"pool": "large"},
    "tolerations": [{"key": "amd.com/gpu", "operator": "Exists"}],
    "priorityClassName": "high",
    "image": "registry.example.com/trainer:rocm",
    "defaults": {
        "method": {"type": "QLoRA", "lora": {"rank": 64, "bias": "None"}, "quantization": {"bits": 8}},
        "training": {
            "learningRate": 0.001,
            "batchSize": {"gradientAccumulationSteps": 4},
            "earlyStopping": {"patience": 2},
        },
        "checkpoint": {"interval": "30min"},
        "recovery": {"onHang": "Restart"},
        "resources": {"memory": "32Gi"},
        "claimTemplate": {"accessMode": "ReadWriteMany", "storageClassName": "fast"},
        "mlflow": {"trackingUri": "http://mlflow:5000", "experiment": "all"},
    },
    "limits": {"devicesPerNode": [4, 2], "cpu": "2", "storageSize": "10Gi"},
}


def profile(spec: Mapping[str, Any] | None = None, name: str = "large", **metadata: Any) -> Profile:
    """As the API server keeps it."""
    body = builders.profile(name, **(LARGE if spec is None else spec))
    return Profile.parse(builders.merged(body, {"metadata": {"uid": name, "generation": 3} | metadata}))


def under(changes: Mapping[str, Any] | None = None, spec: Mapping[str, Any] | None = None) -> Run:
    return worlds.run({"profile": "large"} | dict(changes or {})).under([profile(spec)])


def effective(changes: Mapping[str, Any] | None = None, spec: Mapping[str, Any] | None = None) -> FineTuneRunSpec:
    run = under(changes, spec)
    assert run.not_allowed == ()
    assert run.spec is not None
    return run.spec


def test_what_a_run_leaves_out_comes_from_its_profile() -> None:
    spec = effective()
    assert (spec.method.type, spec.method.adapter and spec.method.adapter.rank) == ("QLoRA", 64)
    assert spec.training.learning_rate == 0.001
    assert spec.training.batch_size.gradient_accumulation_steps == 4
    assert spec.checkpoint.interval == "30min"
    assert spec.recovery.on_hang == "Restart"
    assert spec.resources.to_wire() == {
        "nodes": 1,
        "devicesPerNode": 2,
        "deviceResource": "amd.com/gpu",
        "cpu": "2",
        "memory": "32Gi",
        "nodeSelector": {"pool": "large"},
        "tolerations": [{"key": "amd.com/gpu", "operator": "Exists"}],
        "priorityClassName": "high",
    }
    assert spec.storage.claim_template == ClaimTemplate(
        storage_class_name="fast", access_mode=AccessMode.READ_WRITE_MANY, size="10Gi"
    )
    assert spec.trainer.image == "registry.example.com/trainer:rocm"
    assert spec.tracking.mlflow is not None
    assert spec.tracking.mlflow.experiment == "all"


@pytest.mark.parametrize(
    ("changes", "field", "wanted"),
    [
        ({"training.learningRate": 0.0002}, "training.learning_rate", 0.0002),
        ({"training.batchSize.gradientAccumulationSteps": 1}, "training.batch_size.gradient_accumulation_steps", 1),
        ({"resources.memory": "16Gi"}, "resources.memory", "16Gi"),
        ({"resources.nodeSelector": {"zone": "a"}}, "resources.node_selector", {"zone": "a", "pool": "large"}),
        ({"recovery.onHang": "Notify"}, "recovery.on_hang", "Notify"),
        (
            {"storage.claimTemplate": {"accessMode": "ReadWriteOnce"}},
            "storage.claim_template.access_mode",
            "ReadWriteOnce",
        ),
    ],
    ids=["a default of the API's", "within an object", "a size", "one more label", "a choice", "of a claim"],
)
def test_what_a_run_says_comes_first_also_where_it_is_the_apis_own_default(
    changes: Mapping[str, Any], field: str, wanted: object
) -> None:
    value: Any = effective(changes)
    for part in field.split("."):
        value = getattr(value, part)
    assert value == wanted


def test_a_default_that_contradicts_what_the_run_says_is_left_out_alone() -> None:
    spec = effective({"method.type": "Full", "training.batchSize.global": 8, "storage.claimName": "mine"})
    assert (spec.method.lora, spec.method.quantization) == (None, None)
    assert spec.training.batch_size.gradient_accumulation_steps is None
    assert spec.storage.claim_template is None
    assert spec.training.early_stopping is None, "it needs data to evaluate on"
    assert spec.training.learning_rate == 0.001, "the rest holds"


REFUSED: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any], str]] = {
    "another device": ({"resources.deviceResource": "nvidia.com/gpu"}, {}, "spec.resources.deviceResource: nvidia.com"),
    "another value of a label": (
        {"resources.nodeSelector": {"pool": "a"}},
        {},
        "spec.resources.nodeSelector.pool: a",
    ),
    "another taint": ({"resources.tolerations": [{"operator": "Exists"}]}, {}, "spec.resources.tolerations: profile"),
    "a higher priority": ({"resources.priorityClassName": "top"}, {}, "spec.resources.priorityClassName: top is not"),
    "nodes": ({"resources.nodes": 3}, {"nodes": 2}, "spec.resources.nodes: 3 is more than profile large allows: 2 at"),
    "devices of a node": ({"resources.devicesPerNode": 3}, {}, "spec.resources.devicesPerNode: 3 is not what profile"),
    "devices of all": ({"resources.nodes": 3}, {"devices": 5}, "spec.resources.nodes: 3 nodes with 2 devices are 6"),
    "cpu": ({"resources.cpu": "2500m"}, {}, "spec.resources.cpu: 2500m is more than profile large allows: 2 at most"),
    "memory": ({"resources.memory": "33Gi"}, {"memory": "32Gi"}, "spec.resources.memory: 33Gi is more"),
    "shared memory": ({"resources.sharedMemory": "2Gi"}, {"sharedMemory": "1Gi"}, "spec.resources.sharedMemory: 2Gi"),
    "storage": ({"storage.claimTemplate.size": "11Gi"}, {}, "spec.storage.claimTemplate.size: 11Gi is more"),
    "a storage class": (
        {"storage.claimTemplate.storageClassName": "gold"},
        {"storageClassNames": ["fast"]},
        "spec.storage.claimTemplate.storageClassName: gold is not what profile large offers: use one of fast",
    ),
    "a model": ({}, {"modelUris": ["hf://", "pvc://model/"]}, "spec.model.uri: pvc://models/tiny is not allowed"),
    "data": ({}, {"datasetUris": []}, "spec.dataset.train.uri: pvc://datasets/train.jsonl is not allowed by profile"),
    "data to evaluate on": (
        {"dataset.eval": {"uri": "https://a.example.com.evil.org/x"}},
        {"datasetUris": ["pvc://", "https://a.example.com/"]},
        "spec.dataset.eval.uri: https://a.example.com.evil.org/x is not allowed",
    ),
    "an upload": (
        {"storage.uploadUri": "s3://b"},
        {"uploadUris": ["s3://a/"]},
        "spec.storage.uploadUri: s3://b",
    ),
    "a tracking server": (
        {"tracking.mlflow": {"trackingUri": "http://other"}},
        {"mlflowUris": []},
        "spec.tracking.mlflow.trackingUri: http://other is not allowed by profile large: none",
    ),
    "remote code": ({"model.trustRemoteCode": True}, {}, "spec.model.trustRemoteCode: profile large doesn't allow"),
    "an image": ({"trainer.image": "mine"}, {}, "spec.trainer.image: profile large doesn't allow"),
    "a custom task": (
        {"task": "Custom", "trainer": {"image": "mine", "command": ["a"]}},
        {},
        "spec.task: profile large doesn't allow task Custom",
    ),
}


@pytest.mark.parametrize(("changes", "limits", "said"), REFUSED.values(), ids=REFUSED)
def test_each_limit_is_refused_by_field(changes: Mapping[str, Any], limits: Mapping[str, Any], said: str) -> None:
    run = under(changes, builders.merged(LARGE, {"limits": limits}))
    assert [str(problem)[: len(said)] for problem in run.not_allowed] == [said]
    decision = policy.decide(worlds.world(run))
    assert decision.action is Action.REFUSE
    assert decision.failure is not None
    assert decision.failure.reason == "NotAllowed"


ALLOWED: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "all that is as the profile has it": (
        {
            "resources.deviceResource": "amd.com/gpu",
            "resources.priorityClassName": "high",
            "resources.tolerations": LARGE["tolerations"],
            "trainer.image": LARGE["image"],
            "tracking.mlflow": {"trackingUri": "http://mlflow:5000"},
        },
        {"mlflowUris": []},
    ),
    "remote code where it may be": ({"model.trustRemoteCode": True}, {"remoteCode": True}),
    "an image where it may be": ({"trainer.image": "mine"}, {"ownImages": True}),
    "a custom task where it may be": (
        {"task": "Custom", "trainer": {"image": "mine", "command": ["a"]}},
        {"customTasks": True},
    ),
    "a whole bucket": ({"storage.uploadUri": "s3://models"}, {"uploadUris": ["s3://models/"]}),
    "a claim of its own, whatever its class": ({"storage.claimName": "a"}, {"storageClassNames": ["fast"]}),
}


@pytest.mark.parametrize(("changes", "limits"), ALLOWED.values(), ids=ALLOWED)
def test_what_is_within_the_limits_is_let_in(changes: Mapping[str, Any], limits: Mapping[str, Any]) -> None:
    assert under(changes, builders.merged(LARGE, {"limits": limits})).not_allowed == ()


SIZES = st.one_of(st.none(), st.sampled_from(["1Gi", "0.5Gi", "16Gi", "17000M", "64Gi", "1Ti"]))
COUNTS = st.one_of(st.none(), st.integers(1, 16))
CORES = st.one_of(st.none(), st.sampled_from(["500m", "1", "4", "4.5", "64"]))


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of which any field may be left out."""
    return st.fixed_dictionaries(fields).map(lambda found: {k: v for k, v in found.items() if v is not None})


RESOURCES = some(nodes=COUNTS, devicesPerNode=COUNTS, cpu=CORES, memory=SIZES, sharedMemory=SIZES)
LIMITS = some(
    nodes=COUNTS,
    devicesPerNode=st.one_of(st.none(), st.lists(st.integers(1, 16), min_size=1, max_size=3)),
    devices=COUNTS,
    cpu=CORES,
    memory=SIZES,
    sharedMemory=SIZES,
    storageSize=SIZES,
    storageClassNames=st.sampled_from([None, ["fast"], ["slow", "fast"]]),
)
CLAIMS = some(size=SIZES, storageClassName=st.sampled_from([None, "fast", "gold"]))


@given(asked=RESOURCES, claim=CLAIMS, defaults=RESOURCES, offered=CLAIMS, limits=LIMITS)
def test_what_is_let_in_is_never_over_a_limit_and_never_other_than_the_user_said(
    asked: dict[str, Any],
    claim: dict[str, Any],
    defaults: dict[str, Any],
    offered: dict[str, Any],
    limits: dict[str, Any],
) -> None:
    spec = {"defaults": {"resources": defaults, "claimTemplate": offered}, "limits": limits}
    run = under({"resources": asked, "storage.claimTemplate": claim}, spec)
    assert run.spec is not None
    found, stored = run.spec.resources, run.spec.storage.claim_template or ClaimTemplate()
    wire = found.to_wire()
    assert {name: wire[name] for name in asked} == asked
    assert claim.items() <= stored.to_wire().items()
    for name in set(defaults) - set(asked):
        assert wire[name] == defaults[name]
    if run.not_allowed:
        assert all(problem.field.startswith("spec.") for problem in run.not_allowed)
        return
    assert found.nodes <= limits.get("nodes", found.nodes)
    assert found.devices_per_node in limits.get("devicesPerNode", [found.devices_per_node])
    assert found.nodes * found.devices_per_node <= limits.get("devices", 10**6)
    assert stored.storage_class_name in limits.get("storageClassNames", [stored.storage_class_name])
    sizes = {"cpu": found.cpu, "memory": found.memory, "sharedMemory": found.shared_memory, "storageSize": stored.size}
    for name, size in sizes.items():
        if name in limits and size is not None:
            assert allowance.quantity(size) <= allowance.quantity(limits[name])


@given(asked=RESOURCES, defaults=RESOURCES)
def test_an_attempt_goes_by_what_was_recorded_and_by_nothing_else(
    asked: dict[str, Any], defaults: dict[str, Any]
) -> None:
    spec = builders.merged(
        LARGE, {"defaults": {"resources": defaults}, "limits": {"devicesPerNode": None, "cpu": None}}
    )
    begun = under({"resources": asked}, spec)
    assert begun.profile is not None
    changes = {"profile": "large", "resources": asked}
    recorded = {"observedGeneration": 1, "attempt": 1, "profile": begun.profile.to_wire()}
    later = worlds.run(changes, status=recorded)
    assert later.spec == begun.spec
    assert later.under([]) == later.under([profile({"limits": {"nodes": 1}})]) == later, (
        "edited or gone, it is the same"
    )
    assert job(later, attempt=2, settings=worlds.SETTINGS) == job(begun, attempt=2, settings=worlds.SETTINGS)


def test_a_record_that_cannot_be_read_is_told_and_nothing_is_trained_by_it() -> None:
    for given_ in ("{", "[1]", '{"training": 5}'):
        status = {"observedGeneration": 1, "attempt": 1, "profile": {"name": "a", "generation": 1, "given": given_}}
        run = worlds.run({"profile": "a"}, status=status)
        assert run.spec is None
        assert run.problem is not None
        assert policy.decide(worlds.world(run)).action is Action.FAIL


def test_a_profile_for_other_namespaces_is_refused_to_a_run_and_no_default_for_it() -> None:
    others = profile({"namespaces": ["elsewhere"], "isDefault": True})
    said = [str(problem) for problem in worlds.run({"profile": "large"}).under([others]).not_allowed]
    assert said == ["spec.profile: profile large is not for namespace ml: name another"]
    assert worlds.run().under([others]).profile is None


def test_of_several_defaults_the_newest_holds_for_runs_that_name_none() -> None:
    older = profile({"isDefault": True}, "zz", creationTimestamp="2026-01-01T00:00:00Z")
    newer = profile({"isDefault": True}, "aa", creationTimestamp="2026-02-01T00:00:00Z")
    for offered in ([older, newer], [newer, older]):
        run = worlds.run().under(offered)
        assert run.profile is not None
        assert run.profile.name == "aa"
    named = worlds.run({"profile": "zz"}).under([older, newer])
    assert named.profile is not None
    assert named.profile.name == "zz"


PLACED = Limits(None, {"amd.com/gpu": 4})


def body(version: int, spec: Mapping[str, Any], name: str = "large") -> dict[str, Any]:
    metadata = {"name": name, "uid": name, "generation": version, "resourceVersion": str(version)}
    return builders.profile(name, **spec) | {"metadata": metadata}


def looked(cache: Cache) -> World:
    world = cache.world(worlds.KEY, now=worlds.NOW)
    assert world is not None
    return world


def test_a_profile_that_becomes_the_default_or_ceases_to_be_concerns_runs_that_name_none() -> None:
    woken: list[Key] = []
    cache = Cache(line=Line(Limits()), wake=woken.append)
    cache.put(kinds.RUN, worlds.body())
    cache.put(kinds.PROFILE, body(1, LARGE))
    assert woken == []
    cache.put(kinds.PROFILE, body(2, builders.merged(LARGE, {"isDefault": True})))
    assert woken == [worlds.KEY]
    assert looked(cache).run.profile is not None
    cache.put(kinds.PROFILE, body(3, LARGE))
    assert woken == [worlds.KEY] * 2
    assert looked(cache).run.profile is None


def test_the_line_counts_what_a_run_gets_and_wakes_it_when_its_profile_changes() -> None:
    woken: list[Key] = []
    line = Line(PLACED)
    cache = Cache(line=line, wake=woken.append)
    cache.put(kinds.RUN, worlds.body({"profile": "large"}))
    other = worlds.body({}, name="other", uid="other")
    cache.put(kinds.RUN, other)
    assert not line.is_waiting(worlds.UID), "without its profile it takes no place, and holds none back"
    assert policy.decide(looked(cache)).action is Action.WAIT

    cache.put(kinds.PROFILE, body(1, builders.merged(LARGE, {"limits": {"devicesPerNode": [8]}})))
    assert woken == [worlds.KEY], "and nobody else"
    looked(cache)
    assert line.turn(worlds.UID).never == "asks for 8 amd.com/gpu, and all runs together may use 4: ask for fewer"
    cache.put(kinds.PROFILE, body(2, LARGE))
    looked(cache)
    assert line.turn(worlds.UID).admitted
    cache.delete(kinds.PROFILE, body(3, LARGE))
    assert woken == [worlds.KEY] * 3
    assert looked(cache).run.missing_profile == "large"
    assert cache.put(kinds.PROFILE, body(4, {"limits": {"nodes": "many"}}, "broken")) is None, "it stops nobody"


ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = sorted((ROOT / "examples" / "profiles").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_a_run_that_says_no_more_than_it_must_fits_each_example(path: Any) -> None:
    offered = Profile.parse(yaml.safe_load(path.read_text()))
    namespace = next(iter(offered.spec.namespaces), "ml")
    least = {"model": {"uri": "hf://a/b"}, "dataset": {"train": {"uri": "s3://datasets/a.jsonl"}}}
    if path.stem != "h100-8-nodes":
        least["dataset"] = {"train": {"uri": "pvc://data/a.jsonl"}}
    run = builders.run("x", namespace=namespace, profile=offered.name, **least)
    found = Run.parse(builders.merged(run, {"metadata": {"uid": "u"}})).under([offered])
    assert found.not_allowed == ()
    assert found.spec is not None
    assert found.profile is not None
    json.loads(found.profile.given)
    assert names.job("x", 1) == job(found, attempt=1, settings=worlds.SETTINGS)["metadata"]["name"]
