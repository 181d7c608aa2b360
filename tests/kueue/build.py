"""The real Kueue of the tests: its manager built once from the version that go.mod pins, and its CRDs and webhooks.

`python -m tests.kueue.build` (`make kueue`) builds it into the cache folder, named after go.mod and go.sum; that takes
minutes once. `found()` says where it is, and builds nothing. Standard library alone.
It must never write into the checkout, nor leave a half-built folder that looks whole.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path

from tests.gobuild import Build, BuildError

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
    return None if folder is None else _in(folder)


def build() -> Kueue:
    """Build it if need be. Raises BuildError."""
    return _in(BUILD.build())


def _in(folder: Path) -> Kueue:
    return Kueue(folder / "kueue", folder / "crds", folder / "webhooks", BUILD.version(MODULE))


def main() -> int:
    """Build what isn't there yet; 0 when it is there at the end, 69 (EX_UNAVAILABLE) when it can't be had."""
    started = time.monotonic()
    try:
        kueue = build()
    except BuildError as error:
        sys.stderr.write(f"no Kueue: {error}\n")
        return os.EX_UNAVAILABLE
    sys.stdout.write(f"Kueue {kueue.version}: {kueue.manager.parent} ({time.monotonic() - started:.0f} s)\n")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
