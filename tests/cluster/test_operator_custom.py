"""Task Custom on real Kubernetes: the example of examples/custom, and commands that fail or are asked to stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.podspec import Image
from tests.cluster.realtrainer import VENV_FIRST
from tests.cluster.stage import Stage, condition

pytestmark = pytest.mark.cluster

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom"
SPEC: dict[str, Any] = yaml.safe_load((EXAMPLE / "run.yaml").read_text())["spec"]
SMALL = {"deviceResource": "", "cpu": "100m", "memory": "100Mi"}


@pytest.fixture(autouse=True, scope="module")
def _image(images: dict[str, Image]) -> None:
    """The example's image: no entry point, and a python with PyTorch."""
    images[SPEC["trainer"]["image"]] = Image(env=VENV_FIRST | {"OMP_NUM_THREADS": "1"})


def submit(stage: Stage, name: str, **spec: Any) -> None:
    body = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneRun",
        "metadata": {"name": name},
        "spec": {"task": "Custom", "resources": SMALL, **spec},
    }
    stage.api.request("POST", stage.runs, body=body)


def trainer(*command: str, **env: str) -> dict[str, Any]:
    return {"image": SPEC["trainer"]["image"], "command": list(command), "env": env}


def test_the_example_trains_to_its_end(shared: Stage) -> None:
    shared.keep("custom-code", {"train.py": (EXAMPLE / "train.py").read_text()})
    submit(shared, "custom", **{key: value for key, value in SPEC.items() if key != "task"})
    status = shared.finished("custom", seconds=120)
    assert status["phase"] == "Completed", status
    progress = status["progress"]
    assert (progress["batch"], progress["totalBatches"], progress["done"]) == (200, 200, "100%")
    assert 0 < float(progress["loss"]) < 0.6, "it has learned"
    assert float(progress["tokensPerSecondPerDevice"]) > 0
    assert [checkpoint["name"] for checkpoint in status["checkpoints"]] == ["ba50", "ba100", "ba150", "ba200"]
    kinds = shared.events("custom")
    assert kinds == ["CREATED", "STARTED", "TRAIN_UPDATED", "CHECKPOINT_SAVED", "TRAIN_FINISHED", "COMPLETED"]
    assert status["output"]["uri"].endswith("/output")


def test_a_command_that_fails_is_retried_and_then_told_with_its_last_line(shared: Stage) -> None:
    script = """
import json, os, sys
sys.exit(f"no luck with attempt {json.loads(os.environ['FINETUNE_CONFIG'])['run']['attempt']}")
"""
    submit(shared, "unlucky", trainer=trainer("python", "-c", script), recovery={"maxRestartsWithoutProgress": 1})
    status = shared.finished("unlucky")
    assert status["phase"] == "Failed"
    assert status["attempt"] == 2
    assert status["failure"]["reason"] == "CommandFailed"
    assert status["failure"]["exitCode"] == 1
    assert "no luck with attempt 2" in status["failure"]["message"]


def test_a_final_exit_code_and_a_command_that_isnt_there_are_not_retried(shared: Stage) -> None:
    submit(shared, "baddata", trainer=trainer("sh", "-c", "exit 65"))
    submit(shared, "missing", trainer=trainer("no-such-program"))
    status = shared.finished("baddata")
    assert (status["failure"]["reason"], status["attempt"]) == ("DataInvalid", 1)
    status = shared.finished("missing")
    assert (status["failure"]["reason"], status["attempt"]) == ("ConfigInvalid", 1)
    assert "trainer.command can't be started" in status["failure"]["message"]


def test_a_suspended_command_saves_and_goes_on_where_it_was(shared: Stage) -> None:
    code = f"import runpy; runpy.run_path({str(EXAMPLE / 'train.py')!r}, run_name='__main__')"
    submit(shared, "paused-custom", trainer=trainer("python", "-c", code, STEPS="1000000"))
    shared.until("paused-custom", lambda status: status.get("progress", {}).get("batch", 0) > 0, seconds=60)
    shared.change("paused-custom", suspend=True)
    status = shared.reaches("paused-custom", "Suspended", seconds=60)
    stopped = max(checkpoint["step"] for checkpoint in status["checkpoints"])
    assert stopped == status["progress"]["batch"], "it saved when it was asked to stop"
    shared.change("paused-custom", suspend=False)
    status = shared.until("paused-custom", lambda status: status.get("progress", {}).get("attempt") == 2, seconds=60)
    assert status["progress"]["batch"] > stopped
    assert status["restartsWithoutProgress"] == 0
    shared.delete("paused-custom")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        pytest.param({"trainer": {"command": ["a"]}}, "task Custom needs an image", id="an image"),
        pytest.param({"trainer": {"image": "a"}}, "task Custom needs a command", id="a command"),
    ],
)
def test_what_a_custom_task_needs_is_told_at_once(shared: Stage, spec: dict[str, Any], says: str) -> None:
    with pytest.raises(Exception, match=says):
        submit(shared, "incomplete", **spec)


def test_the_operator_has_run_it_under_pod_security_restricted(shared: Stage) -> None:
    """The namespace that enforces it takes the pod of a Custom task."""
    path = f"/api/v1/namespaces/{shared.namespace}"
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    shared.api.request("PATCH", path, body=label, content_type="application/merge-patch+json")
    try:
        submit(shared, "restricted", trainer=trainer("sh", "-c", "exit 0"))
        status = shared.finished("restricted")
    finally:
        label["metadata"]["labels"] = {"pod-security.kubernetes.io/enforce": None}  # type: ignore[dict-item]
        shared.api.request("PATCH", path, body=label, content_type="application/merge-patch+json")
    assert status["phase"] == "Completed"
    assert condition(status, "Succeeded")["status"] == "True"
