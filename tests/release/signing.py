"""Signatures of a release by cosign, with a key that the releaser gives: a file, or what cosign calls a KMS.

Nothing is sent to a transparency log or to any other service than the images' registry. cosign is that of PATH, from
version 3 on, or the one pinned in go.mod: `python -m tests.release.signing` (`make cosign`) builds it into the cache,
and the registry of the tests. It must never write a key, nor put one on a command line.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.gobuild import Build, build_all

HERE = Path(__file__).resolve().parent
COSIGN = Build(name="cosign", pins=HERE, programs={"cosign": "github.com/sigstore/cosign/v3/cmd/cosign"})
REGISTRY = Build(
    name="registry", pins=HERE, programs={"registry": "github.com/distribution/distribution/v3/cmd/registry"}
)
SIGNATURE = ".sigstore.json"
"""What the name of a signature has more than that of its file."""
NO_LOG = {"mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json", "rekorTlogConfig": {}, "tsaConfig": {}}
NO_ROOT = {"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}
"""As `cosign signing-config create` and `cosign trusted-root create` write them when no service is named."""
HERE_ONLY = ("127.0.0.1:", "localhost:")
"""Registries that may be asked without TLS."""


class SigningError(Exception):
    """What cosign complained of."""


@dataclasses.dataclass(frozen=True)
class Cosign:
    """The program."""

    program: Path

    def sign(self, file: Path, *, key: str) -> Path:
        """The signature of a file, beside it; checked with the key's public half. Raises SigningError."""
        signature = file.with_name(file.name + SIGNATURE)
        with _offline() as options, tempfile.TemporaryDirectory(prefix="finetune-key.") as folder:
            self._run("sign-blob", "--yes", "--key", key, *options, "--bundle", str(signature), str(file))
            public = Path(folder) / "key.pub"
            public.write_text(self._run("public-key", "--key", key))
            self.verify(file, key=public)
        signature.chmod(0o644)  # cosign writes it for its owner alone, and it is to be given away
        return signature

    def verify(self, file: Path, *, key: Path) -> None:
        """Raises SigningError unless the signature beside a file is that of the file and of the key."""
        signature = f"{file}{SIGNATURE}"
        self._run("verify-blob", "--key", str(key), "--bundle", signature, "--insecure-ignore-tlog", str(file))

    def sign_image(self, image: str, *, key: str) -> None:
        """Sign an image in its registry; named by digest, since a tag can be moved. Raises SigningError."""
        with _offline() as options:
            self._run("sign", "--yes", "--key", key, *options, *_plain(image), image)

    def verify_image(self, image: str, *, key: Path) -> None:
        """Raises SigningError unless the image has a signature of the key."""
        self._run("verify", "--key", str(key), "--insecure-ignore-tlog", *_plain(image), image)

    def _run(self, *arguments: str) -> str:
        """What it prints. The key's password is in COSIGN_PASSWORD."""
        found = subprocess.run([str(self.program), *arguments], capture_output=True, text=True, check=False)
        if found.returncode != 0:
            raise SigningError(f"cosign {arguments[0]}: {found.stderr.strip()[-500:]}")
        return found.stdout


def cosign(*, build: bool) -> Cosign | None:
    """The one of PATH, or the pinned one if it is built, or may be. Raises BuildError."""
    installed = shutil.which("cosign")
    if installed and _version(installed) >= 3:
        return Cosign(Path(installed))
    folder = COSIGN.build() if build else COSIGN.found()
    return None if folder is None else Cosign(folder / "cosign")


def _version(program: str) -> int:
    found = subprocess.run([program, "version", "--json"], capture_output=True, text=True, check=False)
    try:
        return int(json.loads(found.stdout)["gitVersion"].removeprefix("v").partition(".")[0])
    except (ValueError, KeyError):  # one that doesn't say
        return 0


@contextmanager
def _offline() -> Iterator[list[str]]:
    """Options with which no service is asked, not even for whom to trust."""
    with tempfile.TemporaryDirectory(prefix="finetune-sign.") as folder:
        files = {"--signing-config": NO_LOG, "--trusted-root": NO_ROOT}
        for option, content in files.items():
            (Path(folder) / option).write_text(json.dumps(content))
        yield [word for option in files for word in (option, str(Path(folder) / option))]


def _plain(image: str) -> list[str]:
    return ["--allow-http-registry"] if image.startswith(HERE_ONLY) else []


if __name__ == "__main__":
    sys.exit(build_all(COSIGN, REGISTRY))
