"""The node's way to the API server: requests, and lists that keep themselves up to date.

`follow` lists, watches, and lists again whenever the watch can't be resumed, so that whoever reads it is never blind
for good; it tells of a fresh list as such, since what is missing from it has been deleted unseen.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import logging
import ssl
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml

log = logging.getLogger(__name__)

Object = Mapping[str, Any]
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
REQUEST_SECONDS = 30
WATCH_SECONDS = 60


class ApiError(Exception):
    """The API server's refusal."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclasses.dataclass(frozen=True)
class Listed:
    """Everything there is now."""

    items: Sequence[Object]


@dataclasses.dataclass(frozen=True)
class Changed:
    """One object as it is now, or as it was last."""

    item: Object
    deleted: bool


class Api:
    """One session with one API server."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    @classmethod
    def from_kubeconfig(cls, path: Path) -> Api:
        """The kubeconfig's current context, with a token or a client certificate. Needs a running loop."""
        content = yaml.safe_load(path.read_text())
        context = _named(content["contexts"], content["current-context"])["context"]
        cluster = _named(content["clusters"], context["cluster"])["cluster"]
        user = _named(content["users"], context["user"])["user"]
        tls = ssl.create_default_context(
            cafile=cluster.get("certificate-authority"), cadata=_decoded(cluster.get("certificate-authority-data"))
        )
        _load_certificate(tls, user)
        headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        headers["User-Agent"] = "finetune-test-node"
        connector = aiohttp.TCPConnector(ssl=tls, limit=0)
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        return cls(aiohttp.ClientSession(cluster["server"], headers=headers, connector=connector, timeout=timeout))

    async def close(self) -> None:
        """End the session."""
        await self._session.close()

    async def request(
        self, method: str, path: str, *, body: object = None, content_type: str = "application/json", **query: str
    ) -> Object:
        """The answer's object; raises ApiError for anything but success."""
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        async with self._session.request(method, path, data=data, headers=headers, params=query) as response:
            answer: Object = await response.json(content_type=None)
            if response.status >= 400:
                raise ApiError(response.status, str(answer.get("message", answer)))
            return answer

    async def get(self, path: str) -> Object | None:
        """The object, or None where there is none."""
        try:
            return await self.request("GET", path)
        except ApiError as error:
            if error.code != 404:
                raise
            return None

    async def create(self, path: str, body: Object) -> None:
        """Create it, unless it is there already."""
        try:
            await self.request("POST", path, body=body)
        except ApiError as error:
            if error.code != 409:
                raise

    async def delete(self, path: str, *, uid: str, grace_seconds: int | None = None) -> None:
        """Delete this very object; it is fine if it is gone or another has its name."""
        options: dict[str, object] = {"preconditions": {"uid": uid}}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self.request("DELETE", path, body=options)
        except ApiError as error:
            if error.code not in (404, 409):
                raise

    async def follow(self, path: str, **query: str) -> AsyncGenerator[Listed | Changed, None]:
        """A list, then every change, for ever; a fresh list whenever changes may have been missed."""
        while True:
            try:
                found = await self.request("GET", path, **query)
                yield Listed(found["items"])
                async for change in self._changes(path, found["metadata"]["resourceVersion"], **query):
                    yield change
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                log.warning("%s has to be listed again: %s", path, error)
                await asyncio.sleep(0.5)

    async def _changes(self, path: str, version: str, **query: str) -> AsyncIterator[Changed]:
        """Watch, and watch on where the last watch ended; raises ApiError when the API server forgot that version."""
        timeout = aiohttp.ClientTimeout(total=None, sock_read=WATCH_SECONDS + 10)
        while True:
            query |= {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_SECONDS)}
            async with self._session.get(
                path, params={**query, "resourceVersion": version}, timeout=timeout
            ) as response:
                if response.status != 200:
                    raise ApiError(response.status, await response.text())
                async for line in _lines(response.content):
                    event = json.loads(line)
                    item = event["object"]
                    if event["type"] == "ERROR":
                        raise ApiError(item["code"], item["message"])
                    version = item["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        yield Changed(item, deleted=event["type"] == "DELETED")


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines of any length; aiohttp's own reading by lines has a limit."""
    pending = b""
    async for chunk in stream.iter_any():
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line


def _named(entries: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def _decoded(data: str | None) -> str | None:
    return base64.b64decode(data).decode() if data else None


def _load_certificate(tls: ssl.SSLContext, user: Mapping[str, Any]) -> None:
    """The user's client certificate, from files or from the kubeconfig itself."""
    if "client-certificate" in user:
        tls.load_cert_chain(user["client-certificate"], user["client-key"])
    elif "client-certificate-data" in user:
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as pem:
            pem.write(f"{_decoded(user['client-certificate-data'])}\n{_decoded(user['client-key-data'])}")
            pem.flush()
            tls.load_cert_chain(pem.name)
