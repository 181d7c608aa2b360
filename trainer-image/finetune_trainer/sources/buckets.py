"""Files in s3:// and gs://, by pyarrow's own clients: it is there to read Parquet, so no library more is needed.

Credentials come from the environment, and never into a message.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from finetune_api.uris import Scheme, Uri
from finetune_trainer.errors import ConfigInvalid, NoPermission, NotFound, SourceUnreachable
from finetune_trainer.sources.downloads import Download, Version, folder_for

BLOCK = 8 << 20
ATTEMPTS = 3
"""How often a file is begun that changes while it is read."""

_REFUSED = (
    "ACCESS_DENIED",
    "EXPIRED_TOKEN",
    "INVALID_ACCESS_KEY_ID",
    "INVALID_CLIENT_TOKEN_ID",
    "PERMISSION_DENIED",
    "SIGNATURE_DOES_NOT_MATCH",
    "UNAUTHENTICATED",
    "status 401",
    "status 403",
)
"""What the clients' messages hold when a store refuses."""
_ABSENT = ("NO_SUCH_BUCKET", "NO_SUCH_KEY", "RESOURCE_NOT_FOUND", "NOT_FOUND", "status 404")


def fetch(uri: str, *, wanted: Callable[[str], bool] | None = None, what: str = "dataset") -> Path:
    """A file, or all wanted ones below a folder, downloaded.

    Raises NotFound, NoPermission, SourceUnreachable or StorageFailed.
    """
    place = Uri.parse(uri)
    try:
        return _fetch(place, uri, wanted or (lambda _: True), what)
    except OSError as error:
        raise _understood(error, uri, what) from error


def below(patterns: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a name at the top of a folder matches one of these patterns."""
    return lambda name: "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)


def _fetch(place: Uri, uri: str, wanted: Callable[[str], bool], what: str) -> Path:
    from pyarrow import fs

    store, folder = connect(place), folder_for(uri)
    path = f"{place.name}/{place.path}".rstrip("/")
    if store.get_file_info(path).type == fs.FileType.File:
        target = folder / path.rpartition("/")[2]
        _download(store, path, Download(target))
        return target
    found = store.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    names = sorted(each.path.removeprefix(f"{path}/") for each in found if each.type == fs.FileType.File)
    chosen = [name for name in names if _is_plain(name) and wanted(name)]
    if not chosen:
        held = f"{path} holds {', '.join(names[:10])}" if names else f"there is nothing at {path}"
        raise NotFound(f"{what} {uri} not found: {held}")
    target = folder / "files"
    for name in chosen:
        _download(store, f"{path}/{name}", Download(target / name))
    for stale in set(_held(target)) - set(chosen):
        if wanted(stale):
            (target / stale).unlink()
    return target


def _held(folder: Path) -> Iterator[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return (path.relative_to(folder).as_posix() for path in files)


def _is_plain(name: str) -> bool:
    """Whether an object's name is a path below the folder, and not one that hides or leads out of it."""
    parts = name.split("/")
    return "\\" not in name and all(part and not part.startswith(".") for part in parts)


def _download(store: Any, path: str, download: Download) -> None:
    for _ in range(ATTEMPTS):
        version = _version(store, path)
        if download.is_whole and download.kept == version:
            return
        try:
            with store.open_input_file(path) as file:
                at = download.begin(version, resume=True)
                while version.size is not None and at < version.size:
                    block = file.read_at(min(BLOCK, version.size - at), at)
                    download.add(block)
                    at += len(block)
        finally:
            download.pause()
        if _version(store, path) == version and download.finish(version):
            return
        download.forget()
    raise OSError(f"{path} changed each time it was read; try again when nobody writes it")


def _version(store: Any, path: str) -> Version:
    with store.open_input_file(path) as file:
        metadata = {key.decode().lower(): value.decode() for key, value in _pairs(file.metadata())}
        return Version(metadata.get("etag", ""), file.size())


def _pairs(metadata: Any) -> list[tuple[bytes, bytes]]:
    pairs = ((k, v) for k, v in (metadata or {}).items())
    return [(k.encode() if isinstance(k, str) else k, v.encode() if isinstance(v, str) else v) for k, v in pairs]


def connect(place: Uri, keys: Mapping[str, str] = os.environ, *, field: str = "dataset.credentials") -> Any:
    """The client of a place's store, with keys by the names of the environment; `field` is where they come from."""
    from pyarrow import fs

    if place.scheme == Scheme.S3:
        endpoint = keys.get("AWS_ENDPOINT_URL_S3") or keys.get("AWS_ENDPOINT_URL") or None
        region = keys.get("AWS_REGION") or keys.get("AWS_DEFAULT_REGION") or None
        trusted = os.environ.get("AWS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or None
        if region is None:
            region = "us-east-1" if endpoint else fs.resolve_s3_region(place.name)
        named = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        access, secret, session = (keys.get(name) or None for name in named)
        return fs.S3FileSystem(
            access_key=access if secret else None,
            secret_key=secret if access else None,
            session_token=session if access and secret else None,
            endpoint_override=endpoint,
            region=region,
            tls_ca_file_path=trusted,
        )
    endpoint = os.environ.get("STORAGE_EMULATOR_HOST")
    if endpoint:  # what Google's own libraries read, for tests
        return fs.GcsFileSystem(anonymous=True, scheme="http", endpoint_override=endpoint.partition("://")[2])
    with _service_account(keys, field):
        return fs.GcsFileSystem()


@contextmanager
def _service_account(keys: Mapping[str, str], field: str) -> Iterator[None]:
    """Google's library wants the key as a file: give it one that is in memory only, while the client is made."""
    key, before = keys.get("GOOGLE_SERVICE_ACCOUNT_JSON"), os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    if not key or (before and keys is os.environ):
        yield
        return
    try:
        json.loads(key)
    except ValueError as error:
        raise ConfigInvalid(f"{field}: GOOGLE_SERVICE_ACCOUNT_JSON is not JSON") from error
    file = os.memfd_create("service-account")  # stays open: the client may read it again
    os.write(file, key.encode())
    os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = f"/proc/self/fd/{file}"
    try:
        yield
    finally:
        del os.environ["GOOGLE_APPLICATION_CREDENTIALS"]
        if before:
            os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = before


def _understood(error: OSError, uri: str, what: str) -> Exception:
    if refuses(error):
        return NoPermission(
            f"{what} {uri}: the store refuses it; put credentials that may read it into the Secret that"
            f" {what}.credentials names ({said(error)})"
        )
    if lacks(error):
        return NotFound(f"{what} {uri} not found: {said(error)}")
    if error.filename is not None:
        return error
    return SourceUnreachable(
        f"{what} {uri} can't be had: {said(error)}. Another attempt goes on where this one stopped; where pods may not"
        " reach the store, use pvc://"
    )


def refuses(error: OSError) -> bool:
    """Whether a store says that it mustn't be."""
    refused = isinstance(error, PermissionError) or any(code in str(error) for code in _REFUSED)
    return error.filename is None and refused  # with a name it is of a file of this machine


def lacks(error: OSError) -> bool:
    """Whether a store says that there is no such thing."""
    return error.filename is None and (
        isinstance(error, FileNotFoundError) or any(code in str(error) for code in _ABSENT)
    )


def said(error: OSError) -> str:
    """What a store says, in short."""
    return str(error).partition(" (Request ID")[0].splitlines()[0][:300]
