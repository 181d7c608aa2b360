"""Where models and data lie: hf:// pvc:// s3:// gs:// https:// configmap:// run://. Parsed here, once.

No form can name another namespace, a host path or a parent folder.
"""

import posixpath
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field

from finetune_api.fields import NAME_PATTERN, Format


class Scheme(StrEnum):
    """How a place is reached."""

    HUB = "hf"
    CLAIM = "pvc"
    S3 = "s3"
    GCS = "gs"
    HTTPS = "https"
    CONFIG_MAP = "configmap"
    RUN = "run"


@dataclass(frozen=True)
class Uri:
    """A parsed place.

    `name` is the first part: a repository (`org/name`) for hf, a claim, bucket, host, ConfigMap or run for the others;
    `path` the rest, without a leading slash; `revision` what follows `@` in hf:// (a branch, tag or commit), `split`
    what follows `:` there.
    """

    scheme: Scheme
    name: str
    path: str = ""
    revision: str | None = None
    split: str | None = None

    @classmethod
    def parse(cls, value: str) -> Self:
        """Read a URI. Raises ValueError with the form that would be right."""
        scheme, found, rest = value.partition("://")
        if not found or scheme not in list(Scheme):
            raise ValueError(f"{value!r} has no known scheme; use one of {', '.join(f'{s}://' for s in Scheme)}")
        if scheme == Scheme.HUB:
            return cls._parse_hub(value, rest)
        name, _, path = rest.partition("/")
        if not name or not _is_plain(path):
            raise ValueError(f"{value!r} must be {scheme}://NAME/PATH, where PATH stays below NAME (no .. in it)")
        return cls(Scheme(scheme), name, path.rstrip("/"))

    @classmethod
    def _parse_hub(cls, value: str, rest: str) -> Self:
        found = re.fullmatch(_HUB, rest, re.ASCII)
        if found is None:
            raise ValueError(f"{value!r} must be hf://ORGANIZATION/NAME[@REVISION][:SPLIT]")
        return cls(Scheme.HUB, found["repo"], revision=found["revision"], split=found["split"])


_PART = r"\w(\.?[\w-])*"
_HUB = rf"(?P<repo>{_PART}(/{_PART})?)(@(?P<revision>\w(\.?[\w/-])*))?(:(?P<split>{_PART}))?"
_PLAIN = r"[^\x00-\x1f\\%]*"


def _is_plain(path: str) -> bool:
    """Whether a path, as written, stays where it starts: no `..`, no empty part, no escapes, no control characters."""
    if not re.fullmatch(_PLAIN, path):
        return False
    return path == "" or (posixpath.normpath(path) == path.rstrip("/") and not path.startswith((".", "/")))


_SEGMENTS = r"[^/\\%\x00-\x1f.][^/\\%\x00-\x1f]*(/[^/\\%\x00-\x1f.][^/\\%\x00-\x1f]*)*/?"
_REPOSITORY = rf"hf://{_PART}(/{_PART})?(@\w(\.?[\w/-])*)?"
_CLAIM = rf"pvc://{NAME_PATTERN}"
_BUCKET = r"(s3|gs)://[a-z0-9][-a-z0-9._]*"

ModelUri = Annotated[
    str,
    Field(max_length=512),
    Format(
        rf"^({_REPOSITORY}|({_CLAIM}|{_BUCKET})(/{_SEGMENTS})?|run://{NAME_PATTERN}(/[a-z0-9-]+)?)$",
        "must be hf://ORGANIZATION/NAME[@REVISION], pvc://CLAIM/PATH, s3://BUCKET/PATH, gs://BUCKET/PATH or"
        " run://RUN[/CHECKPOINT]; no part of a path may begin with a dot",
    ),
]
DataUri = Annotated[
    str,
    Field(max_length=512),
    Format(
        rf"^({_REPOSITORY}(:{_PART})?|({_CLAIM}|{_BUCKET}|https://[A-Za-z0-9][-A-Za-z0-9.]*(:[0-9]+)?)/{_SEGMENTS}"
        rf"|configmap://{NAME_PATTERN}/[-_a-zA-Z0-9][-._a-zA-Z0-9]*)$",
        "must be pvc://CLAIM/PATH, configmap://NAME/KEY, hf://NAME[:SPLIT], s3://BUCKET/PATH, gs://BUCKET/PATH or"
        " https://HOST/PATH; no part of a path may begin with a dot",
    ),
]
UploadUri = Annotated[
    str,
    Field(max_length=512),
    Format(rf"^{_BUCKET}(/{_SEGMENTS})?$", "must be s3://BUCKET/PATH or gs://BUCKET/PATH"),
]
