"""A run on several nodes, and one with several devices, on real Kubernetes: one pod a node, one process a device."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from finetune_operator import names
from tests import builders, tiny_model
from tests.cluster import node as nodes
from tests.cluster import realtrainer
from tests.cluster.controlplane import ControlPlane
from tests.cluster.operatorprocess import OperatorProcess
from tests.cluster.podspec import Image
from tests.cluster.stage import Object, Stage, condition, until

pytestmark = pytest.mark.cluster

PAIR = {"finetune.dev/pair": "yes"}
"""Label of the two nodes that this file adds."""
TWO: dict[str, Any] = {
    "resources": {"nodes": 2, "nodeSelector": PAIR},
    "storage": {"claimTemplate": {"accessMode": "ReadWriteMany"}},
}
LONG = {"steps": 3000, "step_seconds": 0.1}


@pytest.fixture(scope="module")
def pair(control_plane: ControlPlane, node: nodes.Settings) -> Iterator[None]:
    """Two more nodes, whose pods know each other by name."""
    machines = tuple(nodes.Machine(name, labels=PAIR) for name in ("left", "right"))
    with nodes.running(dataclasses.replace(node, machines=machines, certificate=None)):
        yield
    for machine in machines:
        control_plane.api().request("DELETE", f"/api/v1/nodes/{machine.name}")


def pods(stage: Stage, name: str) -> list[Object]:
    found = stage.list("pods", of=name)
    return sorted(found, key=lambda pod: (str(pod["metadata"]["creationTimestamp"]), pod["metadata"]["name"]))


def test_two_nodes_have_a_pod_each_and_a_name_for_the_first(
    stage: Stage, operator: OperatorProcess, pair: None
) -> None:
    run = stage.submit("two", script=LONG, **TWO)
    status = stage.until("two", lambda status: status.get("progress", {}).get("batch", 0) >= 3)
    first, second = pods(stage, "two")
    assert {first["spec"]["nodeName"], second["spec"]["nodeName"]} == {"left", "right"}
    assert [event["message"] for event in status["events"] if event["type"] == "STARTED"] == [
        f"Run started: attempt 1, pod {first['metadata']['name']} on node {first['spec']['nodeName']} and 1 more."
    ]
    path = f"/api/v1/namespaces/{stage.namespace}/services/{names.service(run['metadata']['uid'])}"
    service = stage.api.request("GET", path)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= first["metadata"]["labels"].items()
    stage.change("two", suspend=True)
    stage.reaches("two", "Suspended")
    assert [pod for pod in pods(stage, "two") if pod["status"]["phase"] == "Running"] == []
    stage.change("two", suspend=False)
    stage.until("two", lambda status: status.get("progress", {}).get("attempt") == 2)
    stage.delete("two")
    until(lambda: pods(stage, "two"), lambda left: not left, what="pods")
    until(lambda: stage.gone(path), bool, what="the Service being gone")


def test_one_pod_deleted_ends_the_attempt_and_the_next_starts_both(
    stage: Stage, operator: OperatorProcess, pair: None
) -> None:
    stage.submit("half", script=LONG, **TWO)
    stage.until("half", lambda status: status.get("progress", {}).get("batch", 0) >= 3)
    lost = pods(stage, "half")[1]["metadata"]["name"]
    stage.api.request("DELETE", f"/api/v1/namespaces/{stage.namespace}/pods/{lost}")
    status = stage.until("half", lambda status: status.get("progress", {}).get("attempt") == 2)
    assert status["attempt"] == 2
    running = [pod for pod in pods(stage, "half") if pod["status"]["phase"] == "Running"]
    assert len(running) == 2
    assert {pod["metadata"]["labels"][names.ATTEMPT_LABEL] for pod in running} == {"2"}
    stage.delete("half")


def test_a_volume_of_one_node_is_refused_with_the_field(stage: Stage, operator: OperatorProcess) -> None:
    stage.submit("narrow", resources={"nodes": 2})
    status = stage.finished("narrow")
    assert status["failure"]["reason"] == "Invalid"
    assert status["failure"]["message"].startswith("spec.storage.claimTemplate.accessMode: ReadWriteOnce is for one")
    assert stage.attempts("narrow") == []


@pytest.fixture
def real(tmp_path: Path, images: dict[str, Image], stage: Stage) -> dict[str, Any]:
    """The spec of a run with the real trainer on a tiny model, in steps of eight records."""
    images[realtrainer.IMAGE] = realtrainer.image(tmp_path)
    data = tiny_model.write_questions(tmp_path / "train.jsonl", 48, longest=200).read_text()
    stage.keep("questions", {"train.jsonl": data})
    return {
        "model": {"uri": realtrainer.MODEL},
        "dataset": {"train": {"uri": "configmap://questions/train.jsonl"}},
        "method": {"type": "LoRA", "lora": {"rank": 4, "dropout": 0.0}},
        "training": {
            "maxDuration": "40ba",
            "maxSequenceLength": 64,
            "precision": "FP32",
            "batchSize": {"perDevice": 2, "global": 8},
        },
        "checkpoint": {"interval": "2ba"},
        "trainer": {"image": realtrainer.IMAGE},
    }


def folder_of(stage: Stage, name: str) -> Path:
    (claim,) = stage.list("persistentvolumeclaims", of=name)
    volume = stage.api.request("GET", f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
    return Path((volume["spec"].get("hostPath") or volume["spec"]["local"])["path"])


def checkpoints(stage: Stage, name: str) -> list[Path]:
    bound = [claim for claim in stage.list("persistentvolumeclaims", of=name) if claim["spec"].get("volumeName")]
    return list(folder_of(stage, name).glob("checkpoints/ep*")) if bound else []


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "training_logs" / "metrics.jsonl").read_text().splitlines()]


def processes_of(uid: str, *, index: int) -> list[int]:
    """The processes of this machine that are a run's pod with this index."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            told = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        mine = any(line.startswith(b"FINETUNE_CONFIG=") and uid.encode() in line for line in told)
        if mine and f"PET_NODE_RANK={index}".encode() in told:
            found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_the_real_trainer_on_two_nodes_trains_what_it_trains_on_one_and_survives_a_kill(
    stage: Stage, operator: OperatorProcess, pair: None, real: dict[str, Any]
) -> None:
    stage.submit("one", **real)
    one = stage.finished("one", seconds=300)
    assert one["phase"] == "Completed", one.get("failure")

    run = stage.submit("nodes", **builders.merged(real, TWO))
    until(lambda: checkpoints(stage, "nodes"), bool, what="checkpoints", seconds=300)
    for process in processes_of(run["metadata"]["uid"], index=1):
        os.kill(process, signal.SIGKILL)
    status = stage.finished("nodes", seconds=300)
    assert status["phase"] == "Completed", status.get("failure")
    assert status["attempt"] == 2
    (resumed,) = [event["message"] for event in status["events"] if event["type"] == "RESUMED"]
    assert resumed.startswith("Resumed from ep")
    assert losses(folder_of(stage, "nodes")) == pytest.approx(losses(folder_of(stage, "one")), abs=1e-4)
    assert status["progress"]["tokens"] == one["progress"]["tokens"]
    weights = [load_file(folder_of(stage, name) / "output" / "adapter_model.safetensors") for name in ("one", "nodes")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() < 1e-3, name


@pytest.mark.slow
def test_two_devices_of_a_node_are_two_processes_of_one_pod(
    stage: Stage, operator: OperatorProcess, real: dict[str, Any]
) -> None:
    stage.submit("devices", **builders.merged(real, {"resources": {"devicesPerNode": 2}}))
    status = stage.finished("devices", seconds=300)
    assert status["phase"] == "Completed", status.get("failure")
    assert len(pods(stage, "devices")) == 1
    (told,) = [event["message"] for event in status["events"] if event["type"] == "MODEL_INITIALIZED"]
    assert told.endswith("4 x 2 records a step on 2 devices.")
    assert condition(status, "Succeeded")["status"] == "True"
