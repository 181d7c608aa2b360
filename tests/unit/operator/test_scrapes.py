"""GET /metrics: what is told without a login and with one, formats, and the certificate."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from finetune_operator import scrapes
from finetune_operator.connection import Connection
from finetune_operator.errors import UserError
from finetune_operator.metrics import Metrics
from finetune_operator.readers import ACCESS, TOKENS, Readers
from finetune_operator.scrapes import Certificate
from finetune_operator.settings import Settings
from tests.apiserver import ApiServer


@asynccontextmanager
async def scraped(*, readers: Readers | None = None, folder: Path | None = None) -> AsyncIterator[str]:
    """The address of one that answers."""
    settings = Settings(bind_address="127.0.0.1", metrics_port=0, metrics_tls_folder=str(folder or ""))
    async with scrapes.serving(Metrics(version="1.2.3"), readers=readers, settings=settings) as port:
        yield f"http{'s' if folder else ''}://127.0.0.1:{port}"


async def ask(
    url: str, *, trust: Path | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, str, aiohttp.ClientResponse]:
    """Code, body and the rest of an answer."""
    context = ssl.create_default_context(cafile=str(trust)) if trust else True
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
        session.get(url, headers=headers, ssl=context) as response,
    ):
        return response.status, await response.text(), response


def certificate(folder: Path, *, serial: int) -> Path:
    """A folder with tls.crt and tls.key for 127.0.0.1."""
    folder.mkdir(exist_ok=True)
    names = ("-subj", "/CN=operator", "-addext", "subjectAltName=IP:127.0.0.1", "-set_serial", str(serial))
    files = ("-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt"))
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    subprocess.run(["openssl", "req", "-x509", *key, *names, *files], check=True, capture_output=True)
    return folder


def mounted(folder: Path, version: Path) -> Path:
    """A version of a Secret as the kubelet mounts it, in place of the one before: links to a link that it replaces."""
    folder.mkdir(exist_ok=True)
    (folder / "..data_tmp").symlink_to(version)
    (folder / "..data_tmp").rename(folder / "..data")
    for name in ("tls.crt", "tls.key"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data", name))
    return folder


async def said(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Once the log says so."""
    async with asyncio.timeout(10):
        while text not in caplog.text:  # noqa: ASYNC110 - the log tells nobody of a new line
            await asyncio.sleep(0.01)


async def test_without_readers_everybody_is_told() -> None:
    async with scraped() as url:
        status, text, response = await ask(f"{url}/metrics")
        assert status == 200
        assert 'finetune_operator_build_info{version="1.2.3"} 1.0' in text
        assert response.content_type == "text/plain"
        assert (await ask(f"{url}/"))[0] == 404, "nothing else is there"


async def test_what_prometheus_asks_for_it_gets() -> None:
    headers = {"Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain", "Accept-Encoding": "gzip"}
    async with scraped() as url:
        _, text, response = await ask(f"{url}/metrics", headers=headers)
        assert response.headers["Content-Encoding"] == "gzip"
        assert response.content_type == "application/openmetrics-text"
        assert text.endswith("# EOF\n")


async def test_names_are_told_after_the_verdict_alone(api: Connection, server: ApiServer) -> None:
    server.on("POST", TOKENS, {"status": {}}, status=201)
    server.on("POST", TOKENS, {"status": {"authenticated": True, "user": {"username": "jane"}}}, status=201)
    server.on("POST", ACCESS, {"status": {"allowed": False}}, status=201)
    server.on("POST", ACCESS, {"status": {"allowed": True}}, status=201)
    async with scraped(readers=Readers(api)) as url:
        status, text, response = await ask(f"{url}/metrics")
        assert (status, text.count("\n"), response.headers["WWW-Authenticate"]) == (401, 1, "Bearer")
        for token, wanted in (("a", 401), ("b", 403), ("c", 200)):
            status, text, response = await ask(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"})
            assert status == wanted
            assert ("finetune_operator" in text) == (wanted == 200)


async def test_with_a_certificate_it_is_https_alone(tmp_path: Path) -> None:
    folder = certificate(tmp_path / "tls", serial=1)
    async with scraped(folder=folder) as url:
        assert (await ask(f"{url}/metrics", trust=folder / "tls.crt"))[0] == 200
        with pytest.raises(aiohttp.ClientError):
            await ask(f"{url.replace('https', 'http')}/metrics")


async def test_a_certificate_that_is_renewed_is_taken_and_one_that_is_broken_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, broken, second = (certificate(tmp_path / str(number), serial=number) for number in (1, 2, 3))
    (broken / "tls.key").write_text("no key")
    folder = mounted(tmp_path / "tls", first)
    caplog.set_level("INFO")
    monkeypatch.setattr(scrapes, "_RENEWAL_SECONDS", 0.05)
    async with scraped(folder=folder) as url:
        mounted(folder, broken)
        await said(caplog, "can't be renewed")
        assert (await ask(f"{url}/metrics", trust=first / "tls.crt"))[0] == 200
        mounted(folder, second)
        await said(caplog, "is a new one")
        assert (await ask(f"{url}/metrics", trust=second / "tls.crt"))[0] == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await ask(f"{url}/metrics", trust=first / "tls.crt")


@pytest.mark.parametrize("content", [{}, {"tls.crt": "a", "tls.key": "b"}], ids=["nothing", "nonsense"])
def test_a_folder_without_a_certificate_is_named(content: dict[str, str], tmp_path: Path) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=r"tls\.crt and tls.key") as caught:
        Certificate(tmp_path)
    assert caught.value.field == "FINETUNE_OPERATOR_METRICS_TLS_FOLDER"


async def test_a_port_that_is_taken_is_named() -> None:
    async with scraped() as url:
        settings = Settings(bind_address="127.0.0.1", metrics_port=int(url.rpartition(":")[2]))
        with pytest.raises(OSError, match="for metrics: Address already in use"):
            async with scrapes.serving(Metrics(version="2"), readers=None, settings=settings):
                raise AssertionError("it listens")
