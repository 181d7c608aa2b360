"""Where the model comes from, and what is said when it isn't one."""

import json
import shutil
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import pytest

from finetune_api.data import DataFormat
from finetune_api.snapshot import FINAL_CODES
from finetune_api.trainer_config import ModelSource
from finetune_trainer.data import tokenizer
from finetune_trainer.errors import NoPermission, NotFound, SourceUnreachable
from finetune_trainer.sources import modelfolder, places
from tests import tiny_model


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _adapter_only(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def _half_a_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


BROKEN = {
    "no config.json": (_no_config, "is not a model: no config.json; "),
    "an adapter": (_adapter_only, "is an adapter, not a whole model"),
    "config.json cut off": (_half_a_config, "config.json can't be read"),
    "no tokenizer": (_no_tokenizer, "has no tokenizer: no tokenizer.json; "),
    "a tokenizer that isn't one": (_broken_tokenizer, "tokenizer.json can't be read"),
    "pickled weights": (_pickled, "no safetensors weights, only pytorch_model.bin; pickled weights can run code"),
    "no weights": (_no_weights, "has no weights: no *.safetensors"),
    "a weight file missing": (
        _missing_shard,
        "is not whole: model-00002-of-00002.safetensors of 2 weight files missing",
    ),
}


@pytest.mark.parametrize(("damage", "said"), BROKEN.values(), ids=BROKEN)
def test_a_folder_that_is_no_model_is_described(tmp_path: Path, damage: Any, said: str) -> None:
    folder = shutil.copytree(tiny_model.build(), tmp_path / "model")
    damage(folder)
    with pytest.raises(NotFound) as caught:
        _read(ModelSource(uri="pvc://models/broken", path=str(folder)))
    assert said in str(caught.value)
    assert "pvc://models/broken" in str(caught.value)


@pytest.mark.parametrize("name", ["missing", "file"])
def test_a_path_that_is_no_folder_is_described(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotFound, match="holds file"):
        _read(ModelSource(uri="pvc://models/x", path=str(tmp_path / name)))


def test_a_model_is_downloaded_from_the_hub_and_its_code_is_left_there(hub: "type[_Hub]") -> None:
    hub.files = {path.name: path.read_bytes() for path in tiny_model.build().iterdir()}
    hub.files |= {"modeling.py": b"raise SystemExit", "pytorch_model.bin": b"pickle"}
    found, encoder = _read(ModelSource(uri="hf://ml/tiny"))
    assert found.path.name == _Hub.COMMIT
    assert sorted(path.name for path in found.path.iterdir()) == sorted(p.name for p in tiny_model.build().iterdir())
    assert encoder.end == 2


REFUSALS = {
    "no such repository, asked with a token": (404, "RepoNotFound", NotFound, "is not on the hub, or is private"),
    "no such repository, asked without": (
        401,
        "RepoNotFound",
        NoPermission,
        "it doesn't exist, or is private or gated",
    ),
    "no such revision": (404, "RevisionNotFound", NotFound, "has no revision 'v2'"),
    "gated": (403, "GatedRepo", NoPermission, "is gated: accept its terms"),
    "a token that may not": (403, "", NoPermission, "refuses model hf://ml/tiny@v2 (403)"),
}


@pytest.mark.parametrize(("status", "code", "error", "said"), REFUSALS.values(), ids=REFUSALS)
def test_what_the_hub_refuses_is_explained(
    hub: "type[_Hub]", status: int, code: str, error: type[Exception], said: str
) -> None:
    hub.refusal = (status, code)
    with pytest.raises(error) as caught:
        modelfolder.find(ModelSource(uri="hf://ml/tiny@v2"))
    assert said in str(caught.value)


def test_trouble_of_the_hub_is_not_the_users_mistake(hub: "type[_Hub]") -> None:
    hub.refusal = (500, "")
    with pytest.raises(SourceUnreachable, match=r"model hf://ml/tiny can't be had: the hub .* \(it answers 500\)"):
        modelfolder.find(ModelSource(uri="hf://ml/tiny"))


@pytest.mark.parametrize("address", ["http://127.0.0.1:1", "http://hub.invalid"], ids=["refused", "no such host"])
def test_a_hub_that_is_not_there_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    for what, uri, ask in (
        ("model", "hf://ml/tiny", lambda uri: modelfolder.find(ModelSource(uri=uri))),
        ("dataset", "hf://ml/data", lambda uri: places.fetch(uri, DataFormat.AUTO, evaluation=False)),
    ):
        with pytest.raises(SourceUnreachable) as caught:
            ask(uri)
        told = str(caught.value)
        assert told.startswith(f"{what} {uri} can't be had: the hub {address} can't be reached (")
        assert "put the " in told
        assert "\n" not in told
        assert caught.value.exit_code not in FINAL_CODES


def test_without_a_way_to_the_hub_a_model_that_is_not_cached_is_not_found(
    hub: "type[_Hub]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotFound, match="hf://ml/tiny is not in the hub's cache here, and HF_HUB_OFFLINE"):
        modelfolder.find(ModelSource(uri="hf://ml/tiny"))


def _read(wanted: ModelSource) -> tuple[modelfolder.ModelFolder, tokenizer.TextEncoder]:
    found = modelfolder.find(wanted)
    encoder = tokenizer.load(found)
    modelfolder.fetch_weights(found)
    return found, encoder


class _Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs."""

    COMMIT = "0123456789abcdef0123456789abcdef01234567"
    files: ClassVar[dict[str, bytes]] = {}
    refusal: ClassVar[tuple[int, str] | None] = None

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if self.refusal is not None:
            self._send(self.refusal[0], b"{}", {"X-Error-Code": self.refusal[1], "X-Error-Message": "refused"})
        elif path.startswith("/api/models/ml/tiny"):
            entries = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in self.files.items()]
            siblings = [{"rfilename": n} for n in self.files]
            body: Any = entries if "/tree/" in path else {"id": "ml/tiny", "sha": self.COMMIT, "siblings": siblings}
            self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        elif name in self.files:
            headers = {"ETag": f'"{name}"', "X-Repo-Commit": self.COMMIT}
            self._send(200, self.files[name], headers, with_body=with_body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool = True) -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Say nothing."""


@pytest.fixture
def hub(serve_hub: Callable[[type[_Hub]], None]) -> type[_Hub]:
    handler = type("Hub", (_Hub,), {"files": {}, "refusal": None})
    serve_hub(handler)
    return handler
