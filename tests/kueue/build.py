"""The real Kueue of the tests: its manager built once from the version that go.mod pins, and its CRDs and webhooks.

`python -m tests.kueue.build` (`make kueue`) builds it into the cache folder, named after go.mod and go.sum; that takes
minutes once. `found()` says where it is, and builds nothing. Standard library alone.
It must never write into the checkout, nor leave a half-built folder that looks whole.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULE = "sigs.k8s.io/kueue"
FILES = {"crds": "config/components/crd/bases", "webhooks": "config/components/webhook"}


class KueueUnavailable(Exception):
    """Kueue can't be built here; the message is one line that says why."""


@dataclasses.dataclass(frozen=True)
class Kueue:
    """Where each part lies."""

    manager: Path
    crds: Path
    webhooks: Path
    version: str


def cache_folder() -> Path:
    """Where the build of this go.mod and go.sum belongs."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        digest.update((HERE / name).read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "finetune-operator" / "kueue" / digest.hexdigest()[:16]


def found() -> Kueue | None:
    """What was built, if it was."""
    folder = cache_folder()
    if not os.access(folder / "kueue", os.X_OK):
        return None
    return Kueue(folder / "kueue", folder / "crds", folder / "webhooks", (folder / "version").read_text().strip())


def build() -> Kueue:
    """Build it if need be; whoever comes second waits for the first. Raises KueueUnavailable."""
    folder = cache_folder()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if found() is None:
            with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as building:
                _build(Path(building) / folder.name)
                shutil.rmtree(folder, ignore_errors=True)
                (Path(building) / folder.name).rename(folder)
    built = found()
    assert built is not None, "a build that fails raises"
    return built


def _build(into: Path) -> None:
    into.mkdir()
    source, version = _go("list", "-m", "-f", "{{.Dir}} {{.Version}}", MODULE).split()
    for name, folder in FILES.items():
        shutil.copytree(Path(source) / folder, into / name, copy_function=shutil.copyfile)
        (into / name).chmod(0o755)  # the module cache is read-only
    (into / "version").write_text(version)
    _go("build", "-trimpath", "-ldflags=-s -w", "-o", str(into / "kueue"), f"{MODULE}/cmd/kueue")


def _go(*arguments: str) -> str:
    if not shutil.which("go"):
        raise KueueUnavailable("there is no Go: install Go 1.26 (https://go.dev/dl)")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-buildvcs=false -mod=readonly"}
    if arguments[0] == "list":
        subprocess.run(["go", "mod", "download", MODULE], cwd=HERE, env=environment, check=False)
    result = subprocess.run(["go", *arguments], cwd=HERE, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise KueueUnavailable(f"go {' '.join(arguments)} failed: {result.stderr.strip()[-1000:]}")
    return result.stdout


def main() -> int:
    """Build what isn't there yet; 0 when it is there at the end, 69 (EX_UNAVAILABLE) when it can't be had."""
    started = time.monotonic()
    try:
        kueue = build()
    except KueueUnavailable as error:
        sys.stderr.write(f"no Kueue: {error}\n")
        return os.EX_UNAVAILABLE
    sys.stdout.write(f"Kueue {kueue.version}: {kueue.manager.parent} ({time.monotonic() - started:.0f} s)\n")
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
