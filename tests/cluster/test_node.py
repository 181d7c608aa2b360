"""The test node against the real scheduler and controllers: what the other tests take for granted of a kubelet."""

from __future__ import annotations

import dataclasses
import functools
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.cluster import controlplane, kube, podnetwork
from tests.cluster import node as testnode
from tests.cluster.pods import CLAIM, Here, Manifest, job, pod, until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("node")]


def test_a_job_runs_to_complete(here: Here) -> None:
    here.apply(job("j", "echo hello; printf 'all well' > /dev/termination-log"))
    here.wait("job/j", "condition=Complete")
    name = here("get", "pods", "-l", "job-name=j", "-o", "name").strip().removeprefix("pod/")
    found = here.get("pod", name)
    terminated = here.ended(name)
    assert (terminated["exitCode"], terminated["reason"], terminated["message"]) == (0, "Completed", "all well")
    assert terminated["startedAt"] <= terminated["finishedAt"]
    conditions = {one["type"]: one["status"] for one in found["status"]["conditions"]}
    assert conditions == {
        "PodScheduled": "True",
        "Initialized": "True",
        "PodReadyToStartContainers": "False",
        "ContainersReady": "False",
        "Ready": "False",
    }


@pytest.mark.parametrize(
    ("script", "code", "message"),
    [("exit 65", 65, None), ("echo why > /dev/termination-log; kill -9 $$$$", 137, "why\n")],
)
def test_a_failure_keeps_its_code_and_last_word(here: Here, script: str, code: int, message: str | None) -> None:
    here.apply(job("j", script))
    here.wait("job/j", "condition=Failed")
    name = here("get", "pods", "-l", "job-name=j", "-o", "name").strip().removeprefix("pod/")
    terminated = here.ended(name, "Failed")
    assert (terminated["exitCode"], terminated["reason"], terminated.get("message")) == (code, "Error", message)


def test_the_end_of_the_log_stands_in_for_a_last_word_where_wanted(here: Here) -> None:
    here.apply(pod("p", "echo it broke; exit 1", container={"terminationMessagePolicy": "FallbackToLogsOnError"}))
    assert here.ended("p", "Failed")["message"] == "it broke\n"


def test_a_running_pod_is_ready_and_knows_itself(here: Here) -> None:
    env = [
        {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
        for name, path in {
            "A": "metadata.name",
            "B": "metadata.labels['x']",
            "C": "spec.nodeName",
            "D": "status.podIP",
        }.items()
    ]
    env += [{"name": "E", "value": "$(A)-$(B) $$(A) $(NONE)"}]
    script = "echo $A $B $C $HOSTNAME $E; test $D = $FINETUNE_BIND_ADDRESS && sleep 600"
    here.apply(pod("p", script, container={"env": env}, metadata={"labels": {"x": "y"}}))
    here.wait("pod/p", "condition=Ready")
    found = here.get("pod", "p")["status"]
    assert found["containerStatuses"][0]["state"]["running"]["startedAt"]
    assert (found["phase"], found["hostIP"], found["podIPs"]) == ("Running", "127.0.0.1", [{"ip": found["podIP"]}])
    until(lambda: here.log("p") == "p y node-1 p p-y $(A) $(NONE)\n")


def test_an_image_that_cant_be_pulled_backs_off(here: Here) -> None:
    here.apply(pod("p", "true", container={"image": "no/such:image"}))
    here.wait("pod/p", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=ImagePullBackOff")
    assert here.get("pod", "p")["status"]["phase"] == "Pending"
    assert 'failed to pull and unpack image "no/such:image": not found' in here.events("p")
    here("delete", "pod", "p")
    assert here("get", "pods", "-o", "name") == ""


def test_deletion_lets_the_container_finish_its_work(here: Here) -> None:
    script = "trap 'echo saved > /dev/termination-log; exit 75' TERM; echo up; while :; do sleep 0.05; done"
    here.apply(pod("p", script, metadata={"finalizers": ["finetune.dev/test"]}))
    until(lambda: here.phase("p", "Running") and here.log("p") == "up\n")
    here("delete", "pod", "p", "--wait=false")
    terminated = here.ended("p", "Failed")
    assert (terminated["exitCode"], terminated["message"]) == (75, "saved\n")
    here("patch", "pod", "p", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    here.wait("pod/p", "delete")


def test_deletion_kills_after_the_grace_period(here: Here) -> None:
    here.apply(
        pod("p", "trap '' TERM; echo up; while :; do sleep 0.05; done", metadata={"finalizers": ["finetune.dev/test"]})
    )
    until(lambda: here.phase("p", "Running") and here.log("p") == "up\n")
    begun = time.monotonic()
    here("delete", "pod", "p", "--wait=false", "--grace-period=1")
    assert here.ended("p", "Failed")["exitCode"] == 137
    assert time.monotonic() - begun >= 1
    here("patch", "pod", "p", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    here.wait("pod/p", "delete")


def running_here(text: str) -> bool:
    """Whether a process with this text in its command line runs."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if text.encode() in (entry / "cmdline").read_bytes():
                    return True
            except (FileNotFoundError, ProcessLookupError):
                continue
    return False


def test_a_forced_deletion_leaves_no_process(here: Here) -> None:
    here.apply(pod("p", f"trap '' TERM; echo {here.namespace}; while :; do sleep 0.05; done"))
    here.phase("p", "Running")
    assert running_here(f"echo {here.namespace}")
    here("delete", "pod", "p", "--grace-period=0", "--force")
    until(lambda: not running_here(f"echo {here.namespace}"))


def test_an_eviction_says_so_and_the_job_fails(here: Here, control_plane: controlplane.ControlPlane) -> None:
    manifest = job("j", "trap 'exit 75' TERM; echo up; while :; do sleep 0.05; done", podReplacementPolicy="Failed")
    manifest["spec"]["template"]["metadata"] = {"finalizers": ["finetune.dev/test"]}
    here.apply(manifest)
    until(lambda: here("get", "pods", "-o", "name"))
    name = here("get", "pods", "-o", "name").strip().removeprefix("pod/")
    until(lambda: here.phase(name, "Running") and here.log(name) == "up\n")
    path = f"/api/v1/namespaces/{here.namespace}/pods/{name}"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": here.namespace}}
    control_plane.api().request("POST", f"{path}/eviction", body=eviction)
    assert here.ended(name, "Failed")["exitCode"] == 75
    conditions = {one["type"]: one for one in here.get("pod", name)["status"]["conditions"]}
    assert conditions["DisruptionTarget"]["reason"] == "EvictionByEvictionAPI"
    here.wait("job/j", "condition=Failed")
    here("patch", "pod", name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')


def test_a_pod_waits_for_a_gpu_until_one_is_free(here: Here) -> None:
    def trainer(name: str, gpus: int) -> Manifest:
        return pod(
            name,
            "echo up; while [ ! -e /mnt/c/stop ]; do sleep 0.05; done",
            container={
                "resources": {"limits": {"nvidia.com/gpu": gpus}},
                "volumeMounts": [{"name": "c", "mountPath": "/mnt/c"}],
            },
            volumes=[{"name": "c", "persistentVolumeClaim": {"claimName": "c"}}],
        )

    here.apply(CLAIM, trainer("first", 2))
    here.phase("first", "Running")
    here.apply(trainer("second", 1))
    here.wait("pod/second", "jsonpath={.status.conditions[?(@.type=='PodScheduled')].reason}=Unschedulable")
    assert "Insufficient nvidia.com/gpu" in here.events("second")
    folder = Path(here.get("pv", here.get("pvc", "c")["spec"]["volumeName"])["spec"]["hostPath"]["path"])
    (folder / "stop").touch()
    here.ended("first")
    here.ended("second")


def test_logs_by_kubectl(here: Here) -> None:
    here.apply(pod("p", "for i in 1 2 3; do echo $i; sleep 0.3; done"))
    here.phase("p", "Running")
    assert here.log("p", "--follow") == "1\n2\n3\n"
    assert here.log("p", "--tail=1") == "3\n"
    assert here.log("p", "--limit-bytes=3") == "1\n2"
    with pytest.raises(AssertionError, match="don't know timestamps"):
        here.log("p", "--timestamps")


SERVER = """
import http.server, os
address = (os.environ['FINETUNE_BIND_ADDRESS'], 9400)
http.server.HTTPServer(address, http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def test_the_api_server_reaches_a_pod_through_its_proxy(here: Here, control_plane: controlplane.ControlPlane) -> None:
    """Also at the same port as another pod; and from this machine by the address behind the one that it shows."""
    for name in ("a", "b"):
        here("create", "configmap", name, f"--from-literal=who={name}")
        here.apply(
            pod(
                name,
                f'cd /mnt/c && exec {sys.executable} -c "{SERVER}"',
                container={"volumeMounts": [{"name": "c", "mountPath": "/mnt/c"}]},
                volumes=[{"name": "c", "configMap": {"name": name}}],
            )
        )
    api = control_plane.api()
    for name in ("a", "b"):
        address = here.phase(name, "Running")["status"]["podIP"]
        path = f"/api/v1/namespaces/{here.namespace}/pods/{name}:9400/proxy/who"
        until(functools.partial(api.ok, path))
        assert api.raw("GET", path) == name.encode()
        with urllib.request.urlopen(f"http://{podnetwork.local(address)}:9400/who") as answer:
            assert answer.read() == name.encode()


def test_pods_of_one_headless_service_know_each_other_by_name(here: Here) -> None:
    """A peer that comes later is known too."""
    wait = "until getent hosts b.peers; do sleep 0.05; done"
    for name, script in {"a": wait, "b": "getent hosts a.peers; getent hosts other.peers || sleep 600"}.items():
        here.apply(pod(name, script, subdomain="peers", hostname=name))
        here.phase(name, "Running")
    here.ended("a")
    address = podnetwork.local(here.get("pod", "b")["status"]["podIP"])
    assert here.log("a").split()[0] == address


def test_a_pod_past_its_deadline_fails(here: Here) -> None:
    here.apply(pod("p", "sleep 600", activeDeadlineSeconds=1))
    assert here.phase("p", "Failed")["status"]["reason"] == "DeadlineExceeded"


def test_a_command_that_cant_be_started_ends_in_128(here: Here) -> None:
    here.apply(pod("p", "", container={"command": ["no-such-program"]}))
    terminated = here.ended("p", "Failed")
    assert (terminated["exitCode"], terminated["reason"]) == (128, "StartError")
    assert "can't run 'no-such-program'" in terminated["message"]


def test_a_pod_with_a_service_account_reaches_the_api_server(here: Here, binaries: kube.Binaries) -> None:
    script = (
        "cd /var/run/secrets/kubernetes.io/serviceaccount && "
        f"{binaries.kubectl} --server=https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT "
        "--certificate-authority=ca.crt --token=$(cat token) auth whoami"
    )
    here.apply(pod("p", script))
    here.ended("p")
    assert f"system:serviceaccount:{here.namespace}:default" in here.log("p")


def test_pods_of_a_node_that_was_restarted_have_failed(here: Here, node: testnode.Settings, tmp_path: Path) -> None:
    """The program too is tried here, and a node whose pods show the address that they listen on."""
    images = [f"--image={name}=" for name in ("shell", "unused")]
    options = ["--name=other", "--gpus=7", f"--kubeconfig={node.kubeconfig}", f"--folder={tmp_path}", *images]
    log = tmp_path / "log"
    with log.open("w") as file:
        program = subprocess.Popen([sys.executable, "-m", "tests.cluster.node", *options], stderr=file)
    try:
        here("wait", "--for=create", "node/other", "--timeout=30s")
        here.wait("node/other", "condition=Ready")
        assert here.get("node", "other")["status"]["allocatable"]["nvidia.com/gpu"] == "7"
        here.apply(pod("p", f"echo {here.namespace}; sleep 600 | sleep 600", nodeName="other"))
        assert here.phase("p", "Running")["status"]["podIP"].startswith("127.")
        program.send_signal(signal.SIGINT)
        assert program.wait(timeout=20) == 0, log.read_text()
        assert not running_here(f"echo {here.namespace}")
        assert here.get("pod", "p")["status"]["phase"] == "Running"
        again = dataclasses.replace(node, machines=(testnode.Machine("other"),), folder=tmp_path / "again")
        with testnode.running(again):
            assert here.ended("p", "Failed")["reason"] == "ContainerStatusUnknown"
    finally:
        program.kill()
        program.wait()
        here("delete", "node", "other", "--ignore-not-found")
