"""The CRD, written from the models: `python -m finetune_api.crd` writes crds/ and docs/api.md, `--check` compares.

It must never hold a constraint of its own: those are in the models.
"""

import argparse
import difflib
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from finetune_api import reference, structural, types
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


def crd() -> JsonObject:
    """The CustomResourceDefinition of FineTuneRun."""
    names = {
        "kind": types.KIND,
        "listKind": f"{types.KIND}List",
        "plural": types.PLURAL,
        "singular": types.KIND.lower(),
        "shortNames": ["ftr"],
        "categories": ["ml"],
    }
    version = {
        "name": types.VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": list(COLUMNS),
        "selectableFields": [{"jsonPath": path} for path in SELECTABLE],
        "schema": {"openAPIV3Schema": structural.explained(schema())},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{types.PLURAL}.{types.GROUP}"},
        "spec": {"group": types.GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def schema() -> JsonObject:
    """The structural schema of a FineTuneRun."""
    root = structural.schema_of(types.FineTuneRun)
    properties = root["properties"]
    for key in ("apiVersion", "kind"):
        properties[key] = {"type": "string"}
    properties["metadata"] = {"type": "object"}
    # The status has no defaults but the one that tells Helm, Flux and Argo CD to wait for the operator's first look.
    properties["status"] = structural.without_defaults(properties["status"]) | {"default": {"observedGeneration": -1}}
    return root | {"required": ["spec"]}


class _Dumper(yaml.SafeDumper):
    """YAML as a person would write it: text of several lines as a block."""

    def block_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.block_text)


def crd_yaml() -> str:
    """What is written to crds/."""
    body = yaml.dump(crd(), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
    return f"# Written by `make generate` from operator/finetune_api; change the models, not this file.\n{body}"


OUTPUTS: Mapping[str, Callable[[], str]] = {
    f"crds/{types.GROUP}_{types.PLURAL}.yaml": crd_yaml,
    "docs/api.md": lambda: reference.markdown(crd(), schema()),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with --check say whether they are up to date. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m finetune_api.crd", description="Write the CRD and its reference.")
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
