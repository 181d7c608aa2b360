"""S5, S6: what lies in a Secret is seen by the training pod alone: it is in no log, status, event, manifest or metric.

A real run from beginning to end: the real operator, the real trainer, data and output in an S3 store that wants a key.
Each Secret that the run names holds canaries; afterwards all that anybody can read is searched for them.
"""

from __future__ import annotations

import base64
import json
import secrets
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import boto3
import pytest

from finetune_api.credentials import MLFLOW_KEYS
from tests import tiny_model
from tests.cluster import podnetwork, realtrainer
from tests.cluster.audit import AuditLog
from tests.cluster.operatorprocess import USER, OperatorProcess
from tests.cluster.podspec import Image
from tests.cluster.stage import Stage, until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

KINDS = (
    "/api/v1/namespaces/{0}/pods",
    "/api/v1/namespaces/{0}/events",
    "/api/v1/namespaces/{0}/persistentvolumeclaims",
    "/api/v1/namespaces/{0}/services",
    "/api/v1/namespaces/{0}/configmaps",
    "/apis/batch/v1/namespaces/{0}/jobs",
    "/apis/finetune.dev/v1alpha1/namespaces/{0}/finetuneruns",
)
OTHER_KEYS = ("AWS_SESSION_TOKEN", "GOOGLE_SERVICE_ACCOUNT_JSON", "HF_TOKEN")


class Canaries:
    """Values that are nowhere else in the world."""

    def __init__(self) -> None:
        self.sung: dict[str, str] = {}

    def make(self, name: str) -> str:
        """A new one."""
        self.sung[name] = f"canary{secrets.token_hex(16)}"
        return self.sung[name]

    def heard(self, text: str) -> list[str]:
        """Which are in a text, as they are or in the forms in which a text is carried."""
        forms = {name: (value, *_carried(value)) for name, value in self.sung.items()}
        return [name for name, found in forms.items() if any(form in text for form in found)]


def _carried(value: str) -> tuple[str, ...]:
    return (
        base64.b64encode(value.encode()).decode().rstrip("=")[:-1],
        value.encode().hex(),
        urllib.parse.quote_plus(value),
        value[:20],
    )


def test_a_canary_is_heard_in_each_form() -> None:
    canaries = Canaries()
    value = canaries.make("it")
    for text in (value, f"x{value}y", base64.b64encode(value.encode()).decode(), value.encode().hex(), value[:25]):
        assert canaries.heard(f"before {text} after") == ["it"]
    assert canaries.heard("canary") == []


@pytest.fixture
def canaries() -> Canaries:
    return Canaries()


@pytest.fixture
def trainer(images: dict[str, Image], tmp_path: Path) -> str:
    """The real trainer, with a hub cache in which a tiny model lies; the name of its image."""
    images["canary-trainer"] = realtrainer.image(tmp_path, no_proxy="127.0.0.1")
    return "canary-trainer"


def keep(stage: Stage, name: str, values: Mapping[str, str]) -> None:
    body = {"metadata": {"name": name}, "stringData": dict(values)}
    stage.api.request("POST", f"/api/v1/namespaces/{stage.namespace}/secrets", body=body)


def store_keys(canaries: Canaries, address: str, name: str) -> dict[str, str]:
    """Keys for the store, which takes any; all but its address and region are canaries."""
    named = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", *OTHER_KEYS)
    found = {key: canaries.make(f"{name}/{key}") for key in named}
    found["GOOGLE_SERVICE_ACCOUNT_JSON"] = json.dumps({"private_key": found["GOOGLE_SERVICE_ACCOUNT_JSON"]})
    return found | {"AWS_ENDPOINT_URL": address, "AWS_REGION": "us-east-1"}


def test_no_secret_is_seen_anywhere_but_in_the_training_pod(
    stage: Stage,
    operator: OperatorProcess,
    audit_log: AuditLog,
    canaries: Canaries,
    store: str,
    trainer: str,
    tmp_path: Path,
) -> None:
    mark = audit_log.mark()
    client = boto3.client(
        "s3", endpoint_url=store, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    client.create_bucket(Bucket="data")
    client.create_bucket(Bucket="models")
    client.upload_file(str(tiny_model.write_questions(tmp_path / "train.jsonl", 24)), "data", "train.jsonl")
    keep(stage, "hub", {"token": canaries.make("hub/token")})
    keep(stage, "mlflow", {key: canaries.make(f"mlflow/{key}") for key in MLFLOW_KEYS})
    for name in ("data", "models"):
        keep(stage, name, store_keys(canaries, store, name))
    told = list(_trained(stage, trainer))
    told += [json.dumps(stage.api.request("GET", kind.format(stage.namespace))) for kind in KINDS]
    told += [operator.log.read_text(), operator.metrics(), *_volumes(stage)]
    told += [json.dumps(record) for record in audit_log.since(mark) if record["user"]["username"] == USER]
    assert [name for text in told for name in canaries.heard(text)] == []
    size = sum(map(len, told))
    sys.stdout.write(f"{len(told)} texts of {size} characters searched for {len(canaries.sung)} canaries\n")
    assert size > 50_000, "there is something to search"
    reads = [record.get("objectRef", {}) for record in audit_log.since(mark) if record["user"]["username"] == USER]
    assert [each for each in reads if each.get("resource") in ("secrets", "configmaps")] == []
    copied = {each["Key"] for each in client.list_objects_v2(Bucket="models")["Contents"]}
    assert "bot/adapter_model.safetensors" in copied, "the keys were there and were used"
    for key in copied:
        body = client.get_object(Bucket="models", Key=key)["Body"].read()
        assert canaries.heard(body.decode("latin-1")) == [], key


def _trained(stage: Stage, image: str) -> Iterator[str]:
    """All that the trainer says, from its first answer to its last."""
    stage.submit(
        "bot",
        model={"uri": "hf://example/tiny", "credentials": {"secretName": "hub"}},
        dataset={"train": {"uri": "s3://data/train.jsonl"}, "credentials": {"secretName": "data"}},
        storage={"uploadUri": "s3://models/bot", "credentials": {"secretName": "models"}},
        training={"maxDuration": "60ba", "maxSequenceLength": 64, "batchSize": {"perDevice": 2}},
        checkpoint={"interval": "20ba"},
        tracking={"mlflow": {"trackingUri": "http://127.0.0.1:9", "credentials": {"secretName": "mlflow"}}},
        resources={"cpu": "1", "memory": "2Gi"},
        trainer={"image": image},
    )
    stage.until("bot", lambda status: bool(status.get("progress")), seconds=240)
    [pod] = stage.list("pods", of="bot")
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert not any("serviceaccount" in mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"])
    address = podnetwork.local(pod["status"]["podIP"])
    for path in ("progress", "metrics", "healthz", "nothing"):
        yield _answer(f"http://{address}:9400/{path}")
    status = stage.finished("bot", seconds=240)
    assert status["phase"] == "Completed", status
    path = f"/api/v1/namespaces/{stage.namespace}/pods/{pod['metadata']['name']}"
    yield str(stage.api.request("GET", path)["status"]["containerStatuses"][0]["state"]["terminated"])
    yield until(lambda: _log(stage, f"{path}/log"), bool, what="the trainer's log")


def _answer(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        return error.read().decode()


def _log(stage: Stage, path: str) -> str:
    return stage.api.raw("GET", path).decode()


def _volumes(stage: Stage) -> Iterator[str]:
    """Every file in the run's volume."""
    for claim in stage.list("persistentvolumeclaims"):
        volume = stage.api.request("GET", f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
        for file in Path(volume["spec"]["hostPath"]["path"]).rglob("*"):
            if file.is_file():
                yield file.read_bytes().decode("latin-1")
