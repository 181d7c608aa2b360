"""What the test node gives its pods: environment, files, volumes; and what it says when something isn't there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.pods import CLAIM, Here, pod, until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("node")]


def test_config_maps_and_secrets_reach_environment_and_files(here: Here) -> None:
    here("create", "configmap", "c", "--from-literal=greeting=hello", "--from-literal=file=text")
    here("create", "secret", "generic", "s", "--from-literal=token=hush")
    env = [
        {"name": "G", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "greeting"}}},
        {"name": "T", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}},
        {"name": "N", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": True}}},
    ]
    volumes = [
        {"name": "c", "configMap": {"name": "c", "items": [{"key": "file", "path": "deep/file"}]}},
        {"name": "s", "secret": {"secretName": "s"}},
    ]
    mounts = [
        {"name": "c", "mountPath": "/mnt/data/config", "readOnly": True},
        {"name": "s", "mountPath": "/mnt/secret"},
    ]
    script = (
        "echo $G $T ${N-unset} $(cat /mnt/data/config/deep/file /mnt/secret/token); touch /mnt/data/config/x; exit 0"
    )
    before = sorted(Path("/mnt").iterdir())
    here.apply(pod("p", script, container={"env": env, "volumeMounts": mounts}, volumes=volumes))
    here.ended("p")
    first, second = here.log("p").splitlines()
    assert first == "hello hush unset texthush"
    assert "Read-only file system" in second
    assert sorted(Path("/mnt").iterdir()) == before


MISSING = {
    "a ConfigMap": ({"configMapKeyRef": {"name": "no", "key": "k"}}, 'configmap "no" not found'),
    "a key": ({"configMapKeyRef": {"name": "kube-root-ca.crt", "key": "k"}}, "couldn't find key k in ConfigMap"),
    "a Secret": ({"secretKeyRef": {"name": "no", "key": "k"}}, 'secret "no" not found'),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_pod_waits_for_what_its_environment_needs(here: Here, case: str) -> None:
    source, words = MISSING[case]
    here.apply(pod("p", "true", container={"env": [{"name": "X", "valueFrom": source}]}))
    here.wait("pod/p", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=CreateContainerConfigError")
    assert words in here.get("pod", "p")["status"]["containerStatuses"][0]["state"]["waiting"]["message"]


def test_a_pod_starts_once_its_secret_is_there(here: Here) -> None:
    here.apply(
        pod(
            "p", "echo $X", container={"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}
        )
    )
    here.wait("pod/p", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=CreateContainerConfigError")
    here("create", "secret", "generic", "s", "--from-literal=k=late")
    here.ended("p")
    assert here.log("p") == "late\n"


def test_a_volume_of_another_kind_is_refused_by_name(here: Here) -> None:
    mounts = [{"name": "v", "mountPath": "/mnt/v"}]
    here.apply(
        pod(
            "p",
            "true",
            container={"volumeMounts": mounts},
            volumes=[{"name": "v", "nfs": {"server": "x", "path": "/"}}],
        )
    )
    until(lambda: "the test node has no volumes of kind nfs" in here.events("p"))
    assert here.get("pod", "p")["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ContainerCreating"


def test_a_claim_gets_a_folder_that_outlives_pods_and_goes_with_it(here: Here) -> None:
    volumes = [{"name": "run", "persistentVolumeClaim": {"claimName": "c"}}]
    mounts = [{"name": "run", "mountPath": "/mnt/run"}, {"name": "run", "mountPath": "/mnt/sub", "subPath": "a/b"}]
    container = {"volumeMounts": mounts}
    here.apply(
        CLAIM, pod("w", "echo kept > /mnt/run/file; echo sub > /mnt/sub/file", container=container, volumes=volumes)
    )
    here.ended("w")
    here.apply(pod("r", "cat /mnt/run/file /mnt/run/a/b/file", container=container, volumes=volumes))
    here.ended("r")
    assert here.log("r") == "kept\nsub\n"
    name = here.get("pvc", "c")["spec"]["volumeName"]
    volume = here.get("pv", name)
    folder = Path(volume["spec"]["hostPath"]["path"])
    assert (volume["spec"]["capacity"]["storage"], volume["spec"]["storageClassName"]) == ("3Gi", "standard")
    assert (folder / "file").read_text() == "kept\n"
    here("delete", "pod", "w", "r")
    here("delete", "pvc", "c")
    here.wait(f"pv/{name}", "delete")
    until(lambda: not folder.exists())


def test_a_claim_of_an_unknown_class_stays_pending_and_so_does_its_pod(here: Here) -> None:
    claim = {**CLAIM, "spec": {**CLAIM["spec"], "storageClassName": "no-such-class"}}  # type: ignore[dict-item]
    here.apply(
        claim,
        pod(
            "p",
            "true",
            container={"volumeMounts": [{"name": "c", "mountPath": "/mnt/c"}]},
            volumes=[{"name": "c", "persistentVolumeClaim": {"claimName": "c"}}],
        ),
    )
    until(lambda: 'storageclass.storage.k8s.io "no-such-class" not found' in here.events("c"))
    assert here.get("pod", "p")["status"]["phase"] == "Pending"


def test_empty_folders_on_disk_and_in_memory(here: Here) -> None:
    volumes = [
        {"name": "disk", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ]
    mounts = [{"name": "disk", "mountPath": "/mnt/disk"}, {"name": "memory", "mountPath": "/dev/shm"}]
    script = "touch /mnt/disk/x; stat -f -c %T /dev/shm; df --output=size -k /dev/shm | tail -1 | tr -d ' '"
    here.apply(pod("p", script, container={"volumeMounts": mounts}, volumes=volumes))
    here.ended("p")
    assert here.log("p") == "tmpfs\n1024\n"
