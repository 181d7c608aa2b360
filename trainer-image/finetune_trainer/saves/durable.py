"""Folders that appear whole or not at all, whatever kills the process, and a manifest that proves they still are.

Order: fill a temporary folder beside the target, fsync its files, write the manifest, fsync, rename, fsync the parent.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"

READABLE = 0o644

_NEW, _OLD = ".tmp-", ".old-"


class Damaged(Exception):
    """A folder isn't what its manifest says."""


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill. It takes the place of `target` if the block ends well, and leaves no trace if it doesn't."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(target)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        _sync_tree(temporary)
        _publish(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def unfinished(target: Path) -> Path:
    """Where `new_folder` lies until it is whole."""
    return target.parent / f"{_NEW}{target.name}"


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """List the folder's files, all of them safe on disk, with size and sha256, beside some facts, and sign it."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in files:
        _sync(path)
    listed = {str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": sha256(path)} for path in files}
    (folder / MANIFEST).write_text(_signed({**facts, "files": listed}), encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, if every file it lists is there with its size. Raises Damaged."""
    manifest = _read(folder / MANIFEST)
    try:
        sizes = {name: int(entry["size"]) for name, entry in manifest["files"].items()}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} lists no files") from error
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if path.stat().st_size != size:
            raise Damaged(f"{name} has {path.stat().st_size} bytes instead of {size}")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest, if every file has the content it lists, and there is no other. Raises Damaged."""
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        try:
            same = sha256(folder / name) == entry["sha256"]
        except OSError as error:
            raise Damaged(f"{name} can't be read: {error.strerror}") from error
        if not same:
            raise Damaged(f"{name} has other content than when it was saved")
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    unknown = sorted(there - manifest["files"].keys() - {MANIFEST})
    if unknown:  # a library that loads the folder might take it for a part
        raise Damaged(f"{unknown[0]} has been added to it")
    return manifest


def replace_link(link: Path, target: str) -> None:
    """Let a symbolic link point to `target`, without a moment in which it is missing."""
    temporary = link.parent / f"{_NEW}{link.name}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
    _sync(link.parent)


def remove(folder: Path) -> None:
    """Delete a folder so that a half-deleted one is never taken for a whole one."""
    doomed = folder.parent / f"{_NEW}{folder.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clear_leftovers(parent: Path) -> None:
    """Remove what killed saves have left."""
    for old in parent.glob(f"{_OLD}*"):
        target = parent / old.name.removeprefix(_OLD)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for temporary in parent.glob(f"{_NEW}*"):
        if temporary.is_symlink() or temporary.is_file():
            temporary.unlink()
        else:
            shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    """Digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_size(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _signed(manifest: Mapping[str, Any]) -> str:
    """Its text, with the digest of all else in it as the last entry."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}, indent=1) + "\n"


def _read(path: Path) -> dict[str, Any]:
    """A manifest that is as it was written, byte for byte. Raises Damaged."""
    try:
        text = path.read_text(encoding="utf-8")
        manifest: dict[str, Any] = json.loads(text)
        unsigned = {key: value for key, value in manifest.items() if key != "sha256"}
    except FileNotFoundError as error:
        raise Damaged(f"{MANIFEST} is missing") from error
    except (OSError, ValueError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} can't be read") from error
    if text != _signed(unsigned):
        raise Damaged(f"{MANIFEST} has other content than when it was saved")
    return unsigned


def _publish(temporary: Path, target: Path) -> None:
    old = target.parent / f"{_OLD}{target.name}"
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    temporary.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(READABLE)  # safetensors makes its files for the owner alone
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        with suppress(OSError):
            os.close(handle)
