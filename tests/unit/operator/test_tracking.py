"""MLflow, as the operator sees it: what the trainer is given, and what the run's status says of it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.credentials import MLFLOW_KEYS
from finetune_api.snapshot import Snapshot, Tracked, Trouble
from finetune_api.spec import FineTuneRunSpec
from finetune_api.status import ConditionStatus, ConditionType, FineTuneRunStatus
from finetune_api.trainer_config import TrainerConfig
from finetune_operator import configs, manifests, runmetrics, status
from finetune_operator.settings import Settings
from tests import worlds
from tests.unit.operator.test_status import RUNNING, compute, world

EXAMPLES = Path(__file__).parents[3] / "examples"
ASKED = {
    "trackingUri": "http://mlflow.mlflow.svc:5000",
    "registerAs": "support-bot",
    "tags": {"team": "support"},
    "credentials": {"secretName": "mlflow-login"},
}
URL = "http://mlflow.mlflow.svc:5000/#/experiments/1/runs/1a2b"
WELL = Tracked(mlflow_run_id="1a2b", url=URL)
WHY = "http://mlflow.mlflow.svc:5000 can't be reached: Connection refused"


def environment(changes: dict[str, Any]) -> dict[str, Any]:
    job = manifests.job(worlds.run(changes), attempt=1, settings=Settings(trainer_image="trainer@sha256:0a1b"))
    return {each["name"]: each for each in job["spec"]["template"]["spec"]["containers"][0]["env"]}


def told(tracked: Tracked | None, *, batch: int = 5, **changes: Any) -> Snapshot:
    return worlds.snapshot(batch, tracked=tracked, **changes)


def seen(*snapshots: Snapshot) -> FineTuneRunStatus:
    """The status after the trainer has said these."""
    found = RUNNING
    for snapshot in snapshots:
        new = compute(dataclasses.replace(found, snapshot=snapshot))
        found = dataclasses.replace(found, run=dataclasses.replace(found.run, status=new))
    return found.run.status


def test_the_trainer_is_told_all_but_the_login() -> None:
    config = TrainerConfig.decode(environment({"tracking.mlflow": ASKED})["FINETUNE_CONFIG"]["value"])
    assert config.mlflow is not None
    assert config.mlflow.to_wire() == {
        "trackingUri": "http://mlflow.mlflow.svc:5000",
        "experiment": worlds.KEY.namespace,
        "registerAs": "support-bot",
        "alias": "candidate",
        "tags": {"team": "support"},
        "image": "trainer@sha256:0a1b",
        "queue": "",
    }
    assert "mlflow-login" not in json.dumps(config.to_wire())


def test_the_login_comes_from_the_users_secret_and_each_key_may_be_missing() -> None:
    found = environment({"tracking.mlflow": ASKED})
    for key in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        assert found[key]["valueFrom"]["secretKeyRef"] == {"name": "mlflow-login", "key": key, "optional": True}


@pytest.mark.parametrize("mlflow", [None, {"trackingUri": "http://mlflow:5000"}], ids=["without MLflow", "no login"])
def test_nothing_is_read_from_a_secret(mlflow: dict[str, Any] | None) -> None:
    assert not [name for name in environment({"tracking.mlflow": mlflow}) if name.startswith("MLFLOW")]


def test_the_status_names_the_mlflow_run() -> None:
    found = seen(told(WELL)).tracking
    assert found is not None
    assert (found.mlflow_run_id, found.url, found.problem) == ("1a2b", URL, "")


def test_without_mlflow_there_is_nothing_to_say() -> None:
    assert seen(told(None)).tracking is None


def test_a_server_that_takes_nothing_degrades_the_run_until_it_does_again() -> None:
    trouble = Trouble(reason="TrackingFailed", message=f"MLflow isn't told: {WHY}", since=worlds.at(9))
    bad = seen(told(WELL.model_copy(update={"problem": WHY}), troubles=(trouble,)))
    assert bad.tracking is not None
    assert bad.tracking.problem == WHY
    condition = bad.condition(ConditionType.DEGRADED)
    assert condition is not None
    assert (condition.status, condition.reason) == (ConditionStatus.TRUE, "TrackingFailed")
    assert WHY in condition.message
    again = compute(
        dataclasses.replace(world(status=bad, jobs=RUNNING.jobs, pods=RUNNING.pods), snapshot=told(WELL, batch=6))
    )
    assert again.tracking is not None
    assert again.tracking.problem == ""
    condition = again.condition(ConditionType.DEGRADED)
    assert condition is not None
    assert condition.status == ConditionStatus.FALSE


def test_an_attempt_that_has_not_reached_the_server_forgets_nothing() -> None:
    found = seen(told(WELL), told(Tracked(problem=WHY), batch=6), told(None, batch=7)).tracking
    assert found is not None
    assert (found.mlflow_run_id, found.url, found.problem) == ("1a2b", URL, WHY)


def test_what_was_said_earlier_and_heard_later_changes_nothing() -> None:
    found = seen(told(WELL, batch=6), told(WELL.model_copy(update={"problem": WHY}), batch=4)).tracking
    assert found is not None
    assert found.problem == ""


def test_a_run_that_has_ended_names_the_mlflow_run_and_the_registered_model() -> None:
    word = worlds.last_word(tracked=WELL.model_copy(update={"registered_model": "support-bot/3"}))
    found = compute(world(jobs=(worlds.job(complete=True),), pods=(worlds.ended(0, last_word=word),)))
    assert found.output is not None
    assert (found.output.mlflow_run_id, found.output.registered_model) == ("1a2b", "support-bot/3")


def test_no_write_of_its_own_is_made_for_it() -> None:
    bad = WELL.model_copy(update={"problem": WHY})
    assert status.material(seen(told(WELL))) == status.material(seen(told(bad)))


@pytest.mark.parametrize(
    ("tracked", "value"),
    [(None, None), (WELL, 0.0), (WELL.model_copy(update={"problem": WHY}), 1.0)],
    ids=["without MLflow", "well", "failing"],
)
def test_the_metric_says(tracked: Tracked | None, value: float | None) -> None:
    run = dataclasses.replace(RUNNING.run, status=seen(told(tracked)))
    assert runmetrics._tracking_failing(runmetrics.Seen(run=run), worlds.at(90)) == value


def test_a_last_word_with_a_long_problem_fits() -> None:
    long = Tracked(mlflow_run_id="1a2b", url=URL + "a" * 900, registered_model="m" * 300, problem="ä" * 512)
    milestones = tuple(m.model_copy(update={"message": "ä" * 1024}) for m in worlds.snapshot().milestones)
    word = Snapshot.decode(worlds.snapshot(5, tracked=long, milestones=milestones).last_word(), limit=4096)
    assert word.tracked is not None
    assert word.tracked.mlflow_run_id == "1a2b"


def test_the_example_is_a_run_that_is_accepted_and_told_where_to_be_recorded() -> None:
    secret, manifest = yaml.safe_load_all((EXAMPLES / "mlflow.yaml").read_text(encoding="utf-8"))
    run = worlds.run(status=None)
    run = dataclasses.replace(run, spec=FineTuneRunSpec.parse(manifest["spec"]))
    config = configs.trainer_config(run, attempt=1)
    assert config.mlflow is not None
    assert (config.mlflow.experiment, config.mlflow.register_as) == ("support-bot", "support-bot")
    assert run.spec is not None
    assert run.spec.tracking.mlflow is not None
    assert run.spec.tracking.mlflow.credentials is not None
    assert run.spec.tracking.mlflow.credentials.secret_name == secret["metadata"]["name"]
    assert set(secret["stringData"]) <= set(MLFLOW_KEYS)
