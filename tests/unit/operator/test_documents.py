"""A run file: what is read of it, and that each mistake is named by its path, with what would be right."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator import documents
from finetune_operator.documents import ManifestError
from finetune_operator.names import Key
from tests import builders

EXAMPLES = Path(__file__).parents[3] / "examples"
RUN = builders.run("support-bot", namespace="ml")
MAP = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "data", "namespace": "ml"},
    "data": {"a.jsonl": "{}"},
}


def text(*found: Any) -> str:
    return yaml.safe_dump_all(found)


def problems(*found: Any) -> str:
    with pytest.raises(ManifestError) as raised:
        documents.read(text(*found))
    return "\n".join(raised.value.problems)


def test_a_file_has_a_run_and_config_maps() -> None:
    found = documents.read(text(MAP, None, RUN))
    assert found.run["metadata"] == {"name": "support-bot", "namespace": "ml"}
    assert found.run["spec"] == RUN["spec"]
    assert found.config_maps == {Key("ml", "data"): {"a.jsonl": "{}"}}


def test_without_a_namespace_it_is_default() -> None:
    found = documents.read(text(builders.merged(RUN, {"metadata": {"namespace": None}})))
    assert found.run["metadata"]["namespace"] == "default"


def test_an_exported_run_is_read_without_what_the_api_server_gave_it() -> None:
    exported = builders.stored(RUN, status={"phase": "Failed"}, metadata={"labels": {"team": "a"}})
    found = documents.read(text(exported))
    assert found.run["status"] == {"observedGeneration": -1}
    assert found.run["metadata"] == {"name": "support-bot", "namespace": "ml", "labels": {"team": "a"}}


def test_the_quickstart_is_a_file_that_can_be_read() -> None:
    found = documents.read((EXAMPLES / "quickstart.yaml").read_text())
    assert found.run["metadata"]["name"] == "quickstart"


@pytest.mark.parametrize(
    ("spec", "path", "says"),
    [
        ({"modl": {"uri": "hf://a/b"}}, "spec.modl", "unknown field; did you mean model?"),
        ({"model": {"trust_remote_code": True}}, "spec.model.trust_remote_code", "did you mean trustRemoteCode?"),
        ({"zzzz": 1}, "spec.zzzz", "unknown field; known are model, task, dataset"),
        ({"dataset": {"train": None}}, "spec.dataset.train", "is required"),
        ({"model": None}, "spec.model", "is required"),
        ({"method": {"type": "LORA"}}, "spec.method.type", "must be 'LoRA', 'QLoRA' or 'Full', not \"LORA\""),
        ({"method": {"lora": {"rank": "16"}}}, "spec.method.lora.rank", 'must be a valid integer, not "16"'),
        ({"method": {"lora": {"rank": 0}}}, "spec.method.lora.rank", "greater than or equal to 1, not 0"),
        ({"method": {"lora": {"targetModules": ["a", 3]}}}, "spec.method.lora.targetModules.1", "string, not 3"),
        ({"training": {"maxDuration": "3 epochs"}}, "spec.training.maxDuration", "e.g. 3ep, not '3 epochs'"),
        ({"training": {"packing": "yes"}}, "spec.training.packing", 'must be a valid boolean, not "yes"'),
        ({"training": {"batchSize": {"perDevice": 0}}}, "spec.training.batchSize.perDevice", "not 0"),
        ({"training": 7}, "spec.training", "not 7"),
        ({"resources": {"memory": "64 GB"}}, "spec.resources.memory", "e.g. 64Gi"),
        ({"resources": {"tolerations": [{"key": "a", "efect": "b"}]}}, "spec.resources.tolerations.0.efect", "effect?"),
        (
            {"storage": {"claimName": "a", "claimTemplate": {}}},
            "spec.storage.claimName",
            "claimName and claimTemplate exclude each other: set one of them",
        ),
        ({"trainer": {"args": ["x"]}}, "spec.trainer", "use task Custom"),
    ],
)
def test_a_mistake_in_the_spec_is_named_with_what_would_be_right(spec: dict[str, Any], path: str, says: str) -> None:
    lines = [line for line in problems(builders.merged(RUN, {"spec": spec})).splitlines() if f": {path}: " in line]
    assert len(lines) == 1
    assert says in lines[0]
    assert lines[0].startswith("document 1 (FineTuneRun): ")


def test_all_mistakes_are_told_at_once() -> None:
    wrong = builders.merged(RUN, {"spec": {"method": {"type": "x"}, "training": {"seed": -1}, "profil": "a"}})
    assert len(problems(wrong).splitlines()) == 3


def changed(change: Callable[[Any], Any], document: Any = RUN) -> Any:
    copied = copy.deepcopy(document)
    change(copied)
    return copied


def placed(**metadata: str) -> Any:
    return changed(lambda run: run["metadata"].update(metadata))


@pytest.mark.parametrize(
    ("found", "says"),
    [
        pytest.param([], "0 documents of kind FineTuneRun: there must be exactly one", id="an empty file"),
        pytest.param([MAP], "0 documents of kind FineTuneRun", id="no run"),
        pytest.param([RUN, RUN], "2 documents of kind FineTuneRun", id="two runs"),
        pytest.param(
            ["hello"],
            'document 1: kind: must be FineTuneRun, ClusterFineTuneProfile or ConfigMap, not "hello"',
            id="a text",
        ),
        pytest.param(
            [{"kind": "Secret"}],
            'must be FineTuneRun, ClusterFineTuneProfile or ConfigMap, not "Secret"',
            id="another kind",
        ),
        pytest.param(
            [changed(lambda run: run.update(apiVersion="finetune.dev/v1"))],
            'apiVersion: must be finetune.dev/v1alpha1, not "finetune.dev/v1"',
            id="another version",
        ),
        pytest.param([changed(lambda run: run.pop("metadata"))], "metadata.name: must be", id="no metadata"),
        pytest.param([placed(name="Bot")], "metadata.name: must be", id="a bad name"),
        pytest.param(
            [placed(name="a.b")],
            "(FineTuneRun): metadata.name must be a DNS label",
            id="a name with a dot",
        ),
        pytest.param(
            [placed(namespace="M L")],
            "metadata.namespace: must be",
            id="a bad namespace",
        ),
        pytest.param(
            [changed(lambda run: run.update(Spec={}))], "Spec: unknown field; did you mean spec?", id="a slip"
        ),
        pytest.param([changed(lambda run: run.pop("spec"))], "spec: is required", id="no spec"),
        pytest.param([RUN, changed(lambda m: m.pop("data"), MAP)], "data: must be an object of texts", id="no data"),
        pytest.param(
            [RUN, changed(lambda m: m["data"].update(n=3), MAP)],
            "data.n: must be a string, not 3",
            id="a number",
        ),
    ],
)
def test_a_mistake_in_the_frame_is_named(found: list[Any], says: str) -> None:
    assert says in problems(*found)


def test_what_is_no_yaml_says_where() -> None:
    with pytest.raises(ManifestError) as raised:
        documents.read("a: b\n  c: [")
    assert "not YAML" in raised.value.problems[0]
    assert "line 2" in raised.value.problems[0]


def test_a_run_is_the_same_as_long_as_name_spec_and_data_are() -> None:
    uid = documents.read(text(RUN, MAP)).uid
    labelled = builders.merged(RUN, {"metadata": {"labels": {"a": "b"}}})
    assert documents.read(text(MAP, labelled)).uid == uid
    for other in (
        text(builders.merged(RUN, {"metadata": {"name": "other"}}), MAP),
        text(builders.merged(RUN, {"metadata": {"namespace": "other"}}), MAP),
        text(builders.merged(RUN, {"spec": {"training": {"seed": 1}}}), MAP),
        text(RUN, builders.merged(MAP, {"data": {"a.jsonl": "[]"}})),
    ):
        assert documents.read(other).uid != uid
