"""What all plans of a rig share, and what they do to a namespace before and after."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import ssl
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

from finetune_api.types import API_VERSION, PLURAL
from tests.cluster.api import Api
from tests.cluster.controlplane import ControlPlane
from tests.cluster.stage import manifest
from tests.faults.operators import Operators
from tests.faults.recorder import Recorder

LOOK_SECONDS = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ground:
    """A control plane, what is seen of it, and who starts operators."""

    api: Api
    recorder: Recorder
    operators: Operators
    server: str
    tls: ssl.SSLContext
    kubeconfig: Path
    """Of the operator's account; nothing is granted to it here."""
    folder: Path
    """For the gates and logs of plans."""
    keep: bool
    """Whether logs of good plans are kept too."""
    garbage: asyncio.Task[None]
    """Done when Kubernetes' garbage collector knows of runs."""

    @classmethod
    @contextlib.asynccontextmanager
    async def ready(
        cls, control_plane: ControlPlane, *, kubeconfig: Path, folder: Path, keep: bool
    ) -> AsyncIterator[Ground]:
        """As long as the block lasts."""
        api = Api.from_kubeconfig(control_plane.kubeconfig)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(api.close)
            garbage = asyncio.create_task(_collects_garbage(api))
            stack.callback(garbage.cancel)
            yield cls(
                api=api,
                recorder=await stack.enter_async_context(Recorder.running(api)),
                operators=await stack.enter_async_context(Operators.ready()),
                server=control_plane.server,
                tls=ssl.create_default_context(cafile=str(control_plane.layout.certificate)),
                kubeconfig=kubeconfig,
                folder=folder,
                keep=keep,
                garbage=garbage,
            )

    async def make(self, namespace: str) -> None:
        """A namespace that is ready for pods."""
        await self.api.request("POST", "/api/v1/namespaces", body={"metadata": {"name": namespace}})
        await _until_there(self.api, f"/api/v1/namespaces/{namespace}/serviceaccounts/default", there=True)

    async def clean_up(self, namespace: str) -> None:
        """Runs, Jobs, pods and claims go; the empty namespace stays, for its deletion costs sixty requests."""
        within = f"/namespaces/{namespace}"
        runs, jobs = f"/apis/{API_VERSION}{within}/{PLURAL}", f"/apis/batch/v1{within}/jobs"
        for path in (runs, jobs, f"/api/v1{within}/persistentvolumeclaims"):
            await self.api.request("DELETE", path, propagationPolicy="Background")
        await self.api.request("DELETE", f"/api/v1{within}/pods", gracePeriodSeconds="0")

    def kubeconfig_through(self, port: int, *, into: Path) -> Path:
        """The operator's kubeconfig with a proxy in place of the API server."""
        content = json.loads(self.kubeconfig.read_text())
        content["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{port}"}
        path = into / "kubeconfig"
        path.write_text(json.dumps(content))
        return path


async def _collects_garbage(api: Api) -> None:
    """Wait until the garbage collector knows of runs: it looks for new kinds every half minute only."""
    runs, children = f"/apis/{API_VERSION}/namespaces/default/{PLURAL}", "/api/v1/namespaces/default/configmaps"
    name = f"garbage-{uuid.uuid4().hex[:10]}"
    owner = await api.request("POST", runs, body=manifest(name))
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": name,
        "uid": owner["metadata"]["uid"],
    }
    await api.create(children, {"metadata": {"name": name, "ownerReferences": [reference]}})
    await api.request("DELETE", f"{runs}/{name}", propagationPolicy="Background")
    await _until_there(api, f"{children}/{name}", there=False)


async def _until_there(api: Api, path: str, *, there: bool) -> None:
    while (await api.get(path) is not None) is not there:  # noqa: ASYNC110 - nobody here can tell it
        await asyncio.sleep(LOOK_SECONDS)
