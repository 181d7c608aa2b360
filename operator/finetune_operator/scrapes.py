"""Answers GET /metrics: to those whom `readers` let in, if there are any, and by HTTPS, if there is a certificate.

It must never tell a run's name before it has been decided that the reader may know it, nor go back to HTTP because a
certificate can't be read. What takes time is done in a thread.
"""

import asyncio
import logging
import os
import ssl
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from aiohttp import web

from finetune_operator.errors import UserError
from finetune_operator.metrics import Metrics
from finetune_operator.readers import PATH, Readers
from finetune_operator.settings import PREFIX, Settings

log = logging.getLogger(__name__)

_RENEWAL_SECONDS = 10.0
"""Between two looks at the certificate."""


@asynccontextmanager
async def serving(metrics: Metrics, *, readers: Readers | None, settings: Settings) -> AsyncIterator[int]:
    """Answer for as long as the block lasts; the port. Without `readers` everybody may read.

    Raises OSError for a port that is taken, UserError for a certificate that there isn't.
    """
    address = settings.bind_address or "0.0.0.0"  # noqa: S104 - a setting
    certificate = Certificate(Path(settings.metrics_tls_folder)) if settings.metrics_tls_folder else None
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics") as thread:
        app = web.Application()
        app.add_routes([web.get(PATH, _Answer(metrics, readers=readers, thread=thread).to)])
        runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=0.2)
        await runner.setup()
        renewing = asyncio.create_task(certificate.renewed()) if certificate else None
        try:
            await _listen(runner, address=address, port=settings.metrics_port, certificate=certificate)
            yield int(runner.addresses[0][1])
        finally:
            if renewing is not None:
                renewing.cancel()
                with suppress(asyncio.CancelledError):
                    await renewing
            await runner.cleanup()


async def _listen(runner: web.AppRunner, *, address: str, port: int, certificate: "Certificate | None") -> None:
    try:
        await web.TCPSite(runner, address, port, ssl_context=certificate.context if certificate else None).start()
    except OSError as error:
        said = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno, f"can't listen on {address} port {port} for metrics: {said}") from error


class _Answer:
    """To a scrape."""

    def __init__(self, metrics: Metrics, *, readers: Readers | None, thread: ThreadPoolExecutor) -> None:
        self._metrics = metrics
        self._readers = readers
        self._thread = thread

    async def to(self, request: web.Request) -> web.Response:
        if self._readers is not None:
            verdict = await self._readers.judge(request.headers.get("Authorization", ""))
            if verdict.status != 200:
                challenge = {"WWW-Authenticate": "Bearer"} if verdict.status == 401 else {}
                return web.Response(text=f"{verdict.text}\n", status=verdict.status, headers=challenge)
        accept = ",".join(request.headers.getall("Accept", []))
        text, kind = await asyncio.get_running_loop().run_in_executor(self._thread, self._metrics.text, accept)
        response = web.Response(body=text, headers={"Content-Type": kind})
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            response.enable_compression(web.ContentCoding.gzip)
        return response


class Certificate:
    """tls.crt and tls.key of a folder, as a Secret of type kubernetes.io/tls is mounted; read anew when they change."""

    def __init__(self, folder: Path) -> None:
        self._files = (folder / "tls.crt", folder / "tls.key")
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        """For new connections."""
        try:
            self._content = self._load()
        except OSError as error:
            said = f"{folder} has no certificate with its key, tls.crt and tls.key: {error.strerror or error}"
            raise UserError(f"{PREFIX}METRICS_TLS_FOLDER", said) from error

    def look(self) -> None:
        """Take a new certificate, if there is one. One that can't be read changes nothing."""
        try:
            if self._read() != self._content:
                self._content = self._load()
                log.info("the certificate of %s is a new one", PATH)
        except OSError as error:
            log.warning("the certificate of %s can't be renewed: %s", PATH, error)

    async def renewed(self) -> None:
        """Look again and again, for ever."""
        while True:
            await asyncio.sleep(_RENEWAL_SECONDS)
            self.look()

    def _load(self) -> tuple[bytes, ...]:
        content = self._read()
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(*self._files)  # a failure would break ours
        self.context.load_cert_chain(*self._files)
        return content

    def _read(self) -> tuple[bytes, ...]:
        return tuple(path.read_bytes() for path in self._files)
