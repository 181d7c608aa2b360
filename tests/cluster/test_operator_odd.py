"""Five hundred odd runs, and objects that carry the operator's labels and make no sense, on a real API server.

The operator never exits, prints no traceback, and a good run beside them completes; each odd run is refused by the API
server or the operator with a field's name, or is in a condition that has a name.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from finetune_api.types import API_VERSION, KIND
from finetune_operator import names
from tests.cluster import operatorprocess
from tests.cluster.conftest import Kubectl, fresh_namespace
from tests.cluster.operatorprocess import OperatorProcess
from tests.cluster.rest import ApiError
from tests.cluster.stage import QUICK, Stage, condition, until
from tests.odd.generator import Generator, Oddity

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

COUNT = 500
SEED = 7
AT_ONCE = 4
ATTEMPTS = ("abc", "", "-1", "0", "1.5", "99999999999999999999", "x" * 63)
TAMPERED = ("phase", "conditions", "failure", "output", "progress", "checkpoints", "queue", "activeSeconds", "model")
"""Of a status that somebody else has written."""


@pytest.fixture
def odd(kubectl: Kubectl, stage: Stage) -> Iterator[Stage]:
    """A second namespace, for what is odd."""
    with fresh_namespace(kubectl) as name:
        yield Stage(stage.api, name)


@pytest.fixture
def both(operator_account: Path, tmp_path: Path, stage: Stage, odd: Stage) -> Iterator[OperatorProcess]:
    """An operator for both namespaces."""
    served = [stage.namespace, odd.namespace]
    with operatorprocess.running(operator_account, folder=tmp_path, namespaces=served, **QUICK) as running:
        yield running


def test_odd_runs_and_poison_hurt_nobody(stage: Stage, odd: Stage, both: OperatorProcess) -> None:
    stage.submit("before", script={"steps": 40, "step_seconds": 0.2})
    poison(odd)
    refused = submit_all(odd)
    tamper(odd)
    stage.submit("after")
    for name in ("before", "after"):
        assert stage.finished(name, seconds=120)["phase"] == "Completed"
    runs = until(lambda: everything(odd), lambda runs: not undecided(runs), what="odd runs", seconds=60)
    found = Counter(map(outcome, runs))
    assert [message for message in refused if "spec" not in message] == [], "a refusal names a field"
    assert refused
    assert found["refused"] > COUNT / 20, found
    assert found["in a condition"] > 10, found
    log = both.log.read_text()
    assert both.process
    assert both.process.poll() is None
    assert "Traceback" not in log, log[log.index("Traceback") - 2000 :][:5000]
    assert both.healthy()


def submit_all(odd: Stage) -> Sequence[str]:
    """Create them; what the API server said to those that it refused."""

    def submit(number: int) -> str:
        make = Generator(SEED * 1_000_000 + number)
        oddity = (Oddity.BROKEN, Oddity.VALID, Oddity.VALID, Oddity.TAME)[number % 4]
        body = make.run(make.name(number), namespace=odd.namespace, oddity=oddity)
        try:
            odd.api.request("POST", odd.runs, body=body, fieldValidation="Strict")
        except ApiError as error:
            if error.code not in (400, 413, 422):
                raise
            return str(error)
        return ""

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return [message for message in threads.map(submit, range(COUNT)) if message]


def poison(odd: Stage) -> None:
    """Jobs, pods and claims with the operator's labels, which it can't read or which belong to nobody."""
    chance = random.Random(SEED)
    for number, attempt in enumerate(ATTEMPTS):
        labels = names.labels(chance.choice(("odd-0", "nobody", "x" * 63))) | {names.ATTEMPT_LABEL: attempt[:63]}
        notes = {names.RUN_UID_ANNOTATION: chance.choice(("", "nobody", "🙂" * 50))}
        owner = {"apiVersion": API_VERSION, "kind": KIND, "name": "gone", "uid": f"gone-{number}", "controller": True}
        metadata: dict[str, Any] = {"name": f"poison-{number}", "annotations": notes}
        metadata["labels"] = {key: value for key, value in labels.items() if value.strip("-") == value}
        pod = {"restartPolicy": "Never", "containers": [{"name": names.TRAINER_CONTAINER, "image": "nowhere"}]}
        gated = pod | {"schedulingGates": [{"name": "example.com/never"}]}
        job = {"suspend": True, "template": {"spec": pod}}
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        claim["storageClassName"] = "none"
        for path, spec in (
            (f"/apis/batch/v1/namespaces/{odd.namespace}/jobs", job),
            (f"/api/v1/namespaces/{odd.namespace}/pods", gated),
            (f"/api/v1/namespaces/{odd.namespace}/persistentvolumeclaims", claim),
        ):
            create(
                odd,
                path,
                {"metadata": metadata | ({"ownerReferences": [owner]} if "jobs" in path else {}), "spec": spec},
            )


def create(odd: Stage, path: str, body: Mapping[str, Any]) -> None:
    """What the API server refuses can't hurt the operator."""
    try:
        odd.api.request("POST", path, body=body)
    except ApiError as error:
        if error.code != 422:
            raise


def tamper(odd: Stage) -> None:
    """Somebody who may writes statuses of runs and of poison."""
    make = Generator(SEED)
    content = "application/merge-patch+json"
    for run in everything(odd)[:30]:
        status = {key: value for key, value in make.status().items() if key in TAMPERED}
        path = f"{odd.runs}/{run['metadata']['name']}/status"
        try:
            odd.api.request("PATCH", path, body={"status": status}, content_type=content)
        except ApiError as error:
            if error.code not in (404, 409, 422):
                raise
    end = {"exitCode": -1, "message": "x" * 5000, "finishedAt": "9999-12-31T23:59:59Z"}
    container = {"name": names.TRAINER_CONTAINER, "image": "", "imageID": "", "ready": False, "restartCount": 0}
    told = {"phase": "Failed", "containerStatuses": [container | {"state": {"terminated": end}}]}
    for pod in odd.list("pods"):
        path = f"/api/v1/namespaces/{odd.namespace}/pods/{pod['metadata']['name']}/status"
        if pod["metadata"]["name"].startswith("poison"):
            odd.api.request("PATCH", path, body={"status": told}, content_type=content)


def everything(odd: Stage) -> Sequence[Mapping[str, Any]]:
    items: Sequence[Mapping[str, Any]] = odd.api.request("GET", odd.runs)["items"]
    return items


def undecided(runs: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    return [run["metadata"]["name"] for run in runs if outcome(run) == "undecided"]


def outcome(run: Mapping[str, Any]) -> str:
    """In a word."""
    status, spec = run.get("status", {}), run["spec"]
    if spec.get("managedBy", "finetune.dev/operator") != "finetune.dev/operator":
        return "left alone"
    accepted, active = condition(status, "Accepted"), condition(status, "Reconciling")
    if accepted.get("status") == "False":
        said = accepted.get("message", "")  # none in what was tampered with and isn't mended yet
        return "refused" if "spec." in said else "undecided"
    if condition(status, "Finished").get("status") == "True":
        return "finished"
    return "in a condition" if active.get("reason") else "undecided"
