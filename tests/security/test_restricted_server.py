"""The API server's own Pod Security admission on pods of accepted runs, and on the same pods made worse.

What the function in restricted.py says, and what the server says, is the same for every one of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.cluster.conftest import Kubectl
from tests.cluster.controlplane import ControlPlane
from tests.cluster.rest import Api, ApiError
from tests.security import accepted, restricted

pytestmark = pytest.mark.cluster

GOOD = 200

Object = dict[str, Any]


@pytest.fixture
def guarded(kubectl: Kubectl, control_plane: ControlPlane, namespace: str) -> tuple[Api, str]:
    """A namespace that enforces `restricted`."""
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    return control_plane.api(), namespace


def refusal(guarded: tuple[Api, str], template: Mapping[str, Any]) -> str:
    """What Pod Security says of a pod; empty if it lets it pass."""
    api, namespace = guarded
    body = {"metadata": {"generateName": "tried-"} | template["metadata"], "spec": template["spec"]}
    try:
        api.request("POST", f"/api/v1/namespaces/{namespace}/pods", body=body, dryRun="All")
    except ApiError as error:
        if error.code == 403 and "violates PodSecurity" in str(error):
            return str(error)
        raise
    return ""


def plain(job: Object) -> Object:
    """The pod template without its priority class, which need not exist here."""
    template: Object = copy.deepcopy(job["spec"]["template"])
    template["spec"].pop("priorityClassName", None)
    return template


def test_the_server_admits_the_pods_of_accepted_runs(guarded: tuple[Api, str]) -> None:
    for job in accepted.jobs(GOOD):
        assert refusal(guarded, plain(job)) == "", job["metadata"]["name"]


WORSE: Mapping[str, Callable[[Object, Object], Any]] = {
    "hostNetwork": lambda pod, container: pod.update(hostNetwork=True),
    "hostPID": lambda pod, container: pod.update(hostPID=True),
    "hostIPC": lambda pod, container: pod.update(hostIPC=True),
    "a hostPath": lambda pod, container: pod["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
    "NFS": lambda pod, container: pod["volumes"].append({"name": "n", "nfs": {"server": "host", "path": "/"}}),
    "a host's port": lambda pod, container: container["ports"][0].update(hostPort=9400),
    "privileged": lambda pod, container: container.update(securityContext={"privileged": True}),
    "escalation": lambda pod, container: container["securityContext"].pop("allowPrivilegeEscalation"),
    "capabilities kept": lambda pod, container: container["securityContext"].pop("capabilities"),
    "capabilities added": lambda pod, container: container["securityContext"]["capabilities"].update(add=["NET_RAW"]),
    "root": lambda pod, container: pod["securityContext"].pop("runAsNonRoot"),
    "user 0": lambda pod, container: pod["securityContext"].update(runAsUser=0),
    "container's user 0": lambda pod, container: container["securityContext"].update(runAsUser=0),
    "no seccomp": lambda pod, container: pod["securityContext"].pop("seccompProfile"),
    "unconfined": lambda pod, container: pod["securityContext"].update(seccompProfile={"type": "Unconfined"}),
    "AppArmor off": lambda pod, container: container["securityContext"].update(appArmorProfile={"type": "Unconfined"}),
    "SELinux": lambda pod, container: pod["securityContext"].update(seLinuxOptions={"user": "x"}),
    "sysctls": lambda pod, container: pod["securityContext"].update(sysctls=[{"name": "kernel.msgmax", "value": "1"}]),
    "procMount": lambda pod, container: (
        pod.update(hostUsers=False),
        container["securityContext"].update(procMount="Unmasked"),
    ),
    "another host's probe": lambda pod, container: container.update(
        livenessProbe={"httpGet": {"host": "169.254.169.254", "port": 80}}
    ),
    "an init container": lambda pod, container: pod.update(initContainers=[{"name": "i", "image": "i"}]),
}
BETTER: Mapping[str, Callable[[Object, Object], Any]] = {
    "NET_BIND_SERVICE": lambda pod, container: container["securityContext"]["capabilities"].update(
        add=["NET_BIND_SERVICE"]
    ),
    "a secret": lambda pod, container: pod["volumes"].append({"name": "s", "secret": {"secretName": "s"}}),
    "another account": lambda pod, container: pod.update(serviceAccountName="default"),
}


def changed(changes: Mapping[str, Callable[[Object, Object], Any]]) -> Iterator[tuple[str, Object]]:
    [job] = accepted.jobs(1)
    for name, change in changes.items():
        template = plain(job)
        change(template["spec"], template["spec"]["containers"][0])
        yield name, template


def test_server_and_function_refuse_the_same(guarded: tuple[Api, str]) -> None:
    said = {name: (bool(refusal(guarded, t)), bool(restricted.breaches(t))) for name, t in changed(WORSE)}
    assert {name: verdicts for name, verdicts in said.items() if verdicts != (True, True)} == {}


def test_server_and_function_admit_the_same(guarded: tuple[Api, str]) -> None:
    said = {name: (bool(refusal(guarded, t)), bool(restricted.breaches(t))) for name, t in changed(BETTER)}
    assert {name: verdicts for name, verdicts in said.items() if verdicts != (False, False)} == {}


def test_a_pod_that_cannot_be_made_at_all_is_no_answer(guarded: tuple[Api, str]) -> None:
    [job] = accepted.jobs(1)
    template = plain(job)
    template["spec"]["containers"] = []
    with pytest.raises(ApiError):
        refusal(guarded, template)
