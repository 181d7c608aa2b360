"""The kinds of Flux and Argo CD: installed for as long as a block lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.cluster.rest import Api
from tests.cluster.stage import until

ROOT = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@contextlib.contextmanager
def served(api: Api, crds: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Each of them, until the API server serves it and says so."""
    names = [crd["metadata"]["name"] for crd in crds]
    try:
        for crd in crds:
            api.request("POST", ROOT, body=crd)
        for crd in crds:
            until(lambda crd=crd: _listed(api, crd), bool, what=crd["metadata"]["name"])  # type: ignore[misc]
        yield
    finally:
        for name in names:
            if api.ok(f"{ROOT}/{name}"):
                api.request("DELETE", f"{ROOT}/{name}")


def _listed(api: Api, crd: Mapping[str, Any]) -> bool:
    spec = crd["spec"]
    paths = [f"/apis/{spec['group']}/{version['name']}" for version in spec["versions"] if version["served"]]
    if not all(api.ok(path) for path in paths):
        return False
    plural = spec["names"]["plural"]
    found = [{kind["name"] for kind in api.request("GET", path)["resources"]} for path in paths]
    return all(plural in names for names in found) and all(api.ok(f"{path}/{plural}") for path in paths)
