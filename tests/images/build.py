"""Builds both images with buildah: `python -m tests.images.build --base IMAGE`, which is `make images BASE=IMAGE`.

Each image becomes an OCI archive in dist/images, with its bill of materials beside it (CycloneDX, by syft). BASE is
named by digest, so that the same sources give the same image; `--base-tar FILE` takes the tarball of a root file system
instead, for machines that reach no registry. It must never send more to the build than the pins and the wheel.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from tests.chart import tools

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = {"operator": "operator/Dockerfile", "trainer": "trainer-image/Dockerfile"}
DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Buildah:
    """buildah with a storage of its own, in which nothing else is."""

    folder: Path

    def __call__(self, *arguments: str, capture: bool = False) -> str:
        """Run it; what it prints, if that is wanted."""
        storage = ["--root", str(self.folder / "root"), "--runroot", str(self.folder / "run")]
        found = subprocess.run(
            ["buildah", *storage, *arguments], check=True, text=True, stdout=subprocess.PIPE if capture else None
        )
        return found.stdout if capture else ""

    @contextmanager
    def mounted(self, name: str) -> Iterator[Path]:
        """The root file system of an image."""
        container = self("from", name, capture=True).strip()
        try:
            yield Path(self("mount", container, capture=True).strip())
        finally:
            self("rm", container, capture=True)

    def import_base(self, tarball: Path) -> str:
        """An image of a root file system; its name."""
        container = self("from", "scratch", capture=True).strip()
        self("add", "--quiet", container, str(tarball), "/")
        self("commit", "--quiet", container, "localhost/base")
        self("rm", container)
        return "localhost/base"


@contextmanager
def context() -> Iterator[Path]:
    """A folder with the pins and the wheel, and nothing else."""
    with tempfile.TemporaryDirectory(prefix="finetune-image.") as name:
        folder = Path(name)
        shutil.copytree(ROOT / "requirements", folder / "requirements")
        wheel = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
        subprocess.run(wheel, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        yield folder


def build(buildah: Buildah, *, image: str, base: str, context: Path, options: Sequence[str] = ()) -> str:
    """One image; its name."""
    release, name = version("finetune-operator"), f"finetune-{image}"
    arguments = {"BASE": base, "VERSION": release, "REVISION": _revision()}
    given = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
    file = str(ROOT / DOCKERFILES[image])
    buildah("build", "--format", "oci", "--layers=false", *given, *options, "-f", file, "-t", name, str(context))
    return name


def bill_of_materials(buildah: Buildah, name: str, *, target: Path) -> Path:
    """The packages in an image, of Debian and of Python, as CycloneDX JSON."""
    with buildah.mounted(name) as root:
        syft = [str(tools.syft()), "scan", "--quiet", f"dir:{root}", "-o", f"cyclonedx-json={target}"]
        syft += ["--source-name", name, "--source-version", version("finetune-operator")]
        subprocess.run(syft, check=True, env={**os.environ, "SYFT_CHECK_FOR_APP_UPDATE": "false"})
    return target


def _revision() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what is asked for."""
    parser = argparse.ArgumentParser(description="Builds the images with buildah.")
    base = parser.add_mutually_exclusive_group(required=True)
    base.add_argument("--base", help="an image with Python 3.11 or newer and venv, named by digest")
    base.add_argument("--base-tar", type=Path, metavar="FILE", help="a root file system that has them")
    parser.add_argument("--image", choices=list(DOCKERFILES), action="append", help="only this one")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "images")
    parser.add_argument("--storage", type=Path, help="where buildah keeps layers; a temporary folder if left out")
    parser.add_argument("options", nargs="*", metavar="-- OPTION", help="more options of buildah build")
    chosen = parser.parse_args(arguments)
    if chosen.base and not DIGEST.fullmatch(chosen.base):
        parser.error(f"--base {chosen.base}: name it by digest, as in python:3.11-slim-bookworm@sha256:...")
    chosen.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="finetune-layers.") as scratch, context() as folder:
        buildah = Buildah(chosen.storage or Path(scratch))
        source = chosen.base or buildah.import_base(chosen.base_tar)
        for image in chosen.image or DOCKERFILES:
            name = build(buildah, image=image, base=source, context=folder, options=chosen.options)
            archive = chosen.out / f"{name}.tar"
            archive.unlink(missing_ok=True)
            buildah("push", "--quiet", name, f"oci-archive:{archive}:{version('finetune-operator')}")
            bill = bill_of_materials(buildah, name, target=chosen.out / f"{name}.cdx.json")
            sys.stdout.write(f"{archive}\n{bill}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
