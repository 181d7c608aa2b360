"""S4: what examples/operator-rbac.yaml grants is what the operator asks for, no right more and none less.

Read from the API server's audit log, of an operator that lives through a run's whole life, its refusals, pauses and
losses included: each verb on each resource that is granted is used, and nothing was asked for that was refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_operator import kueue
from tests.cluster import operatorprocess
from tests.cluster.audit import AuditLog
from tests.cluster.operatorprocess import RBAC, USER, OperatorProcess
from tests.cluster.stage import QUICK, Stage, condition, until

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

Right = tuple[str, str, str]
"""API group, resource with its subresource, verb."""
LONG = {"steps": 3000, "step_seconds": 0.1, "checkpoint_every": 5}
NEVER_READ = frozenset({"secrets", "configmaps", "serviceaccounts", "nodes", "namespaces"})


def granted() -> set[Right]:
    """All that the example's roles allow."""
    roles = [body for body in yaml.safe_load_all(RBAC.read_text()) if body["kind"] in ("Role", "ClusterRole")]
    rules = itertools.chain.from_iterable(role["rules"] for role in roles)
    return {right for rule in rules for right in itertools.product(rule["apiGroups"], rule["resources"], rule["verbs"])}


def used(records: Iterable[Mapping[str, Any]]) -> set[Right]:
    """All that somebody asked for."""
    return {_right(record["objectRef"], record["verb"]) for record in records if "resource" in record["objectRef"]}


def _right(asked: Mapping[str, str], verb: str) -> Right:
    parts = (asked["resource"], asked.get("subresource", ""))
    return asked.get("apiGroup", ""), "/".join(part for part in parts if part), verb


@pytest.fixture
def leader(operator_account: Path, tmp_path: Path, namespace: str) -> Iterator[OperatorProcess]:
    """An operator that holds its lease, as in production."""
    settings = {**QUICK, "lease_seconds": 6}
    with operatorprocess.running(operator_account, folder=tmp_path, namespaces=[namespace], **settings) as running:
        yield running


def test_nothing_is_granted_that_could_become_more() -> None:
    for group, resource, verb in granted():
        assert "*" not in (group, resource, verb)
        assert resource.partition("/")[0] not in NEVER_READ
        assert group not in ("rbac.authorization.k8s.io", "admissionregistration.k8s.io", "apiextensions.k8s.io")
        assert verb not in ("escalate", "bind", "impersonate", "deletecollection")
        assert (resource, verb) not in {("pods", "create"), ("pods/exec", "create"), ("finetuneruns", "create")}


def test_granted_is_used_and_nothing_else_is_asked_for(
    stage: Stage, leader: OperatorProcess, audit_log: AuditLog
) -> None:
    mark = audit_log.mark()
    until(lambda: leader.says("/readyz"), lambda said: said == "ok", what="readiness")
    _whole_life(stage)
    _what_is_there_already(stage)
    _several_nodes_paused_and_resumed(stage)
    _pods_without_their_job(stage)
    _a_volume_that_never_comes(stage)
    _a_queue(stage)

    def records() -> list[Mapping[str, Any]]:
        found = (record for record in audit_log.since(mark) if record["user"]["username"] == USER)
        return [record for record in found if "objectRef" in record]

    asked = until(lambda: used(records()), lambda found: granted() <= found, what="rights in use", seconds=30)
    assert asked - granted() == set()
    assert [record for record in records() if record["responseStatus"]["code"] == 403] == []
    touched = {record["objectRef"].get("namespace", "") for record in records()}
    assert touched <= {"", stage.namespace, operatorprocess.NAMESPACE}, "no other namespace, whatever a run says"


def _whole_life(stage: Stage) -> None:
    stage.submit("brief", ttlSecondsAfterFinished=1)
    until(lambda: stage.gone(f"{stage.runs}/brief"), bool, what="the run being gone")


def _what_is_there_already(stage: Stage) -> None:
    """A Job of somebody else's and a claim of the user's are looked at by their names."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "other", "image": "other"}]}
    job = {"metadata": {"name": "taken-1"}, "spec": {"suspend": True, "template": {"spec": pod}}}
    stage.api.request("POST", f"/apis/batch/v1/namespaces/{stage.namespace}/jobs", body=job)
    stage.submit("taken", storage={"claimName": "mine"})
    stage.until("taken", lambda status: condition(status, "Admitted").get("reason") == "NameTaken")
    stage.change("taken", cancel=True)


def _several_nodes_paused_and_resumed(stage: Stage) -> None:
    """The second attempt finds the Service of the first."""
    storage = {"claimTemplate": {"accessMode": "ReadWriteMany"}}
    stage.submit("two", script=LONG, resources={"nodes": 2}, storage=storage)
    until(lambda: stage.attempts("two"), lambda jobs: "two-1" in jobs, what="Jobs")
    stage.change("two", suspend=True)
    stage.reaches("two", "Suspended")
    stage.change("two", suspend=False)
    until(lambda: stage.attempts("two"), lambda jobs: "two-2" in jobs, what="Jobs")
    stage.change("two", cancel=True)
    stage.reaches("two", "Canceled")


def _pods_without_their_job(stage: Stage) -> None:
    stage.submit("orphaned", script=LONG)
    stage.reaches("orphaned", "Running")
    path = f"/apis/batch/v1/namespaces/{stage.namespace}/jobs/orphaned-1"
    stage.api.request("DELETE", path, propagationPolicy="Orphan")
    stage.change("orphaned", cancel=True)
    stage.reaches("orphaned", "Canceled")


def _a_volume_that_never_comes(stage: Stage) -> None:
    """What other controllers say of it is in their Events."""
    stage.submit("waiting", storage={"claimTemplate": {"storageClassName": "not-there"}})
    stage.until("waiting", lambda status: "not-there" in status.get("queue", {}).get("message", ""))
    stage.change("waiting", cancel=True)
    stage.reaches("waiting", "Canceled")


def _a_queue(stage: Stage) -> None:
    """There is no Kueue here, which is an answer too."""
    stage.submit("queued", queue={"name": "team-a"})
    stage.until("queued", lambda status: condition(status, "Admitted").get("reason") == kueue.NOT_INSTALLED)
    stage.change("queued", cancel=True)
    stage.reaches("queued", "Canceled", "Failed")
