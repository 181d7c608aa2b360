"""What an object of the operator's may name: things of its own namespace, and no others. Pure.

A reference is found by the place where Kubernetes reads it, whatever field of a run it came from; a place that isn't
known here is reported too, so that a new kind of reference can't slip by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
PLAIN_PATH = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
"""Below its start, whatever lies there: no part begins with a dot."""
KEY = re.compile(r"[-_a-zA-Z0-9][-._a-zA-Z0-9]*")
VOLUMES = frozenset({"persistentVolumeClaim", "configMap", "emptyDir", "downwardAPI"})
VALUES = frozenset({"secretKeyRef", "fieldRef"})
POD = frozenset(
    {
        "affinity",
        "automountServiceAccountToken",
        "containers",
        "enableServiceLinks",
        "fsGroup",
        "imagePullSecrets",
        "nodeSelector",
        "priorityClassName",
        "restartPolicy",
        "securityContext",
        "subdomain",
        "terminationGracePeriodSeconds",
        "tolerations",
        "volumes",
    }
)
"""All that a pod may say; above all no host's namespaces, no other account, no init container."""
CONTAINER = frozenset(
    {
        "args",
        "command",
        "env",
        "image",
        "livenessProbe",
        "name",
        "ports",
        "resources",
        "securityContext",
        "terminationMessagePolicy",
        "volumeMounts",
    }
)
Object = Mapping[str, Any]


def escapes(manifest: Object, *, namespace: str) -> list[str]:
    """What leads out of the namespace, in words; empty if nothing does."""
    return [*_namespaces(manifest, namespace, ""), *_names(manifest), *_pod(manifest)]


def _namespaces(node: Any, namespace: str, path: str) -> Iterator[str]:
    """Any field that names a namespace."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key.lower().startswith("namespace") and value != namespace:
                yield f"{path}.{key} is {value!r}"
            if key not in ("annotations", "value"):  # text that nobody follows
                yield from _namespaces(value, namespace, f"{path}.{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _namespaces(value, namespace, f"{path}[{number}]")


def _names(manifest: Object) -> Iterator[str]:
    for owner in manifest["metadata"].get("ownerReferences", ()):
        if owner["kind"] != "FineTuneRun":
            yield f"it is owned by a {owner['kind']}"
    name = manifest["metadata"]["name"]
    if not NAME.fullmatch(name):
        yield f"its name is {name!r}"


def _pod(manifest: Object) -> Iterator[str]:
    template = manifest.get("spec", {}).get("template")
    if template is None:
        return
    pod = template["spec"]
    yield from (f"the pod has {field}" for field in pod.keys() - POD)
    for secret in pod.get("imagePullSecrets", ()):
        yield from _name("imagePullSecrets", secret, "name")
    for volume in pod["volumes"]:
        yield from _volume(volume)
    for container in pod["containers"]:
        yield from (f"the container has {field}" for field in container.keys() - CONTAINER)
        yield from _environment(container)
        yield from _mounts(container)


def _volume(volume: Object) -> Iterator[str]:
    kind = next(key for key in volume if key != "name")
    if len(volume) != 2 or kind not in VOLUMES:
        yield f"volume {volume['name']} is a {kind}"
    elif kind == "persistentVolumeClaim":
        yield from _name(kind, volume[kind], "claimName")
    elif kind == "configMap":
        yield from _name(kind, volume[kind], "name")
        for item in volume[kind]["items"]:
            yield from (f"configMap item {text!r}" for text in item.values() if not KEY.fullmatch(text))


def _environment(container: Object) -> Iterator[str]:
    for entry in container["env"]:
        for kind, source in entry.get("valueFrom", {}).items():
            if kind not in VALUES:
                yield f"variable {entry['name']} comes from a {kind}"
            if kind == "secretKeyRef":
                yield from _name(kind, source, "name")


def _mounts(container: Object) -> Iterator[str]:
    for mount in container["volumeMounts"]:
        if not mount["mountPath"].startswith(("/mnt/", "/dev/shm")):
            yield f"something is mounted at {mount['mountPath']}"
        if not PLAIN_PATH.fullmatch(mount.get("subPath", "x")):
            yield f"subPath {mount['subPath']!r}"
        if "subPathExpr" in mount:
            yield f"subPathExpr {mount['subPathExpr']!r}"


def _name(kind: str, reference: Object, field: str) -> Iterator[str]:
    if not NAME.fullmatch(reference[field]):
        yield f"{kind} names {reference[field]!r}"
