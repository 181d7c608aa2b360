"""The objects that the operator creates, whole (tests/golden), and what they must never be or hold."""

import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api import wrapper
from finetune_api.snapshot import EventType
from finetune_api.status import RunEvent
from finetune_api.trainer_config import TrainerConfig
from finetune_operator import configs, custom, manifests, mounts
from finetune_operator.run import Run
from finetune_operator.settings import Settings
from tests import worlds

GOLDEN = Path(__file__).parents[2] / "golden"
SETTINGS = Settings(trainer_image="registry.example.com/finetune-trainer:1.2")

RUNS: dict[str, dict[str, Any]] = {
    "smallest": {},
    "cpu-configmap": {
        "model.uri": "hf://org/tiny@main",
        "model.credentials.secretName": "hf-token",
        "dataset.train.uri": "configmap://quickstart-data/train.jsonl",
        "method": {"type": "LoRA", "lora": {"rank": 8, "targetModules": ["q_proj", "v_proj"]}},
        "resources": {"deviceResource": "", "cpu": "500m", "memory": "2Gi"},
        "storage": {"claimTemplate": {"storageClassName": "fast", "size": "5Gi"}, "retain": "Delete"},
    },
    "everything": {
        "task": "ChatCompletion",
        "model.uri": "pvc://models/llama/8b",
        "model.trustRemoteCode": True,
        "method.type": "Full",
        "training": {"maxDuration": "3ep", "batchSize": {"perDevice": 2, "global": 64}, "precision": "BF16"},
        "checkpoint": {"interval": "30min", "keep": 5},
        "storage": {"claimName": "shared", "subPath": "runs/support-bot"},
        "resources": {
            "deviceResource": "nvidia.com/mig-3g.20gb",
            "cpu": "8",
            "memory": "64Gi",
            "sharedMemory": "16Gi",
            "nodeSelector": {"gpu": "a100"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "priorityClassName": "batch",
        },
        "trainer": {"image": "registry.example.com/other:2", "imagePullSecrets": [{"name": "pull"}]},
    },
    "nodes": {
        "storage.claimTemplate.accessMode": "ReadWriteMany",
        "resources": {"nodes": 4, "devicesPerNode": 8, "cpu": "64", "memory": "512Gi"},
    },
    "uploaded": {
        "storage": {
            "mergeAdapter": True,
            "uploadUri": "s3://models/support-bot",
            "credentials": {"secretName": "model-store"},
        },
    },
    "custom": {
        "task": "Custom",
        "model": None,
        "dataset.credentials": {"secretName": "data-keys"},
        "training.maxDuration": "500ba",
        "trainer": {
            "image": "registry.example.com/pytorch:2",
            "command": ["python", "train.py"],
            "args": ["--steps", "500"],
            "env": {"HF_HOME": "/mnt/run/hub", "FINETUNE_CONFIG": "mine", "AWS_REGION": "mine", "LEVEL": "3"},
        },
    },
}


def run(name: str) -> Run:
    return worlds.run(RUNS[name])


def objects(name: str) -> dict[str, Mapping[str, Any]]:
    event = RunEvent(sequence=7, type=EventType.FAILED, time=worlds.at(60), message="line 17 is bad", attempt=2)
    found: dict[str, Mapping[str, Any]] = {
        "job": manifests.job(run(name), attempt=2, settings=SETTINGS),
        "event": manifests.event(run(name), event),
    }
    service = manifests.service(run(name))
    found |= {} if service is None else {"service": service}
    created = run(name).spec
    assert created is not None
    return found if created.storage.claim_name else found | {"claim": manifests.claim(run(name))}


def readable(manifest: Mapping[str, Any]) -> Any:
    """Plain JSON, with the trainer's configuration laid open."""
    plain = json.loads(json.dumps(manifest))
    if manifest["kind"] == "Job":
        notes = plain["spec"]["template"]["metadata"]["annotations"]
        if custom.ANNOTATION in notes:
            assert notes[custom.ANNOTATION] == Path(wrapper.__file__).read_text()
            notes[custom.ANNOTATION] = "the file wrapper.py"
    for entry in environment(plain) if manifest["kind"] == "Job" else ():
        if entry["name"] == "FINETUNE_CONFIG":
            entry["value"] = {"json": json.loads(entry["value"])}
    return plain


def environment(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = job["spec"]["template"]["spec"]["containers"][0]["env"]
    return found


@pytest.mark.parametrize("name", RUNS)
def test_the_objects_of_a_run_are_these_field_by_field(name: str) -> None:
    path = GOLDEN / f"{name}.yaml"
    found = {kind: readable(manifest) for kind, manifest in objects(name).items()}
    if os.environ.get("GOLDEN") == "write":
        path.write_text(yaml.safe_dump(found, sort_keys=False, width=110))
    assert found == yaml.safe_load(path.read_text())


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_a_job_passes_pod_security_restricted(name: str) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards, every rule of `restricted`."""
    pod = objects(name)["job"]["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"} & set(pod)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "downwardAPI", "emptyDir", "persistentVolumeClaim"}
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not {"privileged", "procMount", "seLinuxOptions", "runAsUser", "runAsNonRoot"} & set(context)
        assert not any("hostPort" in port for port in container["ports"])


@pytest.mark.parametrize("name", RUNS)
def test_a_pod_holds_no_credential_of_kubernetes_and_none_as_a_value(name: str) -> None:
    job = objects(name)["job"]
    pod = job["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod
    tokens = [entry for entry in environment(job) if "TOKEN" in entry["name"]]
    assert all(set(entry) == {"name", "valueFrom"} for entry in tokens)
    assert ("command" in pod["containers"][0]) == ("args" in pod["containers"][0]) == (name == "custom")


@pytest.mark.parametrize("name", RUNS)
def test_every_object_is_in_the_run_s_namespace_and_names_no_other(name: str) -> None:
    for manifest in objects(name).values():
        assert {value for key, value in walk(readable(manifest)) if key == "namespace"} == {"ml"}


def walk(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    yield key, value if isinstance(value, str) else None
    if isinstance(value, dict):
        for inner, found in value.items():
            yield from walk(found, inner)
    elif isinstance(value, list):
        for found in value:
            yield from walk(found, key)


def test_nothing_of_the_run_s_labels_and_annotations_is_copied() -> None:
    labelled = worlds.body(labels={"app": "gitops-marker"}, annotations={"tool": "gitops-marker"})
    found = Run.parse(labelled)
    event = RunEvent(sequence=1, type=EventType.CREATED, time=worlds.NOW, message="Run created.")
    made = (manifests.job(found, attempt=1, settings=SETTINGS), manifests.claim(found), manifests.event(found, event))
    assert "gitops-marker" not in json.dumps(made)


def test_children_are_owned_by_the_run_and_the_claim_only_if_it_is_to_be_deleted() -> None:
    owner = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneRun",
        "name": "support-bot",
        "uid": worlds.UID,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    assert objects("smallest")["job"]["metadata"]["ownerReferences"] == [owner]
    assert "ownerReferences" not in objects("smallest")["claim"]["metadata"]
    assert objects("cpu-configmap")["claim"]["metadata"]["ownerReferences"] == [owner]


def kubelet_expands(value: str) -> str:
    """What the kubelet makes of a value in which no variable is named: $$ becomes $, and $( would begin a name."""
    assert "$(" not in value.replace("$$", "")
    return value.replace("$$", "$")


def test_a_dollar_sign_reaches_the_trainer_as_it_was_written() -> None:
    changes = {"dataset.columns.prompt": "$(HOME) $$ $x", "dataset.train.uri": "pvc://data/a$(PATH).jsonl"}
    job = manifests.job(worlds.run(changes), attempt=1, settings=SETTINGS)
    value = next(entry["value"] for entry in environment(job) if entry["name"] == "FINETUNE_CONFIG")
    config = TrainerConfig.decode(kubelet_expands(value))
    assert config.dataset.columns.prompt == "$(HOME) $$ $x"
    assert config.dataset.train.path == "/mnt/data/a$(PATH).jsonl"


@pytest.mark.parametrize("name", RUNS)
def test_every_path_in_the_configuration_is_below_a_mount(name: str) -> None:
    job = objects(name)["job"]
    container = job["spec"]["template"]["spec"]["containers"][0]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    build = configs.custom_config if name == "custom" else configs.trainer_config
    config = build(run(name), attempt=2)
    assert config.dataset is not None
    paths = [config.run_path, config.dataset.train.path]
    paths += [config.model.path] if config.model is not None and config.model.path else []
    assert all(path and any(path == mount or path.startswith(f"{mount}/") for mount in mounts) for path in paths)
    assert {m["name"] for m in container["volumeMounts"]} == {
        v["name"] for v in job["spec"]["template"]["spec"]["volumes"]
    }


@pytest.mark.parametrize(
    ("changes", "path", "uri"),
    [
        pytest.param({}, "output", "pvc://support-bot-6c3f2a1e/output", id="the operator's own claim"),
        pytest.param({"storage.claimName": "shared"}, "output", "pvc://shared/output", id="a claim that was there"),
        pytest.param(
            {"storage": {"claimName": "shared", "subPath": "runs/x"}},
            "/output/",
            "pvc://shared/runs/x/output",
            id="a folder of a claim",
        ),
    ],
)
def test_where_the_output_lies(changes: dict[str, Any], path: str, uri: str) -> None:
    assert mounts.output_uri(worlds.run(changes), path) == uri


def test_an_event_s_time_is_in_utc_whatever_the_trainer_s_clock_shows() -> None:
    entry = RunEvent(sequence=1, type=EventType.CREATED, time=datetime.fromisoformat("2026-03-01T14:00:00+02:00"))
    assert manifests.event(worlds.run(), entry)["lastTimestamp"] == "2026-03-01T12:00:00Z"


WENT_WRONG = (EventType.FAILED, EventType.RESTARTED, EventType.HUNG)


@pytest.mark.parametrize("kind", list(EventType))
def test_only_what_went_wrong_is_a_warning(kind: EventType) -> None:
    event = manifests.event(worlds.run(), RunEvent(sequence=1, type=kind, time=worlds.NOW))
    assert event["type"] == ("Warning" if kind in WENT_WRONG else "Normal")
    assert event["reason"] == kind.value.title().replace("_", "")
