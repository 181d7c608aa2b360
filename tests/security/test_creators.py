"""S2: whoever has the operator create something has to have the right to create it: examples/creator-rights.yaml.

Asked of the real API server by accounts with rights of their own: what is refused, what is said of it, and what isn't
asked at all. The API server learns of rights and policies a moment after they are stored, and so each answer is waited
for.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from tests.chart.generate import CREATORS
from tests.cluster.conftest import Kubectl, fresh_namespace
from tests.cluster.controlplane import ControlPlane
from tests.cluster.rest import Api, ApiError
from tests.cluster.stage import Stage, manifest, until

pytestmark = pytest.mark.cluster

RUNS, JOBS, CLAIMS, SERVICES = "finetuneruns.finetune.dev", "jobs.batch", "persistentvolumeclaims", "services"
TWO_NODES: Mapping[str, Any] = {
    "resources": {"nodes": 2},
    "storage": {"claimTemplate": {"accessMode": "ReadWriteMany"}},
}
ITS_OWN: Mapping[str, Any] = {"storage": {"claimName": "mine"}}

Hire = Callable[..., Stage]


@pytest.fixture(name="stage")
def stage_without_a_node(control_plane: ControlPlane, namespace: str) -> Stage:
    """The test's own namespace, with every right."""
    return Stage(control_plane.api(), namespace)


@pytest.fixture
def hire(kubectl: Kubectl, control_plane: ControlPlane, namespace: str) -> Hire:
    """Makes accounts that may do everything with runs, create these resources, and have this role of the cluster's."""
    where = ("-n", namespace)

    def make(*resources: str, role: str = "") -> Stage:
        name = f"user-{uuid.uuid4().hex[:8]}"
        kubectl("create", "serviceaccount", name, *where)
        kubectl("create", "role", f"{name}-runs", "--verb=*", f"--resource={RUNS}", *where)
        granted = [f"--role={name}-runs"]
        if resources:
            kubectl("create", "role", f"{name}-more", "--verb=create", *(f"--resource={r}" for r in resources), *where)
            granted.append(f"--role={name}-more")
        if role:
            granted.append(f"--clusterrole={role}")
        for number, right in enumerate(granted):
            binding = f"{name}-{number}"
            kubectl("create", "rolebinding", binding, right, f"--serviceaccount={namespace}:{name}", *where)
        return Stage(Api.from_kubeconfig(control_plane.service_account_kubeconfig(namespace, name)), namespace)

    return make


@pytest.fixture(scope="module", autouse=True)
def policy(kubectl: Kubectl, crd: str) -> Iterator[None]:
    """For as long as the tests of this file run: the control plane is all tests'."""
    kubectl("apply", "-f", str(CREATORS))
    yield
    kubectl("delete", "-f", str(CREATORS))


def refusal(ask: Callable[[], object]) -> str:
    """What the user is told; empty if it is done."""
    try:
        ask()
    except ApiError as error:
        if error.code == 403:
            return str(error)
        raise
    return ""


def tries(user: Stage, **spec: Any) -> str:
    """What the user is told of such a run, which isn't stored."""
    return refusal(lambda: user.api.request("POST", user.runs, body=manifest("tried", **spec), dryRun="All"))


def is_told(ask: Callable[[], str], said: str) -> str:
    """Once the answer is this one."""
    found: str = until(ask, lambda found: said in found if said else found == "", what=said or "consent", seconds=15)
    return found


CASES: Mapping[str, tuple[Sequence[str], Mapping[str, Any], str]] = {
    "runs alone": ((), {}, "may not create jobs (API group batch) in namespace"),
    "runs alone, for a run with a claim of its own": ((), ITS_OWN, "may not create jobs"),
    "all but Jobs": ((CLAIMS, SERVICES, "pods", "secrets"), TWO_NODES, "may not create jobs"),
    "Jobs": ((JOBS,), {}, "name one that exists in spec.storage.claimName"),
    "Jobs, for a run that says which claim": ((JOBS,), {"storage": {"claimTemplate": {"size": "1Gi"}}}, CLAIMS),
    "Jobs, for a run with a claim of its own": ((JOBS,), ITS_OWN, ""),
    "Jobs and claims": ((JOBS, CLAIMS), {}, ""),
    "Jobs and claims, on several nodes": ((JOBS, CLAIMS), TWO_NODES, "use one node (spec.resources.nodes)"),
    "Jobs, claims and Services, on several nodes": ((JOBS, CLAIMS, SERVICES), TWO_NODES, ""),
}


def test_a_run_is_let_in_by_what_its_creator_may_create(hire: Hire, namespace: str) -> None:
    users = {resources: hire(*resources) for resources in {resources for resources, _, _ in CASES.values()}}
    for resources, spec, said in CASES.values():
        found = is_told(lambda user=users[resources], spec=spec: tries(user, **spec), said)  # type: ignore[misc]
        if said:
            assert f"system:serviceaccount:{namespace}:user-" in found, "whose right is missing"
            assert "which the role edit has" in found, "what to do about it"


@pytest.mark.parametrize("role", ["edit", "admin"])
def test_the_clusters_own_roles_for_users_have_it_all(role: str, hire: Hire) -> None:
    without, user = hire(), hire(role=role)
    is_told(lambda: tries(without, **TWO_NODES), "may not create jobs")
    is_told(lambda: tries(user, **TWO_NODES), "")


def test_rights_in_another_namespace_do_not_count(hire: Hire, kubectl: Kubectl, namespace: str) -> None:
    user = hire()
    account = kubectl("get", "serviceaccounts", "-n", namespace, "-o", "name")
    (name,) = [line.partition("/")[2] for line in account.split() if "user-" in line]
    with fresh_namespace(kubectl) as other:
        kubectl(
            "create", "rolebinding", "edit", "--clusterrole=edit", f"--serviceaccount={namespace}:{name}", "-n", other
        )
        jobs = f"/apis/batch/v1/namespaces/{other}/jobs"
        pod = {"restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}
        body = {"metadata": {"name": "mine"}, "spec": {"template": {"spec": pod}}}
        is_told(lambda: refusal(lambda: user.api.request("POST", jobs, body=body, dryRun="All")), "")
        is_told(lambda: tries(user), f"in namespace {namespace},")


def test_whoever_starts_a_paused_run_again_needs_the_rights_and_who_stops_it_does_not(stage: Stage, hire: Hire) -> None:
    stage.submit("paused", suspend=True)
    without, able = hire(), hire(JOBS, CLAIMS)
    is_told(lambda: refusal(lambda: without.change("paused", suspend=False)), "may not create jobs")
    assert stage.run("paused")["spec"]["suspend"] is True
    assert refusal(lambda: without.change("paused", queue={"priority": 3})) == ""
    is_told(lambda: refusal(lambda: able.change("paused", suspend=False)), "")
    assert refusal(lambda: without.change("paused", activeDeadlineSeconds=600)) == "", "it isn't paused, nor was it"
    assert refusal(lambda: without.change("paused", suspend=True)) == ""
    assert refusal(lambda: without.change("paused", cancel=True)) == ""
    assert refusal(lambda: without.delete("paused")) == ""
