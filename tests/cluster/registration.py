"""A node as the cluster's controllers see it: the Node object, its readiness and its heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import platform
from collections.abc import Mapping
from typing import Any

import aiohttp

from tests.cluster.api import MERGE, Api, ApiError, Listed

log = logging.getLogger(__name__)

NODES = "/api/v1/nodes"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
REGISTER_SECONDS = 60
HEARTBEAT_SECONDS = 5
PRESSURES = ("MemoryPressure", "DiskPressure", "PIDPressure")
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


async def register(api: Api, name: str, *, capacity: Mapping[str, str], labels: Mapping[str, str], port: int) -> None:
    """The Node object, made and ready: without the taint that a new node starts with."""
    own = {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": ARCHITECTURE}
    await api.create(NODES, {"metadata": {"name": name, "labels": {**own, **labels}}})
    status: dict[str, Any] = {
        "capacity": capacity,
        "allocatable": capacity,
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": name}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "nodeInfo": _node_info(),
        "conditions": _conditions(),
    }
    await api.request("PATCH", f"{NODES}/{name}/status", body={"status": status}, content_type=MERGE)
    async with asyncio.timeout(REGISTER_SECONDS):
        await _untainted(api, name)


async def heartbeat(api: Api, name: str) -> None:
    """Renew the lease and the conditions, for ever."""
    body: dict[str, Any] = {"metadata": {"name": name}, "spec": {"holderIdentity": name, "leaseDurationSeconds": 40}}
    while True:
        try:
            body["spec"]["renewTime"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            await api.create(LEASES, body)
            await api.request("PATCH", f"{LEASES}/{name}", body=body, content_type=MERGE)
            status = {"status": {"conditions": _conditions()}}
            await api.request("PATCH", f"{NODES}/{name}/status", body=status, content_type=MERGE)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.warning("heartbeat of %s: %s", name, error)
        await asyncio.sleep(HEARTBEAT_SECONDS)


async def _untainted(api: Api, name: str) -> None:
    """Until the controllers have seen that the node is ready."""
    async with contextlib.aclosing(api.follow(NODES, fieldSelector=f"metadata.name={name}")) as changes:
        async for news in changes:
            nodes = news.items if isinstance(news, Listed) else [news.item]
            if any("taints" not in node["spec"] for node in nodes):
                return


def _node_info() -> Mapping[str, str]:
    empty = ("machineID", "systemUUID", "bootID", "containerRuntimeVersion", "kubeProxyVersion")
    known = {
        "kernelVersion": platform.release(),
        "osImage": "processes of this machine",
        "kubeletVersion": "v0.0.0-test-node",
        "operatingSystem": "linux",
        "architecture": ARCHITECTURE,
    }
    return {**dict.fromkeys(empty, ""), **known}


def _conditions() -> list[Mapping[str, str]]:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "runs pods as processes"}
    fine = [{"type": name, "status": "False", "reason": "NotMeasured", "message": ""} for name in PRESSURES]
    return [{**condition, "lastHeartbeatTime": now, "lastTransitionTime": now} for condition in (ready, *fine)]
