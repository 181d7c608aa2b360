"""The default StorageClass of the test cluster: each claim gets a folder of this machine.

Claims that Kubernetes marks as ours get a volume of exactly the size they ask for; a released volume is removed with
its folder when the class says Delete. Sizes are written down, not enforced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from tests.cluster.api import Api, ApiError, Listed, Object

log = logging.getLogger(__name__)

NAME = "finetune.dev/test-node"
MARK = "volume.kubernetes.io/storage-provisioner"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
VOLUMES = "/api/v1/persistentvolumes"

STANDARD: Object = {
    "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
    "provisioner": NAME,
    "reclaimPolicy": "Delete",
    "volumeBindingMode": "Immediate",
}


class Provisioner:
    """Makes and removes volumes under one folder."""

    def __init__(self, api: Api, folder: Path) -> None:
        self._api = api
        self._folder = folder

    async def run(self) -> None:
        """For ever."""
        await self._api.create(CLASSES, STANDARD)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow("/api/v1/persistentvolumeclaims", self._provide))
            tasks.create_task(self._follow(VOLUMES, self._reclaim))

    async def _follow(self, path: str, handle: Callable[[Object], Awaitable[None]]) -> None:
        """Handle all there is and every change; after trouble all of it again, since handling twice does no harm."""
        while True:
            try:
                async with contextlib.aclosing(self._api.follow(path)) as news:
                    async for one in news:
                        items = one.items if isinstance(one, Listed) else () if one.deleted else (one.item,)
                        for item in items:
                            await handle(item)
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("%s: %s", path, error)
                await asyncio.sleep(0.5)

    async def _provide(self, claim: Object) -> None:
        """A volume for a claim that waits for one of ours; made once, whatever is seen twice."""
        meta, spec = claim["metadata"], claim["spec"]
        if meta.get("annotations", {}).get(MARK) != NAME or "volumeName" in spec or "deletionTimestamp" in meta:
            return
        found = await self._api.get(f"{CLASSES}/{spec['storageClassName']}")
        if found is None:
            return
        name = f"pvc-{meta['uid']}"
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)
        await self._api.create(VOLUMES, _volume(claim, name=name, folder=folder, reclaim=found["reclaimPolicy"]))

    async def _reclaim(self, volume: Object) -> None:
        """Remove a released volume of ours, folder first."""
        ours = volume["metadata"].get("annotations", {}).get(PROVISIONED_BY) == NAME
        released = volume.get("status", {}).get("phase") == "Released"
        if ours and released and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete":
            name = volume["metadata"]["name"]
            await asyncio.to_thread(shutil.rmtree, self._folder / name, ignore_errors=True)
            await self._api.delete(f"{VOLUMES}/{name}", uid=volume["metadata"]["uid"])


def _volume(claim: Object, *, name: str, folder: Path, reclaim: str) -> Object:
    meta, spec = claim["metadata"], claim["spec"]
    reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    return {
        "metadata": {"name": name, "annotations": {PROVISIONED_BY: NAME}},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "claimRef": reference | {key: meta[key] for key in ("namespace", "name", "uid", "resourceVersion")},
            "persistentVolumeReclaimPolicy": reclaim,
            "storageClassName": spec["storageClassName"],
            "hostPath": {"path": str(folder)},
        },
    }
