"""What the trainer's data, models and output come from and go to: an S3 store and a model hub on this machine."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from moto.server import ThreadedMotoServer


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """Address of an empty S3 store."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_environment(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables by which S3 clients find the store."""
    for key, value in (
        ("AWS_ACCESS_KEY_ID", "testing-key"),
        ("AWS_SECRET_ACCESS_KEY", "testing-secret"),
        ("AWS_ENDPOINT_URL", store),
        ("AWS_REGION", "us-east-1"),
        ("no_proxy", "127.0.0.1"),
    ):
        monkeypatch.setenv(key, value)


Serve = Callable[[type[BaseHTTPRequestHandler]], None]


@pytest.fixture
def serve_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Makes a handler answer for the hub; its cache is empty."""
    servers = []

    def serve(handler: type[BaseHTTPRequestHandler]) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        constants = huggingface_hub.constants
        files = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
