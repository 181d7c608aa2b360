"""A tiny OCI image, made by hand: as an archive, and pushed to a registry of this machine."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import tarfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclasses.dataclass(frozen=True)
class TinyImage:
    """An image of one file, with labels."""

    labels: Mapping[str, str]

    @property
    def layer(self) -> bytes:
        """Its one layer."""
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as layer:
            entry = tarfile.TarInfo("hello")
            entry.size = 5
            layer.addfile(entry, io.BytesIO(b"hello"))
        return gzip.compress(file.getvalue(), mtime=0)

    @property
    def config(self) -> bytes:
        """What it says of itself."""
        content = {"diff_ids": [digest(gzip.decompress(self.layer))], "type": "layers"}
        return _json(architecture="amd64", os="linux", config={"Labels": dict(self.labels)}, rootfs=content)

    @property
    def manifest(self) -> bytes:
        """What the image consists of; its digest is the image's."""
        parts = [_described(CONFIG, self.config), _described(LAYER, self.layer)]
        return _json(schemaVersion=2, mediaType=MANIFEST, config=parts[0], layers=parts[1:])

    def save(self, archive: Path) -> None:
        """As `make images` leaves one."""
        files = {f"blobs/{digest(part).replace(':', '/')}": part for part in (self.layer, self.config, self.manifest)}
        files["index.json"] = _json(schemaVersion=2, manifests=[_described(MANIFEST, self.manifest)])
        files["oci-layout"] = _json(imageLayoutVersion="1.0.0")
        with tarfile.open(archive, "w") as made:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                made.addfile(entry, io.BytesIO(content))

    def push(self, registry: str, name: str, tag: str) -> None:
        """As skopeo would."""
        for part in (self.layer, self.config):
            start = _ask("POST", f"http://{registry}/v2/{name}/blobs/uploads/")
            place = start.headers["Location"]
            joined = "&" if "?" in place else "?"
            _ask("PUT", f"{place}{joined}digest={digest(part)}", part, "application/octet-stream")
        _ask("PUT", f"http://{registry}/v2/{name}/manifests/{tag}", self.manifest, MANIFEST)


def digest(content: bytes) -> str:
    """As OCI names it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _described(kind: str, content: bytes) -> Mapping[str, Any]:
    return {"mediaType": kind, "digest": digest(content), "size": len(content)}


def _json(**content: Any) -> bytes:
    return json.dumps(content).encode()


def _ask(method: str, url: str, body: bytes = b"", kind: str = "") -> Any:
    headers = {"Content-Type": kind} if kind else {}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=30) as answer:
        return answer
