"""The CRDs, written from the models: `python -m finetune_api.crd` writes crds/ and the reference, `--check` compares.

It must never hold a constraint of its own: those are in the models.
"""

import argparse
import difflib
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from finetune_api import reference, structural, types
from finetune_api.fields import ApiModel
from finetune_api.structural import JsonObject

COLUMNS: tuple[JsonObject, ...] = (
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Model", "type": "string", "jsonPath": ".spec.model.uri"},
    {"name": "Progress", "type": "string", "jsonPath": ".status.progress.done"},
    {"name": "ETA", "type": "string", "jsonPath": ".status.progress.eta"},
    {"name": "Loss", "type": "string", "jsonPath": ".status.progress.loss"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    {"name": "Attempt", "type": "integer", "jsonPath": ".status.attempt", "priority": 1},
    {"name": "Tokens/s", "type": "string", "jsonPath": ".status.progress.tokensPerSecondPerDevice", "priority": 1},
    {"name": "Last step", "type": "date", "jsonPath": ".status.progress.lastStepTime", "priority": 1},
    {"name": "Checkpoint", "type": "string", "jsonPath": ".status.checkpoints[-1:].name", "priority": 1},
    {"name": "Queue", "type": "integer", "jsonPath": ".status.queue.position", "priority": 1},
)
SELECTABLE = (".status.phase", ".spec.model.uri", ".spec.queue.name")
"""What `kubectl get ftr --field-selector` takes."""


@dataclass(frozen=True, kw_only=True)
class Resource:
    """One kind, as the API server is told of it."""

    model: type[ApiModel]
    kind: str
    plural: str
    short: str
    scope: str
    columns: Sequence[JsonObject]
    selectable: Sequence[str] = ()
    has_status: bool = False
    left_open: Sequence[str] = ()
    """Objects whose fields the API server must not fill in: what is left out in them may come from a profile."""


RUN = Resource(
    model=types.FineTuneRun,
    kind=types.KIND,
    plural=types.PLURAL,
    short="ftr",
    scope="Namespaced",
    columns=COLUMNS,
    selectable=SELECTABLE,
    has_status=True,
    left_open=(
        "spec.method",
        "spec.training",
        "spec.checkpoint",
        "spec.recovery",
        "spec.resources",
        "spec.storage.claimTemplate",
    ),
)
PROFILE = Resource(
    model=types.ClusterFineTuneProfile,
    kind=types.PROFILE_KIND,
    plural=types.PROFILE_PLURAL,
    short="cftp",
    scope="Cluster",
    columns=(
        {"name": "Device", "type": "string", "jsonPath": ".spec.device"},
        {"name": "Per node", "type": "string", "jsonPath": ".spec.limits.devicesPerNode"},
        {"name": "Nodes", "type": "integer", "jsonPath": ".spec.limits.nodes"},
        {"name": "Memory", "type": "string", "jsonPath": ".spec.limits.memory"},
        {"name": "Precision", "type": "string", "jsonPath": ".spec.defaults.training.precision"},
        {"name": "Description", "type": "string", "jsonPath": ".spec.description"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        {"name": "Resource", "type": "string", "jsonPath": ".spec.deviceResource", "priority": 1},
        {"name": "Devices", "type": "integer", "jsonPath": ".spec.limits.devices", "priority": 1},
        {"name": "CPU", "type": "string", "jsonPath": ".spec.limits.cpu", "priority": 1},
        {"name": "Default", "type": "boolean", "jsonPath": ".spec.isDefault", "priority": 1},
    ),
    left_open=("spec.defaults",),
)


def crd(of: Resource = RUN) -> JsonObject:
    """The CustomResourceDefinition of a kind."""
    names = {
        "kind": of.kind,
        "listKind": f"{of.kind}List",
        "plural": of.plural,
        "singular": of.kind.lower(),
        "shortNames": [of.short],
        "categories": ["ml"],
    }
    fields = structural.explained(schema(of))
    for path in of.left_open:
        fields = structural.left_open(fields, path.split("."))
    version = {
        "name": types.VERSION,
        "served": True,
        "storage": True,
        **({"subresources": {"status": {}}} if of.has_status else {}),
        "additionalPrinterColumns": list(of.columns),
        **({"selectableFields": [{"jsonPath": path} for path in of.selectable]} if of.selectable else {}),
        "schema": {"openAPIV3Schema": fields},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{of.plural}.{types.GROUP}"},
        "spec": {"group": types.GROUP, "scope": of.scope, "names": names, "versions": [version]},
    }


def schema(of: Resource = RUN) -> JsonObject:
    """The structural schema of a kind, with every default, also those that the API server leaves to the operator."""
    root = structural.schema_of(of.model)
    properties = root["properties"]
    for key in ("apiVersion", "kind"):
        properties[key] = {"type": "string"}
    properties["metadata"] = {"type": "object"}
    if of.has_status:
        # It has no defaults but the one that tells Helm, Flux and Argo CD to wait for the operator's first look.
        properties["status"] = structural.without_defaults(properties["status"]) | {
            "default": {"observedGeneration": -1}
        }
    return root | {"required": ["spec"]}


class _Dumper(yaml.SafeDumper):
    """YAML as a person would write it: text of several lines as a block."""

    def block_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.block_text)


def crd_yaml(of: Resource = RUN) -> str:
    """What is written to crds/."""
    body = yaml.dump(crd(of), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
    return f"# Written by `make generate` from operator/finetune_api; change the models, not this file.\n{body}"


def _reference(of: Resource) -> str:
    return reference.markdown(crd(of), schema(of))


OUTPUTS: Mapping[str, Callable[[], str]] = {
    f"crds/{types.GROUP}_{types.PLURAL}.yaml": crd_yaml,
    f"crds/{types.GROUP}_{types.PROFILE_PLURAL}.yaml": partial(crd_yaml, PROFILE),
    "docs/api.md": partial(_reference, RUN),
    "docs/api-profiles.md": partial(_reference, PROFILE),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with --check say whether they are up to date. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m finetune_api.crd", description="Write the CRDs and their pages.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file isn't up to date")
    parser.add_argument("--root", type=Path, default=Path(), help="folder of crds/ and docs/ (default: here)")
    options = parser.parse_args(arguments)
    act = _is_current if options.check else _write
    done = [act(options.root / name, write()) for name, write in OUTPUTS.items()]
    return 0 if all(done) else 1


def _write(path: Path, text: str) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(f"wrote {path}")
    return True


def _is_current(path: Path, text: str) -> bool:
    there = path.read_text() if path.exists() else ""
    if there == text:
        return True
    print(f"{path} is not what the models say; run `make generate`", file=sys.stderr)
    difference = difflib.unified_diff(there.splitlines(), text.splitlines(), "there", "models", n=1, lineterm="")
    print("\n".join(itertools.islice(difference, 30)), file=sys.stderr)
    return False


if __name__ == "__main__":
    sys.exit(main())
