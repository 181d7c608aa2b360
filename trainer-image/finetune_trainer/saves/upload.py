"""The copy of the output in s3:// or gs://: tried before the training begins, made and checked after it has ended.

Each file counts as copied once it was read back with the right sha256; the manifest goes last, so where it is the copy
is whole. One that broke off goes on: what is there and right isn't sent again. It must never replace another run's.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.snapshot import SavedOutput
from finetune_api.trainer_config import UPLOAD_PREFIX, TrainerConfig
from finetune_api.uris import Uri
from finetune_trainer.errors import ConfigInvalid, NoPermission, NotFound, Stopped, StorageFailed
from finetune_trainer.reporting import history, journal
from finetune_trainer.reporting.reporter import Reporter
from finetune_trainer.saves import durable
from finetune_trainer.sources import buckets

logger = logging.getLogger(__name__)

BLOCK = 8 << 20
PAUSES = (1, 2, 4, 8, 16, 32)
"""Seconds before each further attempt at a file."""
FIELD = "storage.uploadUri"
CREDENTIALS = "storage.credentials"


class UploadFailed(StorageFailed):
    """The store doesn't take the output; it is in the run's volume."""

    @property
    def reason(self) -> str:
        return "UploadFailed"


@dataclass(frozen=True)
class Place:
    """Where in a store the copy goes."""

    uri: str
    store: Any
    root: str

    @classmethod
    def of(cls, uri: str) -> "Place":
        """Raises OSError where the store can't be asked, ConfigInvalid for keys that are none."""
        parsed = Uri.parse(uri)
        own = {
            key.removeprefix(UPLOAD_PREFIX): value for key, value in os.environ.items() if key.startswith(UPLOAD_PREFIX)
        }
        store = buckets.connect(parsed, own or os.environ, field=CREDENTIALS)
        return cls(uri, store, f"{parsed.name}/{parsed.path}".rstrip("/"))

    def write(self, name: str, blocks: Iterator[bytes]) -> None:
        """Put a file there."""
        with self.store.open_output_stream(f"{self.root}/{name}") as out:
            for block in blocks:
                out.write(block)

    def read(self, name: str, most: int) -> bytes | None:
        """A small file; None if it isn't there."""
        try:
            with self.store.open_input_stream(f"{self.root}/{name}") as file:
                found: bytes = file.read(most)
                return found
        except OSError as error:
            if buckets.lacks(error):
                return None
            raise

    def digest(self, name: str, size: int, check: Callable[[], None]) -> str | None:
        """The sha256 of what is there; None if that is nothing, or of another size."""
        try:
            with self.store.open_input_file(f"{self.root}/{name}") as file:
                if file.size() != size:
                    return None
                read = hashlib.sha256()
                while block := file.read(BLOCK):
                    check()
                    read.update(block)
                return read.hexdigest()
        except OSError as error:
            if buckets.lacks(error):
                return None
            raise

    def remove(self, name: str) -> None:
        """Take a file away again."""
        self.store.delete_file(f"{self.root}/{name}")


def probe(config: TrainerConfig) -> None:
    """Learn whether the copy can be made, by making a small one. Raises NoPermission, NotFound or ConfigInvalid."""
    uri, name = config.output.upload_uri, f"finetune-probe-{config.run.uid}"
    if uri is None:
        return
    try:
        place = Place.of(uri)
        _refuse_other(place, config)
        content = f"run {config.run.namespace}/{config.run.name} can write here\n".encode()
        place.write(name, iter([content]))
        if place.read(name, 1000) != content:
            raise ConfigInvalid(f"{FIELD} {uri}: what was written there is not what is read from there")
    except OSError as error:
        raise _understood(error, uri) from error
    try:
        place.remove(name)
    except OSError as error:
        logger.warning("the small file %s/%s can't be removed again: %s", uri, name, buckets.said(error))


def send(config: TrainerConfig, reporter: Reporter, saved: SavedOutput, *, stop_requested: Callable[[], bool]) -> None:
    """Copy the output folder, and say so. Raises UploadFailed, NoPermission, NotFound or Stopped."""
    uri = config.output.upload_uri
    if uri is None:
        return
    try:
        _send(config, Place.of(uri), stop_requested)
    except OSError as error:
        raise _understood(error, uri) from error
    reporter.output_is(saved.model_copy(update={"upload_uri": uri}))


def _send(config: TrainerConfig, place: Place, stop_requested: Callable[[], bool]) -> None:
    def check() -> None:
        if stop_requested():
            raise Stopped(f"stopped on request while the output was copied to {place.uri}; the next attempt goes on")

    folder, began = Path(config.run_path) / history.OUTPUT, time.monotonic()
    try:
        files: Mapping[str, Any] = durable.read_manifest(folder)["files"]
    except durable.Damaged as damage:
        raise StorageFailed(f"the output in {folder} can't be copied to {place.uri}: {damage}") from damage
    manifest = (folder / durable.MANIFEST).read_bytes()
    _refuse_other(place, config)
    sent = 0
    if place.read(durable.MANIFEST, len(manifest) + 1) != manifest:
        last = {"size": len(manifest), "sha256": hashlib.sha256(manifest).hexdigest()}
        for name, entry in (*files.items(), (durable.MANIFEST, last)):
            sent += _copy(folder, name, entry, place, check)
    total = sum(entry["size"] for entry in files.values())
    journal.event(
        logger,
        "UPLOADED",
        f"the output is in {place.uri}, {len(files)} files of {total / 1e6:,.1f} MB, each read back and compared",
        uri=place.uri,
        bytes=total,
        bytesSent=sent,
        seconds=round(time.monotonic() - began, 1),
    )


def _copy(folder: Path, name: str, entry: Mapping[str, Any], place: Place, check: Callable[[], None]) -> int:
    """One file, until what is there is what it should be; returns the bytes sent."""
    size, wanted = int(entry["size"]), str(entry["sha256"])
    sent, trouble = 0, ""
    for pause in (0, *PAUSES):
        _wait(pause, check)
        try:
            if place.digest(name, size, check) == wanted:
                return sent
            place.write(name, _blocks(folder / name, check))
            sent += size
            if place.digest(name, size, check) == wanted:
                return sent
            trouble = "what is read from there is not what was written"
        except OSError as error:
            if buckets.refuses(error) or error.filename is not None:
                raise
            trouble = buckets.said(error)
        journal.event(logger, "UPLOAD_RETRIED", f"{name} to {place.uri}: {trouble}", logging.WARNING)
    raise UploadFailed(
        f"{FIELD} {place.uri}: {name} can't be copied: {trouble}; the output is whole in the run's volume, and the next"
        " attempt goes on with the copy"
    )


def _blocks(path: Path, check: Callable[[], None]) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            check()
            yield block


def _wait(seconds: float, check: Callable[[], None]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        check()
        time.sleep(0.1)


def _refuse_other(place: Place, config: TrainerConfig) -> None:
    found = place.read(durable.MANIFEST, 16 << 20)
    if found is None:
        return
    try:
        owner = json.loads(found)["run"]
    except (ValueError, KeyError, TypeError):
        owner = None
    if owner != config.run.uid:
        whose = f"the output of run {owner}" if owner else f"a {durable.MANIFEST} that is none of this software's"
        raise ConfigInvalid(f"{FIELD} {place.uri} holds {whose}: remove it, or name another place in a new run")


def _understood(error: OSError, uri: str) -> Exception:
    if buckets.refuses(error):
        return NoPermission(
            f"{FIELD} {uri}: the store refuses it; put credentials that may read and write there into the Secret that"
            f" {CREDENTIALS} names ({buckets.said(error)})"
        )
    if buckets.lacks(error):
        return NotFound(f"{FIELD} {uri}: there is no such bucket ({buckets.said(error)})")
    return error
