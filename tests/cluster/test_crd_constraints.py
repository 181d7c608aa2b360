"""Every constraint of the CRD on the real API server: one manifest that it takes, one that it refuses with a sentence.

The sentence names the field and says what would be right. And the models agree: they read what the API server takes,
with the same defaults, and refuse what it refuses.
"""

import uuid
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from finetune_api import crd as generated
from finetune_api.types import FineTuneRun
from tests import builders, constraints
from tests.cluster import proxy
from tests.cluster.conftest import Kubectl
from tests.constraint_rows import SPEC

pytestmark = pytest.mark.cluster

SCHEMA = generated.schema()
CASES = list(constraints.cases(SCHEMA))
EACH = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])


@pytest.fixture(scope="module")
def api(kubectl: Kubectl, crd: str) -> Iterator[proxy.Proxy]:
    with proxy.start(kubectl.binary, kubeconfig=kubectl.kubeconfig) as started:
        yield started


@pytest.fixture(scope="module")
def runs(kubectl: Kubectl, api: proxy.Proxy) -> Iterator[str]:
    """The path of the runs in a namespace that has one, `constraints`, whose status is tried."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    kubectl("create", "namespace", name)
    path = f"/apis/finetune.dev/v1alpha1/namespaces/{name}/finetuneruns"
    assert api.request("POST", path, builders.run("constraints", namespace=name)).is_success
    yield path
    kubectl("delete", "namespace", name, "--wait=false")


def attempt(api: proxy.Proxy, runs: str, case: constraints.Case, *, body: constraints.Object) -> proxy.Answer:
    """Create a run with that spec, or give the one that is there that status; nothing is stored."""
    if case.is_status:
        return api.tried("PATCH", f"{runs}/constraints/status", {"status": body["status"]})
    return tried(api, runs, builders.merged(body, {"metadata": {"name": "other"}, "status": None}))


def tried(api: proxy.Proxy, runs: str, manifest: constraints.Object) -> proxy.Answer:
    """Create it in the namespace of `runs`; nothing is stored."""
    return api.tried("POST", runs, builders.merged(manifest, {"metadata": {"namespace": None}}))


@EACH
def test_taken(api: proxy.Proxy, runs: str, case: constraints.Case) -> None:
    answer = attempt(api, runs, case, body=case.accepted)
    assert answer.is_success, answer.message
    kept, written = FineTuneRun.parse(answer.body), FineTuneRun.parse(case.accepted)
    assert (kept.status == written.status) if case.is_status else (kept.spec == written.spec)


@EACH
def test_refused(api: proxy.Proxy, runs: str, case: constraints.Case) -> None:
    answer = attempt(api, runs, case, body=case.rejected)
    assert answer.code == 422, answer
    for word in case.words:
        assert word in answer.message
    with pytest.raises(ValidationError):
        FineTuneRun.parse(case.rejected)


def test_a_format_is_refused_in_one_line(api: proxy.Proxy, runs: str) -> None:
    answer = tried(api, runs, builders.run("x", training={"maxDuration": "3 epochs"}))
    assert answer.message == (
        'FineTuneRun.finetune.dev "x" is invalid: spec.training.maxDuration: Invalid value: "3 epochs": '
        "must be a whole number followed by ep (epochs), ba (batches) or tok (tokens), e.g. 3ep"
    )


@pytest.mark.parametrize("name", ["a" * 63, "support-bot", "0"])
def test_names_that_fit_a_label_are_taken(api: proxy.Proxy, runs: str, name: str) -> None:
    answer = tried(api, runs, builders.run(name))
    assert answer.is_success, answer.message
    FineTuneRun.parse(answer.body)


@pytest.mark.parametrize("name", ["a" * 64, "support.bot"])
def test_names_that_fit_no_label_are_refused(api: proxy.Proxy, runs: str, name: str) -> None:
    answer = tried(api, runs, builders.run(name))
    assert "metadata.name must be a DNS label of at most 63 characters, e.g. support-bot" in answer.message
    with pytest.raises(ValidationError):
        FineTuneRun.parse(builders.run(name))


@pytest.mark.parametrize("path", ["spec", "spec.training", "spec.training.batchSize", "spec.resources.tolerations[]"])
def test_an_unknown_field_is_refused_by_name(api: proxy.Proxy, runs: str, path: str) -> None:
    body = constraints.manifest(f"{path}.colour", "blue")
    answer = tried(api, runs, builders.merged(body, {"status": None}))
    assert answer.code == 400
    assert f'unknown field "{path.replace("[]", "[0]")}.colour"' in answer.message
    with pytest.raises(ValidationError):
        FineTuneRun.parse(body)


def test_python_names_are_unknown_fields(api: proxy.Proxy, runs: str) -> None:
    body = builders.run("x", training={"max_duration": "1ep"})
    assert 'unknown field "spec.training.max_duration"' in tried(api, runs, body).message
    with pytest.raises(ValidationError):
        FineTuneRun.parse(body)


def test_every_field_has_a_value_in_the_full_manifest() -> None:
    for path, _ in constraints.fields(SCHEMA["properties"]["spec"], path="spec"):
        constraints.value_at(constraints.manifest(path), path)
    assert set(SPEC) == set(SCHEMA["properties"]["spec"]["properties"])
