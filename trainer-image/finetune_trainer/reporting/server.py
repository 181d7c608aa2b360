"""Answers GET /progress, /metrics and /healthz from a thread. Only reads: nothing sent here changes a training."""

import logging
import os
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from finetune_api.snapshot import PORT
from finetune_api.trainer_config import BIND_VARIABLE
from finetune_trainer.reporting import metrics
from finetune_trainer.reporting.reporter import Reporter

logger = logging.getLogger(__name__)

PORT_VARIABLE = "FINETUNE_PORT"
PATIENCE_SECONDS = 10

Page = Callable[[], tuple[str, bytes]]


def start(reporter: Reporter) -> ThreadingHTTPServer | None:
    """Begin to answer. Where the address can't be had the training goes on unheard: its last word is still read."""
    pages: dict[str, Page] = {
        "/progress": lambda: ("application/json", reporter.snapshot().encode().encode()),
        "/metrics": lambda: (metrics.CONTENT_TYPE, metrics.exposition()),
        "/healthz": lambda: ("text/plain; charset=utf-8", b"ok\n"),
    }
    handler = type("Handler", (_Handler,), {"pages": pages})
    address, port = os.environ.get(BIND_VARIABLE, ""), os.environ.get(PORT_VARIABLE, str(PORT))
    try:
        server = _Server((address, int(port)), handler)
    except (OSError, ValueError, OverflowError) as error:
        logger.warning("no progress is served: %s:%s can't be listened on: %s", address, port, error)
        return None
    threading.Thread(target=server.serve_forever, name="progress-server", daemon=True).start()
    return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 32

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of who didn't wait for the answer: to poll again is up to them."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    pages: ClassVar[dict[str, Page]] = {}
    timeout = PATIENCE_SECONDS
    protocol_version = "HTTP/1.1"
    server_version = "finetune-trainer"
    sys_version = ""

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0])
        if page is None:
            self.send_error(HTTPStatus.NOT_FOUND, explain="there are /progress, /metrics and /healthz")
            return
        kind, body = page()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Say nothing: every poll would be a line."""
