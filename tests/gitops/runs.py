"""What a team keeps in Git: the folder of runs of the example, or others with the stub trainer; and the data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.stage import Stage, manifest, until

ROOT = Path(__file__).resolve().parents[2]
GITOPS = ROOT / "examples" / "gitops"
FOLDER = "examples/gitops/base"
EXAMPLE = "support-bot-1"


def tree(folder: Path) -> dict[str, str]:
    """The files of a folder of the checkout."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def example() -> dict[str, str]:
    """The example's files."""
    return tree(GITOPS / "base")


def folder(**runs: Mapping[str, Any]) -> dict[str, str]:
    """A folder in the example's place with these runs, each given by fields of its spec."""
    files = {f"{FOLDER}/{name}.yaml": yaml.safe_dump(manifest(name, **spec)) for name, spec in runs.items()}
    names = [Path(path).name for path in files]
    return {f"{FOLDER}/kustomization.yaml": yaml.safe_dump({"resources": names}), **files}


def script(stage: Stage, name: str, **fields: Any) -> None:
    """What the stub trainer does for a run."""
    stage.keep(f"{name}-script", {"script.json": json.dumps(fields)})


def datasets(stage: Stage, **fields: Any) -> None:
    """The claim that the example trains on; its file says what the stub trainer does."""
    path = f"/api/v1/namespaces/{stage.namespace}/persistentvolumeclaims"
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    stage.api.request("POST", path, body={"metadata": {"name": "datasets"}, "spec": spec})
    claim = until(
        lambda: stage.api.request("GET", f"{path}/datasets"),
        lambda claim: claim["status"].get("phase") == "Bound",
        what="the claim",
    )
    volume = stage.api.request("GET", f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
    file = Path((volume["spec"].get("hostPath") or volume["spec"]["local"])["path"]) / "support" / "train.jsonl"
    file.parent.mkdir()
    file.write_text(json.dumps(fields))


def applied(stage: Stage, *names: str) -> None:
    """Once these runs are there."""
    for name in names:
        until(lambda name=name: stage.api.ok(f"{stage.runs}/{name}"), bool, what=name)  # type: ignore[misc]
