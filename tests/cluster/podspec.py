"""What a container of a pod comes to on this machine: its command line, environment and mounts.

Values come from where the pod says: fields of the pod, ConfigMaps, Secrets, volumes. What isn't there, or isn't
understood, is a `NotReady` with the reason and words that a kubelet would use. Nothing here starts a process or writes
a status.
"""

from __future__ import annotations

import base64
import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune_operator import processes
from tests.cluster.api import Api, Object

INHERITED = ("PATH", "HOME", "USER", "LANG", "TMPDIR")
SUBSCRIPT = re.compile(r"^metadata\.(labels|annotations)\['(.+)'\]$")


class NotReady(Exception):
    """A container has to wait: the reason in its status, the words, and the reason of the Event that tells of it."""

    def __init__(self, reason: str, message: str, *, event: str = "Failed") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.event = event


@dataclasses.dataclass(frozen=True)
class Image:
    """What an image stands for: the command that is its entry point, and environment that it brings."""

    entrypoint: tuple[str, ...] = ()
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Volume:
    """A volume that is ready to be mounted: a folder, or memory of each container's own when there is no folder."""

    folder: Path | None
    read_only: bool = False
    tmpfs_bytes: int | None = None


class Sources:
    """The ConfigMaps and Secrets of one namespace, each read once, as mappings of bytes."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self._namespace = namespace
        self._read: dict[tuple[str, str], Mapping[str, bytes] | None] = {}

    async def find(self, kind: str, name: str) -> Mapping[str, bytes] | None:
        """The entries of a `configmap` or `secret`, or None where there is none."""
        if (kind, name) not in self._read:
            found = await self._api.get(f"/api/v1/namespaces/{self._namespace}/{kind}s/{name}")
            self._read[kind, name] = None if found is None else _entries(found)
        return self._read[kind, name]

    async def key(self, kind: str, reference: Object) -> str | None:
        """One entry; None if it is missing and may be."""
        entries = await self.find(kind, reference["name"])
        if entries is not None and reference["key"] in entries:
            return entries[reference["key"]].decode()
        if reference.get("optional"):
            return None
        if entries is None:
            raise NotReady("CreateContainerConfigError", f'{kind} "{reference["name"]}" not found')
        title = {"configmap": "ConfigMap", "secret": "Secret"}[kind]
        where = f"{self._namespace}/{reference['name']}"
        raise NotReady("CreateContainerConfigError", f"couldn't find key {reference['key']} in {title} {where}")


def _entries(found: Object) -> Mapping[str, bytes]:
    plain = {key: text.encode() for key, text in found.get("data", {}).items()}
    if found["kind"] == "Secret":
        return {key: base64.b64decode(text) for key, text in plain.items()}
    return plain | {key: base64.b64decode(text) for key, text in found.get("binaryData", {}).items()}


def field(pod: Object, path: str, *, pod_ip: str) -> str:
    """A field of the pod as the downward API gives it."""
    subscript = SUBSCRIPT.match(path)
    if subscript:
        return str(pod["metadata"].get(subscript[1], {}).get(subscript[2], ""))
    known = {
        "metadata.name": pod["metadata"]["name"],
        "metadata.namespace": pod["metadata"]["namespace"],
        "metadata.uid": pod["metadata"]["uid"],
        "spec.nodeName": pod["spec"]["nodeName"],
        "spec.serviceAccountName": pod["spec"].get("serviceAccountName", ""),
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
        "status.hostIP": "127.0.0.1",
    }
    if path not in known:
        raise NotReady("CreateContainerConfigError", f"field {path} isn't supported by the test node")
    return str(known[path])


def expand(text: str, values: Mapping[str, str]) -> str:
    """$(NAME) by its value, $$ by a dollar; what isn't known stays, as Kubernetes has it."""

    def replaced(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else values.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replaced, text)


async def environment(
    container: Object, pod: Object, *, image: Image, sources: Sources, pod_ip: str, services: Mapping[str, str]
) -> Mapping[str, str]:
    """Everything in the container's environment, the later over the earlier."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    values = {**inherited, "HOSTNAME": pod["metadata"]["name"], **services, **image.env}
    for source in container.get("envFrom", ()):
        values |= await _all_of(source, sources)
    for entry in container.get("env", ()):
        found = await _value(entry, pod, sources=sources, pod_ip=pod_ip)
        if found is not None:
            values[entry["name"]] = found if "valueFrom" in entry else expand(found, values)
    return values


async def _all_of(source: Object, sources: Sources) -> Mapping[str, str]:
    kind, reference = next((key[:-3].lower(), value) for key, value in source.items() if key.endswith("Ref"))
    entries = await sources.find(kind, reference["name"])
    if entries is None and not reference.get("optional"):
        raise NotReady("CreateContainerConfigError", f'{kind} "{reference["name"]}" not found')
    return {source.get("prefix", "") + key: value.decode() for key, value in (entries or {}).items()}


async def _value(entry: Object, pod: Object, *, sources: Sources, pod_ip: str) -> str | None:
    origin = entry.get("valueFrom")
    if not origin:
        return str(entry.get("value", ""))
    if "fieldRef" in origin:
        return field(pod, origin["fieldRef"]["fieldPath"], pod_ip=pod_ip)
    if "configMapKeyRef" in origin:
        return await sources.key("configmap", origin["configMapKeyRef"])
    if "secretKeyRef" in origin:
        return await sources.key("secret", origin["secretKeyRef"])
    raise NotReady("CreateContainerConfigError", f"{next(iter(origin))} isn't supported by the test node")


def command_line(container: Object, *, image: Image, env: Mapping[str, str]) -> tuple[str, ...]:
    """`command` replaces the image's entry point; `args` follow."""
    given = (*container.get("command", ()),) or None
    argv = (*(image.entrypoint if given is None else (expand(word, env) for word in given)),)
    argv += tuple(expand(word, env) for word in container.get("args", ()))
    if not argv:
        raise NotReady("CreateContainerError", "no command specified")
    return argv


def mounts(container: Object, *, volumes: Mapping[str, Volume], env: Mapping[str, str]) -> Sequence[processes.Mount]:
    """The container's volume mounts; a subPath that doesn't exist is made, as a kubelet does."""
    return [_mount(wanted, volumes[wanted["name"]], env=env) for wanted in container.get("volumeMounts", ())]


def _mount(wanted: Object, volume: Volume, *, env: Mapping[str, str]) -> processes.Mount:
    target, read_only = wanted["mountPath"], bool(wanted.get("readOnly")) or volume.read_only
    if volume.folder is None:
        return processes.Mount(target=target, read_only=read_only, tmpfs_bytes=volume.tmpfs_bytes)
    inside = wanted.get("subPath") or expand(wanted.get("subPathExpr", ""), env)
    source = (volume.folder / inside).resolve()
    if not source.is_relative_to(volume.folder.resolve()):
        raise NotReady("CreateContainerConfigError", f"subPath {inside!r} leads out of volume {wanted['name']!r}")
    if not source.exists():
        source.mkdir(parents=True)
    return processes.Mount(target=target, source=source, read_only=read_only)
