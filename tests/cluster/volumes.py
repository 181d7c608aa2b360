"""The volumes of a pod, as folders of this machine: claims, ConfigMaps, Secrets, pod fields, tokens, empty folders.

Files are written once, when the pod starts; a later change of a ConfigMap isn't followed. Any other kind of volume is
refused by name, so that a test can't mistake it for one that works.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.cluster.api import Api, Object
from tests.cluster.podspec import NotReady, Sources, Volume, field

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


class Unmountable(Exception):
    """Why a volume can't be had (yet)."""


@dataclasses.dataclass(frozen=True)
class Volumes:
    """Makes the volumes of one pod ready under a folder of its own."""

    api: Api
    pod: Object
    folder: Path
    sources: Sources
    pod_ip: str

    async def ready(self) -> Mapping[str, Volume]:
        """Every volume by name; raises NotReady for the first that can't be had."""
        made = {}
        for volume in self.pod["spec"].get("volumes", ()):
            name = volume["name"]
            kind = next(key for key in volume if key != "name")
            try:
                made[name] = await self._one(kind, volume[kind], self.folder / name)
            except Unmountable as error:
                message = f'MountVolume.SetUp failed for volume "{name}" : {error}'
                raise NotReady("ContainerCreating", message, event="FailedMount") from error
        return made

    async def _one(self, kind: str, source: Object, folder: Path) -> Volume:
        if kind == "persistentVolumeClaim":
            return await self._claim(source)
        if kind == "emptyDir":
            return _empty(source, folder)
        files = await self._projected(source) if kind == "projected" else await self._files(kind, source)
        return _written(files, folder)

    async def _claim(self, source: Object) -> Volume:
        """The folder behind the claim's volume."""
        namespace, name = self.pod["metadata"]["namespace"], source["claimName"]
        claim = await self.api.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")
        if claim is None or claim["status"].get("phase") != "Bound":
            raise Unmountable(f'persistentvolumeclaim "{name}" is not bound')
        found = await self.api.get(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}")
        spec = found["spec"] if found else {}
        path = (spec.get("hostPath") or spec.get("local") or {}).get("path")
        return _folder(path, what=claim["spec"]["volumeName"], read_only=bool(source.get("readOnly")))

    async def _projected(self, source: Object) -> Mapping[str, bytes]:
        files: dict[str, bytes] = {}
        for part in source["sources"]:
            for kind, wanted in part.items():
                files |= await self._files(kind, wanted)
        return files

    async def _files(self, kind: str, source: Object) -> Mapping[str, bytes]:
        """The files of a ConfigMap, a Secret, fields of the pod, or a token."""
        if kind == "serviceAccountToken":
            return {source["path"]: await self._token(source)}
        if kind == "downwardAPI":
            items = source.get("items", ())
            return {
                item["path"]: field(self.pod, item["fieldRef"]["fieldPath"], pod_ip=self.pod_ip).encode()
                for item in items
            }
        if kind not in ("configMap", "secret"):
            raise Unmountable(f"the test node has no volumes of kind {kind}")
        name = source.get("name") or source["secretName"]
        entries = await self.sources.find(kind.lower(), name)
        if entries is None:
            if source.get("optional"):
                return {}
            raise Unmountable(f'{kind.lower()} "{name}" not found')
        return _chosen(entries, source, what=f"{kind.lower()} {name}")

    async def _token(self, source: Object) -> bytes:
        """A token of the pod's service account, good as long as the pod is."""
        meta, account = self.pod["metadata"], self.pod["spec"]["serviceAccountName"]
        pod = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
        spec = {"expirationSeconds": source.get("expirationSeconds", 3600), "boundObjectRef": pod}
        if "audience" in source:
            spec["audiences"] = [source["audience"]]
        path = f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/{account}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = await self.api.request("POST", path, body=request)
        return str(answer["status"]["token"]).encode()


def _folder(path: str | None, *, what: str, read_only: bool) -> Volume:
    if not path or not Path(path).is_dir():
        raise Unmountable(f"{what} is no folder of this machine")
    return Volume(Path(path), read_only=read_only)


def _empty(source: Object, folder: Path) -> Volume:
    if source.get("medium") == "Memory":
        limit = source.get("sizeLimit")
        return Volume(None, tmpfs_bytes=quantity(limit) if limit else None)
    folder.mkdir(parents=True, exist_ok=True)
    return Volume(folder)


def _chosen(entries: Mapping[str, bytes], source: Object, *, what: str) -> Mapping[str, bytes]:
    """All entries under their own names, or those that `items` asks for under the names it gives."""
    if "items" not in source:
        return entries
    missing = [item["key"] for item in source["items"] if item["key"] not in entries]
    if missing and not source.get("optional"):
        raise Unmountable(f"{what} has no key {', '.join(missing)}")
    return {item["path"]: entries[item["key"]] for item in source["items"] if item["key"] in entries}


def _written(files: Mapping[str, bytes], folder: Path) -> Volume:
    """A read-only volume with these files and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return Volume(folder, read_only=True)


def quantity(text: str) -> int:
    """A Kubernetes quantity in whole units, such as 64Mi."""
    digits = text.rstrip("kKMGTi")
    return int(float(digits) * UNITS[text[len(digits) :]])
