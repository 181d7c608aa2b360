"""A release in dist/release: `python -m tests.release.build`, which is `make release KEY=cosign.key`.

The wheel, the chart's package, the CRDs, the images' digests and bills of materials where `make images` has made them,
what it all was made from (provenance.json), SHA256SUMS over these, and a signature over SHA256SUMS. With REGISTRY the
images are signed there too; they have to be there already. It is made from the commit alone, so that a second one is
equal byte for byte. It must never release what isn't committed, nor images of another commit.
"""

from __future__ import annotations

import argparse
import dataclasses
import getpass
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.chart import tools
from tests.gobuild import BuildError
from tests.release import signing

ROOT = Path(__file__).resolve().parents[2]
CHART = "charts/finetune-operator"
SUMS, IMAGES, CRDS, PROVENANCE = "SHA256SUMS", "images.txt", "finetune-operator-crds.yaml", "provenance.json"
PINS = ("dev.txt", "operator.txt", "trainer.txt")
BUILDER = "https://finetune.dev/make-release/v1"
PASSWORD = "COSIGN_PASSWORD"
"""The variable in which cosign looks for it."""
REVISION = "org.opencontainers.image.revision"


class ReleaseError(Exception):
    """Why there can be no release; one line."""


@dataclasses.dataclass(frozen=True)
class Image:
    """An image that `make images` has made."""

    name: str
    digest: str
    revision: str
    """The commit that it was made from."""
    bill: Path


def release(root: Path, out: Path) -> Path:
    """Everything but the signature; the checksums. Raises ReleaseError."""
    commit = _commit(root)
    images = list(_images(root / "dist" / "images"))
    stale = [image.name for image in images if image.revision != commit]
    if stale:
        raise ReleaseError(f"{' and '.join(stale)} in dist/images: made from another commit; make images, or remove it")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with _exported(root, commit) as tree:
        _wheel(tree, out, date=_git(root, "show", "-s", "--format=%ct", commit))
        _chart(tree, out)
        crds = sorted((tree / "crds").glob("*.yaml"))
        (out / CRDS).write_text("---\n".join(path.read_text() for path in crds))
        pins = {f"requirements/{name}": sha256(tree / "requirements" / name) for name in PINS}
    if images:
        (out / IMAGES).write_text("".join(f"{image.digest} {image.name}\n" for image in images))
    for image in images:
        shutil.copyfile(image.bill, out / image.bill.name)
    (out / PROVENANCE).write_text(json.dumps(_provenance(out, commit, pins), indent=2) + "\n")
    sums = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted(out.iterdir()))
    (out / SUMS).write_text(sums)
    return out / SUMS


def sign(sums: Path, *, key: str, registry: str | None) -> Iterator[str]:
    """Sign the checksums, and the images where they are; what was signed. Raises SigningError or BuildError."""
    cosign = signing.cosign(build=True)
    assert cosign, "one that can't be built raises"
    yield str(cosign.sign(sums, key=key))
    listed = sums.with_name(IMAGES)
    for line in listed.read_text().splitlines() if registry and listed.exists() else ():
        digest, name = line.split()
        cosign.sign_image(f"{registry}/{name}@{digest}", key=key)
        yield f"{registry}/{name}@{digest}"


def sha256(path: Path) -> str:
    """A file's digest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _commit(root: Path) -> str:
    changed = _git(root, "status", "--porcelain").splitlines()
    if changed:
        raise ReleaseError(
            f"{len(changed)} files aren't committed, such as {changed[0].split(maxsplit=1)[1]}: commit or remove them"
        )
    return _git(root, "rev-parse", "HEAD")


@contextmanager
def _exported(root: Path, commit: str) -> Iterator[Path]:
    """The commit's files, with its time, and the same rights whatever the umask."""
    archive = subprocess.run(["git", "archive", commit], cwd=root, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="finetune-release.") as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)


def _wheel(tree: Path, out: Path, *, date: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": date}
    subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)


def _chart(tree: Path, out: Path) -> None:
    """Helm 4 keeps the files' times; Helm 3 would put in that of the packaging."""
    command = [str(tools.helm(4)), "package", str(tree / CHART), "--destination", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _images(folder: Path) -> Iterator[Image]:
    for archive in sorted(folder.glob("*.tar")):
        bill = archive.with_suffix(".cdx.json")
        if not bill.exists():
            raise ReleaseError(f"{archive.name} has no bill of materials beside it: make images")
        with tarfile.open(archive) as files:
            digest = _json(files, "index.json")["manifests"][0]["digest"]
            config = _json(files, _blob(_json(files, _blob(digest))["config"]["digest"]))
        labels = config["config"].get("Labels") or {}
        yield Image(archive.stem, digest, revision=labels.get(REVISION, "unknown"), bill=bill)


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _json(files: tarfile.TarFile, name: str) -> Any:
    found = files.extractfile(name)
    assert found, f"{name} is no file"
    return json.load(found)


def _provenance(out: Path, commit: str, pins: Mapping[str, str]) -> Mapping[str, Any]:
    """What was made from what, with what: a statement of in-toto, in the form of SLSA."""
    helm = subprocess.run([str(tools.helm(4)), "version", "--short"], capture_output=True, text=True, check=True).stdout
    with_what = {"python": platform.python_version(), "hatchling": metadata.version("hatchling"), "helm": helm.strip()}
    source = {"uri": "git+finetune-operator", "digest": {"gitCommit": commit}}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": path.name, "digest": {"sha256": sha256(path)}} for path in sorted(out.iterdir())],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILDER,
                "externalParameters": {"target": "release"},
                "resolvedDependencies": [
                    source,
                    *({"uri": name, "digest": {"sha256": digest}} for name, digest in pins.items()),
                ],
            },
            "runDetails": {"builder": {"id": BUILDER, "version": with_what}},
        },
    }


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Make it, and say what there is."""
    parser = argparse.ArgumentParser(description="Makes a release in dist/release, from the commit.")
    parser.add_argument("--key", help="sign with this: a file of `cosign generate-key-pair`, or a KMS as cosign has it")
    parser.add_argument("--registry", help="sign the images here too; they have been pushed")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "release")
    chosen = parser.parse_args(arguments)
    if chosen.registry and not chosen.key:
        parser.error("--registry needs --key: images are signed there, and nothing else is done")
    if chosen.key and PASSWORD not in os.environ and sys.stdin.isatty():  # asked once, for all that is signed
        os.environ[PASSWORD] = getpass.getpass("Password of the key: ")
    try:
        sums = release(ROOT, chosen.out)
        signed = list(sign(sums, key=chosen.key, registry=chosen.registry)) if chosen.key else []
    except (ReleaseError, signing.SigningError, BuildError, tools.ToolUnavailable) as error:
        sys.stderr.write(f"no release: {error}\n")
        return 1
    sys.stdout.write(sums.read_text())
    sys.stdout.write("".join(f"signed: {what}\n" for what in signed) or "not signed: KEY=... names a key\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
