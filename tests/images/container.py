"""An image run by runc as a cluster would under Pod Security `restricted`: not by root, a read-only root file system,
no capability, no way to gain one. It shares the network of this machine and nothing else that isn't named.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.images.build import Buildah

USER = 65532


@dataclasses.dataclass(frozen=True)
class Mount:
    """A folder or file of this machine; without one, memory that goes with the container."""

    target: str
    source: Path | None = None
    read_only: bool = False

    def as_oci(self) -> Mapping[str, Any]:
        """As runc has it."""
        if self.source is None:
            options = ["nosuid", "nodev", f"uid={USER}", f"gid={USER}", "mode=700"]
            return {"destination": self.target, "type": "tmpfs", "source": "tmpfs", "options": options}
        access = "ro" if self.read_only else "rw"
        return {"destination": self.target, "type": "bind", "source": str(self.source), "options": ["rbind", access]}


@contextmanager
def started(
    buildah: Buildah,
    image: str,
    *,
    folder: Path,
    arguments: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    mounts: Sequence[Mount] = (),
    offline: bool = False,
) -> Iterator[subprocess.Popen[str]]:
    """A container, with what the image says of entry point, environment and user; killed when the block ends."""
    name = f"finetune-{uuid.uuid4().hex[:8]}"
    bundle = folder / name
    bundle.mkdir()
    with buildah.mounted(image) as root:
        config = _config(buildah, image, root=root, bundle=bundle)
        config["process"]["args"] += arguments
        config["process"]["env"] += [f"{key}={value}" for key, value in (env or {}).items()]
        if not offline:
            kept = [found for found in config["linux"]["namespaces"] if found["type"] != "network"]
            config["linux"]["namespaces"] = kept
        config["mounts"] += [mount.as_oci() for mount in mounts]
        (bundle / "config.json").write_text(json.dumps(config))
        runc = ["runc", "--root", str(folder / "runc")]
        with (bundle / "log").open("w+") as log:
            process = subprocess.Popen([*runc, "run", "--bundle", str(bundle), name], stdout=log, stderr=log, text=True)
            try:
                yield process
            finally:
                subprocess.run([*runc, "kill", name, "KILL"], capture_output=True, check=False)
                process.wait()
                log.seek(0)
                sys.stdout.write(log.read())


def image_config(buildah: Buildah, image: str) -> Mapping[str, Any]:
    """User, entry point, environment and labels of an image."""
    found: Mapping[str, Any] = json.loads(buildah("inspect", "--type", "image", image, capture=True))["OCIv1"]["config"]
    return found


def _config(buildah: Buildah, image: str, *, root: Path, bundle: Path) -> dict[str, Any]:
    subprocess.run(["runc", "spec", "--bundle", str(bundle)], check=True)
    found: dict[str, Any] = json.loads((bundle / "config.json").read_text())
    own = image_config(buildah, image)
    user, group = (int(number) for number in own["User"].split(":"))
    found["root"] = {"path": str(root), "readonly": True}
    process = {"terminal": False, "user": {"uid": user, "gid": group}, "noNewPrivileges": True, "cwd": "/"}
    process |= {"args": [*own["Entrypoint"]], "env": [*own["Env"]], "capabilities": {}}
    found["process"] |= process
    return found
