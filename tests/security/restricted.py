"""Pod Security `restricted` as a function of a pod: what it would refuse. Pure.

The API server's own answer is the measure: test_restricted_server.py compares the two on good pods and on bad ones.
https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Object = Mapping[str, Any]

VOLUMES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)
PROFILES = ("RuntimeDefault", "Localhost")
APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
SELINUX = frozenset({"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"})


def breaches(template: Object) -> list[str]:
    """Everything in a pod template that `restricted` forbids, in words."""
    return [*_pod(template["spec"]), *_annotations(template.get("metadata", {})), *_containers(template["spec"])]


def _pod(spec: Object) -> Iterator[str]:
    yield from (f"{field} is set" for field in ("hostNetwork", "hostPID", "hostIPC") if spec.get(field))
    for volume in spec.get("volumes", ()):
        yield from (f"volume {volume['name']} is a {kind}" for kind in volume if kind not in VOLUMES | {"name"})
    context = spec.get("securityContext", {})
    if context.get("sysctls"):
        yield "sysctls are set"
    yield from _context("the pod", context)


def _annotations(metadata: Object) -> Iterator[str]:
    for key, value in (metadata.get("annotations") or {}).items():
        if key.startswith(APPARMOR) and value != "runtime/default" and not value.startswith("localhost/"):
            yield f"annotation {key} is {value}"


def _containers(spec: Object) -> Iterator[str]:
    whole = spec.get("securityContext", {})
    for field in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(field, ()):
            yield from _container(container, whole)


def _container(container: Object, whole: Object) -> Iterator[str]:
    name, own = container["name"], container.get("securityContext", {})
    capabilities = own.get("capabilities", {})
    forbidden = {
        "is privileged": own.get("privileged"),
        "may gain privileges": own.get("allowPrivilegeEscalation") is not False,
        "may run as root": not own.get("runAsNonRoot", whole.get("runAsNonRoot")),
        "has no seccomp profile": "seccompProfile" not in own and "seccompProfile" not in whole,
        "keeps capabilities": "ALL" not in capabilities.get("drop", ()),
        "adds capabilities": set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"},
        "takes a port of the host": any(port.get("hostPort") for port in container.get("ports", ())),
        "sees all of /proc": own.get("procMount", "Default") != "Default",
        "asks another host": any(map(_asks_a_host, _handlers(container))),
    }
    yield from (f"{name} {what}" for what, is_so in forbidden.items() if is_so)
    yield from _context(name, own)


def _handlers(container: Object) -> Iterator[Object]:
    yield from (container[probe] for probe in ("livenessProbe", "readinessProbe", "startupProbe") if probe in container)
    yield from container.get("lifecycle", {}).values()


def _asks_a_host(handler: Object) -> bool:
    return any(handler.get(kind, {}).get("host") for kind in ("httpGet", "tcpSocket"))


def _context(who: str, context: Object) -> Iterator[str]:
    """What a pod's and a container's security context have in common."""
    if context.get("runAsUser") == 0:
        yield f"{who} runs as user 0"
    if context.get("runAsNonRoot") is False:
        yield f"{who} may run as root"
    if context.get("seccompProfile", {"type": PROFILES[0]}).get("type") not in PROFILES:
        yield f"{who} is without seccomp"
    if context.get("appArmorProfile", {"type": PROFILES[0]}).get("type") not in PROFILES:
        yield f"{who} is without AppArmor"
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{who} is a host process"
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type", "") not in SELINUX or selinux.get("user") or selinux.get("role"):
        yield f"{who} chooses its SELinux context"
