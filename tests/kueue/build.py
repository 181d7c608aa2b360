"""The real Kueue of the tests: its manager built once from the version that go.mod pins, and its CRDs and webhooks.

`python -m tests.kueue.build` (`make kueue`) builds it into the cache folder, named after go.mod and go.sum; that takes
minutes once. `found()` says where it is, and builds nothing. Standard library alone.
It must never write into the checkout, nor leave a half-built folder that looks whole.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from tests.gobuild import Build, build_all

MODULE = "sigs.k8s.io/kueue"
BUILD = Build(
    name="kueue",
    pins=Path(__file__).resolve().parent,
    programs={"kueue": f"{MODULE}/cmd/kueue"},
    files={"crds": (MODULE, "config/components/crd/bases"), "webhooks": (MODULE, "config/components/webhook")},
)


@dataclasses.dataclass(frozen=True)
class Kueue:
    """Where each part lies."""

    manager: Path
    crds: Path
    webhooks: Path
    version: str


def found() -> Kueue | None:
    """What was built, if it was."""
    folder = BUILD.found()
    if folder is None:
        return None
    return Kueue(folder / "kueue", folder / "crds", folder / "webhooks", BUILD.version(MODULE))


if __name__ == "__main__":
    sys.exit(build_all(BUILD))
