"""Datasets of a hub, from a local server that speaks its API."""

import json
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import ClassVar

import pytest

from finetune_api.data import DataFormat
from finetune_trainer.errors import NoPermission, NotFound
from finetune_trainer.sources import places

CARD = b"""---
configs:
- config_name: main
  default: true
  data_files:
  - {split: train, path: 'main/*.jsonl'}
---
# It
"""


def test_the_files_of_a_split_are_downloaded_and_no_others(hub: "type[_Hub]") -> None:
    hub.files = {"train.jsonl": b"1", "validation.jsonl": b"2", "test.jsonl": b"3", "run.py": b"raise SystemExit"}
    assert _read("hf://ml/data") == {"train.jsonl": b"1"}
    assert _read("hf://ml/data:test") == {"test.jsonl": b"3"}
    assert _read("hf://ml/data", evaluation=True) == {"validation.jsonl": b"2"}
    assert "/run.py" not in "".join(hub.paths)


def test_the_card_says_what_a_split_is(hub: "type[_Hub]") -> None:
    hub.files = {"README.md": CARD, "main/a.jsonl": b"1", "other/train.jsonl": b"2"}
    assert _read("hf://ml/data") == {"main/a.jsonl": b"1"}


def test_a_revision_is_asked_for(hub: "type[_Hub]") -> None:
    hub.files = {"train.jsonl": b"1"}
    _read("hf://ml/data@v2")
    assert "/api/datasets/ml/data/revision/v2" in hub.paths[0]


def test_of_a_script_the_hubs_parquet_is_taken(hub: "type[_Hub]") -> None:
    hub.files = {"data.py": b"raise SystemExit", "README.md": b"# It"}
    hub.converted = {"default/train/0000.parquet": b"PAR1"}
    assert _read("hf://ml/data") == {"default/train/0000.parquet": b"PAR1"}
    assert "/data.py" not in "".join(hub.paths)


def test_a_script_without_parquet_is_refused_by_its_name(hub: "type[_Hub]") -> None:
    hub.files = {"data.py": b"raise SystemExit"}
    with pytest.raises(NotFound) as caught:
        _read("hf://ml/data")
    assert "hf://ml/data: it is made by a script, data.py, which is never run, and the hub has no Parquet of it" in str(
        caught.value
    )


def test_a_split_that_isnt_there_is_told(hub: "type[_Hub]") -> None:
    hub.files = {"train.jsonl": b"1"}
    with pytest.raises(NotFound, match="dataset hf://ml/data:dev: it has no split dev: there is train"):
        _read("hf://ml/data:dev")


@pytest.mark.parametrize(
    ("status", "code", "error", "said"),
    [
        (404, "RepoNotFound", NotFound, "is not on the hub, or is private"),
        (404, "RevisionNotFound", NotFound, "has no revision 'v2'"),
        (403, "GatedRepo", NoPermission, "is gated: accept its terms"),
        (401, "RepoNotFound", NoPermission, "the hub refuses dataset hf://ml/data@v2 (401)"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    hub: "type[_Hub]", status: int, code: str, error: type[Exception], said: str
) -> None:
    hub.refusal = (status, code)
    with pytest.raises(error) as caught:
        _read("hf://ml/data@v2")
    assert said in str(caught.value)


def _read(uri: str, *, evaluation: bool = False) -> dict[str, bytes]:
    found = places.fetch(uri, DataFormat.AUTO, evaluation=evaluation)
    return {name: path.read_bytes() for name, path in zip(found.names, found.paths, strict=True)}


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as a dataset needs."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"
    PARQUET = "f" * 40
    files: ClassVar[dict[str, bytes]] = {}
    converted: ClassVar[dict[str, bytes]] = {}
    refusal: ClassVar[tuple[int, str] | None] = None
    paths: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.paths.append(path)
        parquet = "refs/convert/parquet" in path or self.PARQUET in path
        files, commit = (self.converted, self.PARQUET) if parquet else (self.files, self.COMMIT)
        name = path.partition(f"/{commit}/")[2]
        if self.refusal is not None:
            self._send(self.refusal[0], b"{}", {"X-Error-Code": self.refusal[1], "X-Error-Message": "refused"})
        elif parquet and not files:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/datasets/ml/data"):
            entries = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
            found = {"id": "ml/data", "sha": commit, "siblings": [{"rfilename": n} for n in files]}
            body = json.dumps(entries if "/tree/" in path else found).encode()
            self._send(200, body, {"Content-Type": "application/json"})
        elif name in files:
            self._send(200, files[name], {"ETag": f'"{name.replace("/", "-")}"', "X-Repo-Commit": commit})
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET  # noqa: N815 - as the base class asks for it

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Say nothing."""


@pytest.fixture
def hub(serve_hub: Callable[[type[_Hub]], None]) -> type[_Hub]:
    handler = type("Hub", (_Hub,), {"files": {}, "converted": {}, "refusal": None, "paths": []})
    serve_hub(handler)
    return handler
