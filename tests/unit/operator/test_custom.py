"""Task Custom: what its container gets, what a run without model and data comes to, and a copy of an output is told."""

from typing import Any

import pytest

from finetune_api.snapshot import SavedOutput
from finetune_api.spec import FineTuneRunSpec
from finetune_api.status import ResolvedModel
from finetune_operator import custom, policy, sources, status
from finetune_operator.children import Job
from finetune_operator.policy import Action
from finetune_operator.run import Run
from tests import worlds

CUSTOM: dict[str, Any] = {
    "task": "Custom",
    "model": None,
    "dataset": None,
    "trainer": {"image": "any", "command": ["python", "train.py"]},
}
OURS = [{"name": "FINETUNE_CONFIG", "value": "{}"}, {"name": "TMPDIR", "value": "/mnt/cache"}]


def spec(**env: str) -> FineTuneRunSpec:
    found = worlds.run(CUSTOM | {"trainer": {**CUSTOM["trainer"], "env": env}}).spec
    assert found is not None
    return found


def environment(**env: str) -> dict[str, str]:
    made = custom.environment(spec(**env), ours=OURS, progress="/mnt/cache/progress", grace_seconds=300)
    assert len({entry["name"] for entry in made}) == len(made), "each variable once"
    return {entry["name"]: entry["value"] for entry in made}


def test_the_user_s_variables_come_beside_ours() -> None:
    assert environment(LEVEL="3") == {
        "FINETUNE_CONFIG": "{}",
        "TMPDIR": "/mnt/cache",
        "FINETUNE_PROGRESS_FILE": "/mnt/cache/progress",
        "FINETUNE_GRACE_SECONDS": "300",
        "LEVEL": "3",
    }


@pytest.mark.parametrize(
    ("name", "taken"),
    [("FINETUNE_PROGRESS_FILE", True), ("TMPDIR", True), ("FINETUNE_CONFIG", False), ("FINETUNE_GRACE_SECONDS", False)],
)
def test_places_may_be_overridden_and_facts_may_not(name: str, taken: bool) -> None:
    assert (environment(**{name: "mine"})[name] == "mine") == taken


def test_a_run_without_model_and_data_is_begun() -> None:
    run = worlds.run(CUSTOM)
    assert run.spec is not None
    assert sources.resolve(run, lambda _: None) is None
    assert sources.other_run(run) is None
    assert policy.decide(worlds.world(run, model=None)).action is Action.BEGIN


def test_a_run_from_the_output_of_a_custom_one_takes_it_as_a_model() -> None:
    ended = worlds.status(phase="Completed", output={"uri": "pvc://other/output/model"}, conditions=_finished())
    other = Run.parse(worlds.body(CUSTOM, status=ended.to_wire()))
    found = sources.resolve(worlds.run({"model.uri": "run://other"}), lambda _: other)
    assert found == ResolvedModel(uri="pvc://other/output/model")


def _finished() -> list[dict[str, str]]:
    return [
        {
            "type": "Finished",
            "status": "True",
            "reason": "Completed",
            "message": "",
            "lastTransitionTime": "2026-03-01T12:00:00Z",
        }
    ]


def test_where_the_output_was_copied_to_is_told() -> None:
    uri = "s3://models/support-bot"
    word = worlds.last_word(output=SavedOutput(path="output", checkpoint="ep1-ba5", upload_uri=uri))
    job: Job = worlds.job(complete=True, active=0, finished=worlds.NOW)
    world = worlds.world(
        worlds.run({"storage.uploadUri": uri}, status=worlds.status()),
        jobs=(job,),
        pods=(worlds.ended(0, last_word=word),),
    )
    decision = policy.decide(world)
    assert decision.action is Action.SUCCEED
    found = status.compute(world, decision, waiting=None, settings=worlds.SETTINGS)
    assert found.output is not None
    assert found.output.upload_uri == uri
    assert found.output.uri.startswith("pvc://"), "other runs start from the volume"
    assert found.events[-1].message.endswith(f"/output, uploaded to {uri}.")
