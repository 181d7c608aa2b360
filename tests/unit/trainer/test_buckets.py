"""Data in s3:// and gs://: real downloads from moto's server, and from one that speaks Google's API."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest

from finetune_api.data import DataFormat
from finetune_api.trainer_config import ModelSource
from finetune_trainer.data import tokenizer
from finetune_trainer.errors import NoPermission, NotFound, SourceUnreachable
from finetune_trainer.sources import buckets, downloads, modelfolder, places
from tests import tiny_model

LARGE = bytes(n % 251 for n in range(20_000_000))


def test_a_file_is_downloaded_once(s3: Any) -> None:
    s3.put_object(Bucket="data", Key="support/train.jsonl", Body=b"one")
    found = buckets.fetch("s3://data/support/train.jsonl")
    assert (found.name, found.read_bytes()) == ("train.jsonl", b"one")
    first = found.stat().st_mtime_ns
    assert buckets.fetch("s3://data/support/train.jsonl").stat().st_mtime_ns == first
    s3.put_object(Bucket="data", Key="support/train.jsonl", Body=b"two")
    assert buckets.fetch("s3://data/support/train.jsonl").read_bytes() == b"two"


def test_a_folder_is_downloaded_without_what_isnt_data(s3: Any) -> None:
    for key in ("a/b.jsonl", "a/sub/a.jsonl", "a/x.pkl", "a/README.md", "a/../../../evil.jsonl", "a/.hidden.jsonl"):
        s3.put_object(Bucket="data", Key=key, Body=b"{}")
    found = places.fetch("s3://data/a", DataFormat.AUTO, evaluation=False)
    assert found.names == ["b.jsonl", "sub/a.jsonl"]
    held = [path.name for path in found.root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    assert sorted(held) == ["a.jsonl", "b.jsonl"]
    s3.delete_object(Bucket="data", Key="a/b.jsonl")
    assert places.fetch("s3://data/a", DataFormat.AUTO, evaluation=False).names == ["sub/a.jsonl"]


def test_a_download_that_was_broken_off_goes_on(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put_object(Bucket="data", Key="large.txt", Body=LARGE)
    real = downloads.Download.add
    taken: list[bytes] = []

    def broken(self: downloads.Download, data: bytes) -> None:
        if len(taken) == 1:
            taken.append(b"")
            raise ConnectionResetError(104, "reset")
        taken.append(data)
        real(self, data)

    monkeypatch.setattr(downloads.Download, "add", broken)
    with pytest.raises(SourceUnreachable, match="reset"):
        buckets.fetch("s3://data/large.txt")
    found = buckets.fetch("s3://data/large.txt")
    assert hashlib.sha256(found.read_bytes()).digest() == hashlib.sha256(LARGE).digest()
    assert sum(map(len, taken)) == len(LARGE)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (
            "s3://data/nothing.jsonl",
            "dataset s3://data/nothing.jsonl not found: there is nothing at data/nothing.jsonl",
        ),
        ("s3://no-such-bucket/x.jsonl", "dataset s3://no-such-bucket/x.jsonl not found: "),
    ],
)
def test_what_isnt_there_is_told(s3: Any, uri: str, said: str) -> None:
    with pytest.raises(NotFound) as caught:
        buckets.fetch(uri)
    assert str(caught.value).startswith(said)


def test_a_store_that_refuses_is_told_without_the_key(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = _serve(type("Refusing", (_Refusing,), {}))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(NoPermission) as caught:
        buckets.fetch("s3://data/train.jsonl")
    assert "the store refuses it; put credentials that may read it into the Secret that dataset.credentials" in str(
        caught.value
    )
    assert "testing-key" not in str(caught.value)
    server.shutdown()
    server.server_close()


def test_a_store_that_cant_be_reached_is_not_the_users_mistake(monkeypatch: pytest.MonkeyPatch, s3: Any) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(
        SourceUnreachable, match=r"dataset s3://data/train.jsonl can't be had: .*NETWORK_CONNECTION.*pvc://"
    ):
        buckets.fetch("s3://data/train.jsonl")


def test_a_model_is_downloaded_and_its_pickles_are_left_there(tiny: Path, s3: Any) -> None:
    for path in tiny.iterdir():
        s3.put_object(Bucket="data", Key=f"model/{path.name}", Body=path.read_bytes())
    s3.put_object(Bucket="data", Key="model/pytorch_model.bin", Body=b"pickle")
    found = modelfolder.find(ModelSource(uri="s3://data/model"))
    assert not (found.path / "model.safetensors").exists()
    assert tokenizer.load(found).end == 2
    modelfolder.fetch_weights(found)
    assert sorted(path.name for path in found.path.iterdir() if not path.name.startswith(".")) == sorted(
        path.name for path in tiny.iterdir()
    )


def test_a_file_and_a_folder_of_gs_are_downloaded(gs: Path) -> None:
    (gs / "a").mkdir()
    (gs / "a" / "b.jsonl").write_bytes(b"{}")
    (gs / "a" / "c.jsonl").write_bytes(LARGE[:9_000_000])
    assert buckets.fetch("gs://data/a/b.jsonl").read_bytes() == b"{}"
    found = places.fetch("gs://data/a", DataFormat.AUTO, evaluation=False)
    assert [path.read_bytes() for path in found.paths] == [b"{}", LARGE[:9_000_000]]


def test_what_gs_hasnt_is_told(gs: Path) -> None:
    with pytest.raises(NotFound, match="dataset gs://data/a not found: there is nothing at data/a"):
        buckets.fetch("gs://data/a")


def test_what_gs_refuses_is_told(gs: Path) -> None:
    (gs / "refuse").touch()
    with pytest.raises(NoPermission, match="dataset gs://data/a: the store refuses it"):
        buckets.fetch("gs://data/a")


@pytest.fixture(scope="module")
def tiny() -> Path:
    return tiny_model.build()  # before a test has a cache folder of its own


@pytest.fixture
def s3(s3_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    for each in client.list_objects_v2(Bucket="data").get("Contents", ()):
        client.delete_object(Bucket="data", Key=each["Key"])
    return client


class _Refusing(BaseHTTPRequestHandler):
    """A store that knows nobody."""

    def do_GET(self) -> None:
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/xml")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - as the base class asks for it

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Say nothing."""


@pytest.fixture
def gs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder with what is in gs://data. Its server is a process: some calls of the client hold the interpreter."""
    folder = tmp_path / "objects"
    folder.mkdir()
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "tests.google_store", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as server:
        assert server.stdout is not None
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.stdout.readline().strip()}")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield folder
        server.kill()


def _serve(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server
