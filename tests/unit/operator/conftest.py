"""An API server to say anything, and the operator's connection to it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from finetune_operator import connection
from finetune_operator.connection import Connection
from tests import apiserver
from tests.apiserver import ApiServer


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with apiserver.serving() as found:
        yield found


@pytest.fixture
def observed() -> list[tuple[str, str]]:
    """What the connection told of its requests."""
    return []


@pytest.fixture
async def api(
    server: ApiServer, observed: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Connection]:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(apiserver.kubeconfig(tmp_path / "kubeconfig", server=server.url)))
    async with connection.connect(version="1.2.3", observer=lambda *request: observed.append(request)) as found:
        yield found
