"""The copy of the output: tried before the training, sent, read back, gone on with, and never over another run's."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest

from finetune_api.snapshot import ExitCode, SavedOutput
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.errors import ConfigInvalid, NoPermission, NotFound, Stopped, StorageFailed
from finetune_trainer.reporting.reporter import Reporter
from finetune_trainer.saves import durable, upload
from tests import trainer_builders, trainer_process

URI = "s3://models/team/support-bot"
LARGE = bytes(n % 251 for n in range(9_000_000))


def configured(folder: Path, uri: str = URI, **changes: Any) -> TrainerConfig:
    return trainer_builders.parsed(folder, trainer_builders.merged({"output": {"uploadUri": uri}}, changes))


@pytest.fixture
def finished(tmp_path: Path) -> TrainerConfig:
    """A run whose output is in place."""
    config = configured(tmp_path)
    with durable.new_folder(Path(config.run_path) / "output") as folder:
        (folder / "adapter_model.safetensors").write_bytes(LARGE)
        (folder / "README.md").write_text("a card")
        (folder / "empty.txt").touch()
        (folder / "training_logs").mkdir()
        (folder / "training_logs" / "user_params.json").write_text("{}")
        durable.write_manifest(folder, {"version": 1, "run": config.run.uid, "checkpoint": "ep1-ba1"})
    return config


def send(config: TrainerConfig, **options: Any) -> Reporter:
    reporter = Reporter(config.run.uid, attempt=1)
    never = {"stop_requested": lambda: False}
    upload.send(config, reporter, SavedOutput(path="output"), **(never | options))
    return reporter


def held(s3: Any) -> dict[str, bytes]:
    keys = [each["Key"] for each in s3.list_objects_v2(Bucket="models").get("Contents", ())]
    return {key: s3.get_object(Bucket="models", Key=key)["Body"].read() for key in keys}


def local(config: TrainerConfig) -> dict[str, bytes]:
    output = Path(config.run_path) / "output"
    files = [path for path in output.rglob("*") if path.is_file()]
    return {f"team/support-bot/{path.relative_to(output)}": path.read_bytes() for path in files}


def test_all_of_the_output_is_copied_and_told(s3: Any, finished: TrainerConfig) -> None:
    told = send(finished).snapshot().output
    assert told is not None
    assert told.upload_uri == URI
    assert held(s3) == local(finished)


def test_the_manifest_goes_last(s3: Any, finished: TrainerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = upload.Place.write

    def noted(self: upload.Place, name: str, blocks: Iterator[bytes]) -> None:
        order.append(name)
        real(self, name, blocks)

    monkeypatch.setattr(upload.Place, "write", noted)
    send(finished)
    assert order[-1] == durable.MANIFEST
    order.clear()
    send(finished)
    assert order == [], "what is whole isn't sent again"


def test_a_copy_that_broke_off_goes_on(s3: Any, finished: TrainerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    send(finished)
    s3.delete_object(Bucket="models", Key="team/support-bot/manifest.json")
    s3.put_object(Bucket="models", Key="team/support-bot/README.md", Body=b"A CARD")  # as long, and not the same
    s3.delete_object(Bucket="models", Key="team/support-bot/training_logs/user_params.json")
    sent: list[str] = []
    real = upload.Place.write

    def noted(self: upload.Place, name: str, blocks: Iterator[bytes]) -> None:
        sent.append(name)
        real(self, name, blocks)

    monkeypatch.setattr(upload.Place, "write", noted)
    send(finished)
    assert sent == ["README.md", "training_logs/user_params.json", "manifest.json"]
    assert held(s3) == local(finished)


def test_what_isnt_read_back_as_it_was_is_sent_again(
    s3: Any, finished: TrainerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PAUSES", (0, 0))
    real = upload.Place.write
    spoilt: list[str] = []

    def spoiling(self: upload.Place, name: str, blocks: Iterator[bytes]) -> None:
        content = b"".join(blocks)
        if name.endswith(".safetensors") and not spoilt:
            spoilt.append(name)
            content = content[:-1] + b"?"
        real(self, name, iter([content]))

    monkeypatch.setattr(upload.Place, "write", spoiling)
    send(finished)
    assert spoilt
    assert held(s3) == local(finished)


def test_a_store_that_never_takes_it_ends_the_attempt_and_names_field_and_file(
    s3: Any, finished: TrainerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PAUSES", (0, 0))

    def broken(self: upload.Place, name: str, blocks: Iterator[bytes]) -> None:
        raise OSError("When completing multipart upload: AWS Error NETWORK_CONNECTION")

    monkeypatch.setattr(upload.Place, "write", broken)
    with pytest.raises(
        upload.UploadFailed, match=r"storage\.uploadUri s3://models/team/support-bot: README\.md"
    ) as caught:
        send(finished)
    assert caught.value.exit_code == ExitCode.STORAGE
    assert caught.value.reason == "UploadFailed"
    assert "team/support-bot/manifest.json" not in held(s3)


def test_a_file_that_has_changed_here_is_never_taken_for_whole(
    s3: Any, finished: TrainerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PAUSES", (0,))
    (Path(finished.run_path) / "output" / "README.md").write_text("A CARD")
    with pytest.raises(StorageFailed):
        send(finished)
    assert "team/support-bot/manifest.json" not in held(s3)


def test_a_stop_is_heard_while_it_is_copied(s3: Any, finished: TrainerConfig) -> None:
    asked = iter([False, False, True])
    with pytest.raises(Stopped, match="the next attempt goes on"):
        send(finished, stop_requested=lambda: next(asked, True))
    assert "team/support-bot/manifest.json" not in held(s3)
    send(finished)
    assert held(s3) == local(finished)


def test_the_probe_leaves_no_file_behind(s3: Any, tmp_path: Path) -> None:
    upload.probe(configured(tmp_path))
    assert held(s3) in ({}, {"team/support-bot/": b""}), "at most a folder, which S3 knows as an empty object"
    upload.probe(configured(tmp_path, "s3://models"))


@pytest.mark.parametrize("content", [b'{"run": "another"}', b"<html>"])
def test_another_run_s_copy_is_never_replaced(s3: Any, tmp_path: Path, finished: TrainerConfig, content: bytes) -> None:
    s3.put_object(Bucket="models", Key="team/support-bot/manifest.json", Body=content)
    with pytest.raises(ConfigInvalid, match=r"storage\.uploadUri .* holds .*: remove it, or name another place"):
        upload.probe(configured(tmp_path))
    with pytest.raises(ConfigInvalid):
        send(finished)


def test_a_bucket_that_isnt_there_is_told_before_the_training(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"storage\.uploadUri s3://no-such/x: there is no such bucket"):
        upload.probe(configured(tmp_path, "s3://no-such/x"))


def test_bad_keys_end_the_run_before_the_training_with_code_77(
    refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "bad-key", "AWS_SECRET_ACCESS_KEY": "bad-secret", "AWS_ENDPOINT_URL": refusing}
    environment = {f"FINETUNE_UPLOAD_{name}": value for name, value in keys.items()} | {"no_proxy": "127.0.0.1"}
    config = trainer_builders.configuration(tmp_path, {"output": {"uploadUri": URI}})
    attempt = trainer_process.run(config, environment=environment)
    assert attempt.process.exitcode == ExitCode.NO_PERMISSION
    error = attempt.last_word().error
    assert error is not None
    assert "storage.uploadUri s3://models/team/support-bot: the store refuses it" in error.message
    assert "storage.credentials" in error.message
    assert "bad-" not in attempt.log.read_text()
    assert not attempt.messages("DATA_VALIDATED"), "no data was read, no model loaded"


def test_keys_of_the_upload_stay_apart_from_those_of_the_data(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.setenv(f"FINETUNE_UPLOAD_{name}", os.environ[name])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    upload.probe(configured(tmp_path))


def test_a_run_uploads_and_a_killed_one_goes_on_with_the_copy(s3: Any, tmp_path: Path) -> None:
    config = trainer_builders.configuration(
        tmp_path, {"output": {"uploadUri": URI}, "training": {"maxDuration": "1ba"}}
    )
    environment = _environment()
    first = trainer_process.run(config, environment=environment)
    assert first.process.exitcode == 0, first.log.read_text()[-2000:]
    whole = held(s3)
    assert {"README.md", "adapter_model.safetensors", "manifest.json", "training_logs/user_params.json"} <= {
        key.removeprefix("team/support-bot/") for key in whole
    }
    for name, entry in json.loads(whole["team/support-bot/manifest.json"])["files"].items():
        assert hashlib.sha256(whole[f"team/support-bot/{name}"]).hexdigest() == entry["sha256"]
    for key in ("manifest.json", "tokenizer.json"):  # as if it had been killed before them
        s3.delete_object(Bucket="models", Key=f"team/support-bot/{key}")
    second = trainer_process.run(config | {"run": config["run"] | {"attempt": 2}}, environment=environment)
    assert second.process.exitcode == 0
    assert second.messages("ALREADY_FINISHED")
    assert not second.messages("MODEL_INITIALIZED")
    assert held(s3) == whole
    output = second.last_word().output
    assert output is not None
    assert output.upload_uri == URI


def test_gs_takes_it_too(gs: Path, finished: TrainerConfig) -> None:
    config = finished.model_copy(
        update={"output": finished.output.model_copy(update={"upload_uri": "gs://data/team/support-bot"})}
    )
    upload.probe(config)
    assert [path for path in gs.rglob("*") if path.is_file()] == []
    send(config)
    there = {str(path.relative_to(gs)): path.read_bytes() for path in gs.rglob("*") if path.is_file()}
    assert there == local(finished)


def test_what_gs_refuses_is_told(gs: Path, tmp_path: Path) -> None:
    (gs / "refuse").touch()
    with pytest.raises(NoPermission, match=r"storage\.uploadUri gs://data/x: the store refuses it"):
        upload.probe(configured(tmp_path, "gs://data/x"))


def _environment() -> Mapping[str, str]:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION", "no_proxy")
    return {name: os.environ[name] for name in names}


@pytest.fixture
def s3(s3_environment: None) -> Any:
    client = boto3.client("s3")
    client.create_bucket(Bucket="models")
    for each in client.list_objects_v2(Bucket="models").get("Contents", ()):
        client.delete_object(Bucket="models", Key=each["Key"])
    return client


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
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield folder
        server.kill()


class _Refusing(BaseHTTPRequestHandler):
    """A store that knows nobody."""

    def do_GET(self) -> None:
        body = b"<Error><Code>InvalidAccessKeyId</Code><Message>No such key</Message></Error>"
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/xml")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815 - as the base class asks for it

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Say nothing."""


@pytest.fixture
def refusing() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
