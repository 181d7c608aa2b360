"""S1, S9: whatever is written into any string field of a run, nothing of another namespace is named, no folder above.

Every string of the CRD's own schema is tried, values and keys alike, so that a new field is tried once it is there.
A value is refused, or what is built from it names nothing but plain names of the run's namespace.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from finetune_api import crd
from finetune_api.spec import FineTuneRunSpec
from finetune_api.uris import Scheme, Uri
from finetune_operator import manifests
from finetune_operator.run import Run
from finetune_operator.settings import Settings
from tests import constraints, worlds
from tests.security import inside, payloads

SCHEMA = crd.schema()["properties"]["spec"]
NAMESPACE = "ml"


def strings() -> list[str]:
    """Every field that holds text, `{}` for a map's values and `{key}` for its keys."""
    found = []
    for path, node in constraints.fields(SCHEMA, path="spec"):
        if node.get("type") == "string" or node.get("x-kubernetes-int-or-string"):
            found.append(path)
        if "additionalProperties" in node:
            found.append(f"{path}{{key}}")
    return found


def spec_with(path: str, text: str) -> dict[str, Any]:
    """A whole spec with that text in that place."""
    if not path.endswith("{key}"):
        found: dict[str, Any] = constraints.manifest(path, text)["spec"]
        return found
    container = path.removesuffix("{key}")
    values = constraints.value_at(constraints.manifest(container), container)
    return dict(constraints.manifest(container, {text: next(iter(values.values()), "x")})["spec"])


PLACES = ("spec.model.uri", "spec.dataset.train.uri", "spec.dataset.eval.uri", "spec.storage.uploadUri")
"""Fields that hold a URI: there the whole corpus is tried."""


def built(spec: dict[str, Any], *, nodes: Sequence[int] = (1, 2)) -> Iterator[dict[str, Any]]:
    """Every object that the operator would make of it; with two nodes there is a Service too."""
    for count in nodes:
        changed = copy.deepcopy(spec)
        changed.setdefault("resources", {})["nodes"] = count
        run = Run.parse(worlds.body() | {"spec": changed})
        assert run.spec is not None, "the API takes it"
        place = None if run.spec.model is None else Uri.parse(run.spec.model.uri)
        if place is not None and place.scheme == Scheme.RUN:
            continue  # resolved by name in the same namespace: test_sources.py
        if run.spec.storage.claim_name is None:
            yield manifests.claim(run)
        yield manifests.job(run, attempt=1, settings=Settings())
        if (service := manifests.service(run)) is not None:
            yield service


def accepted(path: str) -> tuple[list[str], int]:
    """Which payloads the API takes there, and how many it refuses."""
    taken, refused = [], 0
    for text in payloads.everything() if path in PLACES else payloads.short():
        try:
            FineTuneRunSpec.parse(spec_with(path, text))
        except (ValidationError, UnicodeEncodeError):
            refused += 1
        else:
            taken.append(text)
    return taken, refused


def test_the_schema_has_strings() -> None:
    found = strings()
    assert len(found) > 50
    assert {"spec.model.uri", "spec.storage.subPath", "spec.trainer.env{key}", "spec.queue.name"} <= set(found)


@pytest.mark.parametrize("path", strings())
def test_no_text_in_a_field_names_what_is_elsewhere(path: str) -> None:
    taken, _ = accepted(path)
    for number, text in enumerate(taken):
        for manifest in built(spec_with(path, text), nodes=(1,) if number % 10 else (1, 2)):
            assert inside.escapes(manifest, namespace=NAMESPACE) == [], (path, text)


REFERENCES = (
    "spec.storage.claimName",
    "spec.model.credentials.secretName",
    "spec.dataset.credentials.secretName",
    "spec.storage.credentials.secretName",
    "spec.trainer.imagePullSecrets[].name",
    "spec.storage.claimTemplate.storageClassName",
    "spec.resources.priorityClassName",
    "spec.profile",
    "spec.queue.name",
)


@pytest.mark.parametrize("path", REFERENCES)
def test_a_field_that_names_an_object_takes_nothing_but_a_name(path: str) -> None:
    taken, _ = accepted(path)
    assert set(taken) <= {"other.keys"}, "which is one name, with a dot in it"


@pytest.mark.parametrize("path", PLACES)
def test_a_place_that_is_taken_stays_below_its_name(path: str) -> None:
    taken, refused = accepted(path)
    assert refused > 500, "the corpus is tried"
    for text in taken:
        place = Uri.parse(text)
        assert not any(part.startswith(".") or not part for part in place.path.split("/") if place.path), text
        assert not set(place.name + place.path) & set("\\%\x00\n\r"), text


def test_what_leads_out_is_told() -> None:
    spec = constraints.manifest()["spec"]
    job = next(each for each in built(spec) if each["kind"] == "Job")
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    secret = next(entry["valueFrom"]["secretKeyRef"] for entry in container["env"] if "valueFrom" in entry)
    changes: Sequence[tuple[Callable[[], object], str]] = (
        (lambda: secret.update(name="other/keys"), "secretKeyRef names 'other/keys'"),
        (lambda: secret.update(namespace="other"), "namespace is 'other'"),
        (lambda: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}), "volume host is a hostPath"),
        (lambda: pod.update(hostNetwork=True), "the pod has hostNetwork"),
        (lambda: pod.update(serviceAccountName="admin"), "the pod has serviceAccountName"),
        (lambda: container["volumeMounts"][0].update(subPath="../x"), "subPath '../x'"),
        (lambda: job["metadata"].update(namespace="kube-system"), "namespace is 'kube-system'"),
    )
    for change, told in changes:
        change()
        assert any(told in said for said in inside.escapes(job, namespace=NAMESPACE)), told
