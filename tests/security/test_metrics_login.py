"""S20: the operator's metrics are told to those alone whom the real API server knows and who may get /metrics.

A real Prometheus reads them with its account's token, by HTTPS; everybody else is refused in one line that names no
run. The operator has the rights of the examples and no others.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from tests.cluster import operatorprocess
from tests.cluster.audit import AuditLog
from tests.cluster.conftest import Kubectl
from tests.cluster.controlplane import ControlPlane
from tests.cluster.operatorprocess import ROOT, USER, OperatorProcess
from tests.cluster.rest import Api
from tests.cluster.stage import QUICK, Stage, until
from tests.cluster.test_operator_metrics import query, scraping
from tests.prometheus import programs
from tests.security.test_rights import used

pytestmark = pytest.mark.cluster

EXAMPLE = ROOT / "examples" / "metrics-login.yaml"
READER = "finetune-operator-metrics-reader"
ASKING = {
    ("authentication.k8s.io", "tokenreviews", "create"),
    ("authorization.k8s.io", "subjectaccessreviews", "create"),
}


@dataclass(frozen=True)
class Closed:
    """An operator that asks who reads."""

    operator: OperatorProcess
    certificate: Path

    def answer(self, token: str | None) -> tuple[int, str]:
        """Code and body of a scrape."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"https://127.0.0.1:{self.operator.metrics_port}/metrics", headers=headers)
        trusts = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(self.certificate)))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), trusts)
        try:
            with opener.open(request, timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def closed(operator_account: Path, kubectl: Kubectl, tmp_path: Path, namespace: str) -> Iterator[Closed]:
    """One for the test's own namespace."""
    kubectl("apply", "-f", str(EXAMPLE))
    names = ("-subj", "/CN=operator", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2")
    files = ("-keyout", str(tmp_path / "tls.key"), "-out", str(tmp_path / "tls.crt"))
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    subprocess.run(["openssl", "req", "-x509", *key, *names, *files], check=True, capture_output=True)
    settings = {**QUICK, "metrics_authentication": True, "metrics_tls_folder": tmp_path}
    with operatorprocess.running(operator_account, folder=tmp_path, namespaces=[namespace], **settings) as running:
        until(running.healthy, bool, what="health")
        yield Closed(running, tmp_path / "tls.crt")
    kubectl("delete", "-f", str(EXAMPLE))


@pytest.fixture
def reader(kubectl: Kubectl, namespace: str, closed: Closed) -> Iterator[str]:
    """The account of a Prometheus, which may get /metrics."""
    kubectl("create", "serviceaccount", "prometheus", "-n", namespace)
    subject = f"--serviceaccount={namespace}:prometheus"
    kubectl("create", "clusterrolebinding", namespace, f"--clusterrole={READER}", subject)
    yield "prometheus"
    kubectl("delete", "clusterrolebinding", namespace)


Tokens = Callable[..., str]


@pytest.fixture
def token(control_plane: ControlPlane, namespace: str) -> Tokens:
    """Makes a token of an account of the namespace."""
    api = control_plane.api()

    def make(account: str, **spec: Any) -> str:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        found: str = api.request("POST", path, body={"spec": {"expirationSeconds": 600, **spec}})["status"]["token"]
        return found

    return make


def test_prometheus_reads_with_its_token_and_nobody_else_does(
    closed: Closed, reader: str, token: Tokens, stage: Stage, tmp_path: Path, audit_log: AuditLog
) -> None:
    mark = audit_log.mark()
    stage.submit("secret-project", script={"steps": 1000, "step_seconds": 0.1})
    stage.reaches("secret-project", "Running")
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text(token(reader))
    bad.write_text(token("default"))
    target = {"operator": f"127.0.0.1:{closed.operator.metrics_port}"}
    secure = {"scheme": "https", "tls_config": {"ca_file": str(closed.certificate)}}
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    binary = programs.prometheus()
    allowed = {**secure, "authorization": {"credentials_file": str(good)}}
    denied = {**secure, "authorization": {"credentials_file": str(bad)}}
    with scraping(binary, target, folder=folders[0], login=allowed) as server:
        until(lambda: query(server, 'finetune_run_info{run="secret-project"}'), bool, what="a run that is scraped")
        assert query(server, "finetune_operator_leader") != []
    with scraping(binary, target, folder=folders[1], login=denied) as server:
        until(lambda: query(server, "up"), bool, what="a scrape")
        assert [value for _, value in query(server, "up")] == [0]
        assert query(server, '{__name__=~"finetune_.+"}') == []
    for said in (closed.operator.says("/healthz"), closed.operator.says("/readyz")):
        assert said == "ok", "without a login, and without a name"
    log = closed.operator.log.read_text()
    assert good.read_text() not in log
    records = [r for r in audit_log.since(mark) if r["user"]["username"] == USER and "objectRef" in r]
    assert {right for right in used(records) if right[1] in ("tokenreviews", "subjectaccessreviews")} == ASKING
    assert [r["requestURI"] for r in records if r["responseStatus"]["code"] == 403] == []


def test_the_example_grants_what_is_asked_for_and_no_more() -> None:
    login, _, reads = yaml.safe_load_all(EXAMPLE.read_text())
    granted = {
        (g, r, v)
        for rule in login["rules"]
        for g in rule["apiGroups"]
        for r in rule["resources"]
        for v in rule["verbs"]
    }
    assert granted == ASKING
    assert reads["rules"] == [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]


def forged(token: str, *, key: Path, **claims: Any) -> str:
    """A token with other claims, and a signature that is right."""
    head, payload, _ = token.split(".")
    content = json.loads(base64.urlsafe_b64decode(payload + "=="))
    text = f"{head}.{_encoded(json.dumps(content | claims).encode())}"
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    r, s = utils.decode_dss_signature(private.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{text}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def test_each_wrong_token_is_refused_in_one_line(
    closed: Closed, reader: str, token: Tokens, control_plane: ControlPlane, kubectl: Kubectl, namespace: str
) -> None:
    good, key = token(reader), control_plane.layout.file("service-account.key")
    kubectl("create", "serviceaccount", "gone", "-n", namespace)
    gone = token("gone")
    kubectl("delete", "serviceaccount", "gone", "-n", namespace)
    now = int(time.time())
    wrong = {
        "none": None,
        "empty": "",
        "garbage": "garbage",
        "a signature that is none": good[:-8] + "AAAAAAAA",
        "for another audience": token(reader, audiences=["https://vault.example.com"]),
        "expired": forged(good, key=key, iat=now - 7200, nbf=now - 7200, exp=now - 3600),
        "of an account that is gone": gone,
        "of a user that there isn't": f"{namespace}:{reader}",
    }
    same = forged(good, key=key)
    until(lambda: closed.answer(same)[0], lambda code: code == 200, what="the right", seconds=15)
    for case, sent in wrong.items():
        code, text = until(lambda sent=sent: closed.answer(sent), lambda found: found[0] != 503, what=case)  # type: ignore[misc]
        assert code == 401, case
        assert text.count("\n") == 1, case
        assert "finetune_" not in text, case
    code, text = closed.answer(token("default"))
    assert code == 403
    assert text == f"system:serviceaccount:{namespace}:default has no right to get the non-resource URL /metrics\n"


def test_an_administrator_reads_without_more(closed: Closed, control_plane: ControlPlane) -> None:
    code, text = closed.answer(Api.from_kubeconfig(control_plane.kubeconfig).token)
    assert code == 200
    assert "finetune_operator_build_info" in text
