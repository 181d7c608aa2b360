"""What somebody writes into a field to get at what isn't theirs: other namespaces, parent folders, addresses inside."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

NAMES: Sequence[str] = (
    "other/keys",
    "other:keys",
    "other.keys",
    "other~keys",
    "../other/keys",
    "../../secrets/keys",
    "/api/v1/namespaces/other/secrets/keys",
    "/etc/passwd",
    "kube-system/bootstrap",
    "keys?namespace=other",
    "keys#other",
    "keys%2f..%2fother",
    "keys;other",
    "keys\nnamespace: other",
    "keys\x00other",
    "clusterrole/cluster-admin",
    "Secret/keys",
    "*",
    "$(KEYS)",
    "${KEYS}",
    "{{ keys }}",
)
"""For a field that names an object."""

_UP = (
    "..",
    "..\\",
    "%2e%2e",
    "%252e%252e",
    ".%2e",
    "..;",
    "\u2025",
    "\uff0e\uff0e",
    "....//",
    "..\x00",
    ".. ",
    "\t..",
    ".",
)
_WHERE = ("{up}/x", "a/{up}/x", "a/{up}/{up}/{up}/etc/passwd", "{up}", "a/{up}", "a//{up}/x", "./{up}/x", "\\{up}\\x")


def paths() -> Iterator[str]:
    """Ways to a parent folder, to the root, and to what hides."""
    for up, where in itertools.product(_UP, _WHERE):
        yield where.format(up=up)
    yield from (
        "/etc/passwd",
        "//etc/passwd",
        "a//b",
        "~/x",
        "~root/x",
        "C:\\x",
        "\\\\host\\share",
        ".git/config",
        "a/.ssh",
    )
    yield from (
        "a\nb",
        "a\rb",
        "a\x00b",
        "a\x1b[31m",
        "\x7f",
        "a\x85b",
        "file:///etc/passwd",
        "proc/../../../proc/self/environ",
    )


def uris() -> Iterator[str]:
    """The same behind each scheme, and schemes that there aren't."""
    for scheme in (
        "pvc://claim/",
        "s3://bucket/",
        "gs://bucket/",
        "https://host/",
        "configmap://name/",
        "run://other/",
        "hf://",
    ):
        yield from (scheme + path for path in paths())
    for name in NAMES:
        yield from (f"{scheme}://{name}/x" for scheme in ("pvc", "configmap", "s3", "gs", "https", "run"))
        yield from (f"{scheme}://{name}" for scheme in ("hf", "run"))
    yield from (
        "file:///etc/passwd",
        "http://host/x",
        "ftp://host/x",
        "gopher://host/x",
        "jar:https://host!/x",
        "data:,x",
    )
    yield from (
        "dict://host/x",
        "ldap://host/x",
        "javascript:x",
        "PVC://claim/x",
        "pvc:/claim/x",
        "pvc:claim",
        "//host/x",
    )
    yield from (
        "https://user:password@host/x",
        "https://user@host/x",
        "https://host\\@other/x",
        "https://[::1]/x",
        "https:///x",
    )


def short() -> Sequence[str]:
    """For a field of any kind: every name, and of the paths every seventh."""
    return (*NAMES, *itertools.islice(paths(), 0, None, 7))


def everything() -> Sequence[str]:
    """For a field that holds a place."""
    return (*NAMES, *paths(), *uris())
