"""What a run starts from: where run:// leads, and why it doesn't."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from finetune_api.status import ResolvedModel
from finetune_operator import configs, manifests, sources
from finetune_operator.errors import UserError
from finetune_operator.run import Run
from tests import worlds
from tests.unit.operator.test_policy import FINISHED

BASE = "hf://org/tiny"
OUTPUT = {"uri": "pvc://parent-6c3f2a1e/output", "checkpoint": "ep1-ba20"}
SAVED = [worlds.saved(5).model_dump(), worlds.saved(10).model_dump()]


def parent(changes: Mapping[str, Any] | None = None, **status: Any) -> Run:
    """A run named parent that has ended well."""
    known = {"phase": "Completed", "conditions": [FINISHED], "output": OUTPUT, "checkpoints": SAVED}
    known |= {"model": {"uri": BASE}}
    found = worlds.status(1, started=True, **(known | status))
    return worlds.run({"model.uri": BASE} | dict(changes or {}), status=found, name="parent")


FAILED: dict[str, Any] = {"phase": "Failed", "output": None}
LORA = {"method.type": "LoRA"}
FULL = {"method.type": "Full"}


def resolve(other: Run | None, uri: str = "run://parent", **status: Any) -> ResolvedModel | UserError | None:
    child = worlds.run({"model.uri": uri}, status=worlds.status(0, **status), name="child")
    return sources.resolve(child, lambda name: other if name == "parent" else None)


@pytest.mark.parametrize(
    ("found", "uri", "adapter"),
    [
        pytest.param(resolve(None, BASE), BASE, None, id="no run at all"),
        pytest.param(resolve(None, "pvc://models/tiny"), "pvc://models/tiny", None, id="a claim"),
        pytest.param(resolve(parent(LORA)), BASE, OUTPUT["uri"], id="an adapter goes on over its base"),
        pytest.param(resolve(parent(FULL)), OUTPUT["uri"], None, id="full weights stand for themselves"),
        pytest.param(
            resolve(parent(LORA), "run://parent/ep1-ba5"),
            BASE,
            "pvc://parent-6c3f2a1e/checkpoints/ep1-ba5",
            id="a checkpoint of an adapter",
        ),
        pytest.param(
            resolve(parent(FULL, **FAILED), "run://parent/ep1-ba10"),
            "pvc://parent-6c3f2a1e/checkpoints/ep1-ba10",
            None,
            id="a checkpoint of a run that failed",
        ),
        pytest.param(
            resolve(parent(LORA | {"storage": {"claimName": "shared", "subPath": "runs/x"}}), "run://parent/ep1-ba5"),
            BASE,
            "pvc://shared/runs/x/checkpoints/ep1-ba5",
            id="a checkpoint in a folder of a claim",
        ),
        pytest.param(
            resolve(parent(LORA | {"model.uri": "run://grandparent"})),
            BASE,
            OUTPUT["uri"],
            id="the base of a chain is where it began",
        ),
        pytest.param(
            resolve(parent(LORA), model={"uri": "hf://org/as-it-was", "adapterUri": "pvc://a/b"}),
            "hf://org/as-it-was",
            "pvc://a/b",
            id="what was recorded stays",
        ),
        pytest.param(resolve(None, model={"uri": BASE}), BASE, None, id="also when the other run is gone"),
    ],
)
def test_where_a_run_starts(found: ResolvedModel | UserError | None, uri: str, adapter: str | None) -> None:
    assert found == ResolvedModel(uri=uri, adapter_uri=adapter)


GOING_ON = worlds.run(status=worlds.status(1, started=True), name="parent")


@pytest.mark.parametrize(
    ("found", "says"),
    [
        pytest.param(
            resolve(None),
            "spec.model.uri: there is no run parent in namespace ml, and a run starts only from one of its own"
            " namespace: create it first, or name a model",
            id="it isn't there, or in another namespace",
        ),
        pytest.param(
            resolve(dataclasses.replace(parent(), spec=None)), "there is no run parent", id="it can't be read"
        ),
        pytest.param(
            resolve(GOING_ON),
            "run parent hasn't finished (phase Running): create this run again when it has",
            id="it goes on",
        ),
        pytest.param(
            resolve(worlds.run(name="parent")), "hasn't finished (phase Pending)", id="it hasn't been looked at"
        ),
        pytest.param(
            resolve(GOING_ON, "run://parent/ep1-ba5"), "hasn't finished", id="a checkpoint may still be removed by it"
        ),
        pytest.param(
            resolve(parent(**FAILED)),
            "run parent has no output, its phase is Failed: start from a checkpoint, run://parent/ep1-ba10",
            id="it failed, and has checkpoints",
        ),
        pytest.param(
            resolve(parent(**FAILED, checkpoints=[])),
            "run parent has no output, its phase is Failed: start from another model",
            id="it failed, and has nothing",
        ),
        pytest.param(
            resolve(parent(), "run://parent/ep9-ba9"),
            "run parent has no checkpoint ep9-ba9; it has: ep1-ba5, ep1-ba10",
            id="no such checkpoint",
        ),
        pytest.param(
            resolve(parent(checkpoints=[]), "run://parent/ep9-ba9"), "it has: none", id="no checkpoint at all"
        ),
    ],
)
def test_why_a_run_cannot_start(found: ResolvedModel | UserError | None, says: str) -> None:
    assert isinstance(found, UserError)
    assert found.field == "spec.model.uri"
    assert says in str(found)


def test_a_spec_that_cannot_be_read_names_no_model() -> None:
    broken = worlds.run({"training.maxDuration": "3 epochs", "model.uri": "run://parent"})
    assert sources.resolve(broken, lambda _: parent()) is None
    assert sources.other_run(broken) is None


@pytest.mark.parametrize(
    ("uri", "status", "name"),
    [
        pytest.param("run://parent", {}, "parent", id="a run"),
        pytest.param("run://parent/ep1-ba5", {}, "parent", id="a checkpoint"),
        pytest.param(BASE, {}, None, id="no run"),
        pytest.param("run://parent", {"model": {"uri": BASE}}, None, id="resolved before"),
    ],
)
def test_which_other_run_must_be_known(uri: str, status: dict[str, Any], name: str | None) -> None:
    assert sources.other_run(worlds.run({"model.uri": uri}, status=worlds.status(0, **status))) == name


def test_a_run_that_starts_from_itself_has_not_finished() -> None:
    child = worlds.run({"model.uri": "run://child"}, name="child")
    found = sources.resolve(child, lambda _: child)
    assert isinstance(found, UserError)
    assert "hasn't finished" in str(found)


def test_base_and_adapter_are_mounted_and_told_to_the_trainer() -> None:
    model = resolve(parent(LORA | {"model.uri": "pvc://models/base"}, model={"uri": "pvc://models/base"}))
    assert isinstance(model, ResolvedModel)
    child = worlds.run({"model.uri": "run://parent"}, status=worlds.status(1, model=model.to_wire()))
    config = configs.trainer_config(child, attempt=1)
    assert (config.model.uri, config.model.path) == ("pvc://models/base", "/mnt/model/base")
    assert (config.model.adapter_uri, config.model.adapter_path) == (OUTPUT["uri"], "/mnt/adapter/output")
    pod = manifests.job(child, attempt=1, settings=worlds.SETTINGS)["spec"]["template"]["spec"]
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
    }
    assert (claims["model"], claims["adapter"]) == ("models", "parent-6c3f2a1e")
    assert {m["name"]: m.get("readOnly") for m in pod["containers"][0]["volumeMounts"]}["adapter"] is True
