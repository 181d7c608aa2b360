"""Programs of the tests that are built once from Go modules, and files that come with them.

A folder with a go.mod and a go.sum says which versions; what was built lies in the cache, in a folder named after both.
Standard library alone, so that it runs before there is a virtual environment.
It must never write into the checkout, nor leave a half-built folder that looks whole.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

FLAGS = ("-trimpath", "-ldflags=-s -w")


class BuildError(Exception):
    """It can't be built here; the message is one line that says why."""


@dataclasses.dataclass(frozen=True)
class Build:
    """What is built from one go.mod."""

    name: str
    """Of the folder in the cache."""
    pins: Path
    """The folder of go.mod and go.sum, and of Go files of our own where there are some."""
    programs: Mapping[str, str]
    """The package of each program."""
    files: Mapping[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    """Further folders, each from a module and a folder in it."""

    @property
    def folder(self) -> Path:
        """Where the build of just these versions belongs."""
        digest = hashlib.sha256()
        for path in (self.pins / "go.mod", self.pins / "go.sum", *sorted(self.pins.rglob("*.go"))):
            digest.update(path.read_bytes())
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "finetune-operator" / self.name / digest.hexdigest()[:16]

    def version(self, module: str) -> str:
        """Which version of a module is pinned, such as v1.2.3."""
        required = (self.pins / "go.mod").read_text()
        found = re.search(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", required, re.MULTILINE)
        assert found, f"{self.pins}/go.mod doesn't require {module}"
        return found[1]

    def found(self) -> Path | None:
        """The folder, if it was built."""
        folder = self.folder
        return folder if all(os.access(folder / program, os.X_OK) for program in self.programs) else None

    def build(self) -> Path:
        """The folder, built if need be; whoever comes second waits for the first. Raises BuildError."""
        folder = self.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.found() is None:
                with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as building:
                    made = Path(building) / folder.name
                    made.mkdir()
                    self._make(made)
                    shutil.rmtree(folder, ignore_errors=True)
                    made.rename(folder)
        return folder

    def _make(self, into: Path) -> None:
        for name, (module, inside) in self.files.items():
            self._go("mod", "download", module)
            source = Path(self._go("list", "-m", "-f", "{{.Dir}}", module).strip())
            shutil.copytree(source / inside, into / name, copy_function=shutil.copyfile)
            (into / name).chmod(0o755)  # the module cache is read-only
        for name, package in self.programs.items():
            self._go("build", *FLAGS, "-o", str(into / name), package)

    def _go(self, *arguments: str) -> str:
        if not shutil.which("go"):
            raise BuildError("there is no Go: install Go 1.26 (https://go.dev/dl)")
        environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off", "GOFLAGS": "-buildvcs=false -mod=readonly"}
        result = subprocess.run(
            ["go", *arguments], cwd=self.pins, env=environment, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise BuildError(f"go {' '.join(arguments)} failed: {result.stderr.strip()[-1000:]}")
        return result.stdout


def build_all(*builds: Build) -> int:
    """Build what isn't there yet, and say so; 0 when all is there, 69 (EX_UNAVAILABLE) when something can't be had."""
    for each in builds:
        started = time.monotonic()
        try:
            folder = each.build()
        except BuildError as error:
            sys.stderr.write(f"no {each.name}: {error}\n")
            return os.EX_UNAVAILABLE
        sys.stdout.write(f"{each.name}: {folder} ({time.monotonic() - started:.0f} s)\n")
    return os.EX_OK
