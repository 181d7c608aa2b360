"""An HTTP server that stands where the API server would: it answers as it was told, and remembers what it was asked.

For what a real one can't be made to do at will. It knows nothing of Kubernetes but the form of its errors.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request."""

    verb: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class ApiServer:
    """Answers by verb and path: the first of a list, until one is left."""

    url: str = ""
    answers: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def on(
        self, verb: str, path: str, body: Any = None, *, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        """Answer with this object, after the answers that were set before."""

        async def answer(_: web.Request) -> web.StreamResponse:
            return web.json_response(body, status=status, headers=headers)

        self.calls(verb, path, answer)

    def refuses(
        self, verb: str, path: str, status: int, *, reason: str = "", message: str = "", **headers: str
    ) -> None:
        """Answer with the API server's Status object."""
        said = {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": status}
        self.on(
            verb, path, said, status=status, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )

    def calls(self, verb: str, path: str, answer: Answer) -> None:
        """Answer by a function."""
        self.answers.setdefault((verb, path), []).append(answer)

    def last(self) -> Asked:
        """The last request."""
        return self.asked[-1]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        self.asked.append(
            Asked(
                verb=request.method,
                path=request.path,
                query=dict(request.query),
                headers=dict(request.headers),
                body=json.loads(text) if text else None,
            )
        )
        answers = self.answers.get((request.method, request.path))
        if not answers:
            return web.json_response({"reason": "NotFound", "message": "not found"}, status=404)
        return await (answers.pop(0) if len(answers) > 1 else answers[0])(request)


@asynccontextmanager
async def serving(*, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[ApiServer]:
    """One that listens for as long as the block lasts."""
    found = ApiServer()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        found.url = f"http://{host}:{runner.addresses[0][1]}"
        yield found
    finally:
        await runner.cleanup()


def kubeconfig(path: Path, *, server: str, token: str = "secret") -> Path:
    """A kubeconfig for it."""
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": server}}],
                "users": [{"name": "u", "user": {"token": token}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    return path
