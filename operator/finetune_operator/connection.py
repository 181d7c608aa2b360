"""One connection to the API server, and to pods through it: requests in, plain JSON out, status codes as our errors.

The only module that knows the Kubernetes client. It never follows a redirect (a pod behind the proxy could send the
operator's credential elsewhere), never waits without a limit, and never reads more than it was told to. And it sends no
write that its fence doesn't allow, nor one that could still take effect after that has closed: the API server is told
to give up in time.
"""

import json
import os
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import aiohttp
from kubernetes.aio import client, config

from finetune_api.fields import cut
from finetune_operator import names
from finetune_operator.errors import (
    ConflictError,
    ExistsError,
    GoneError,
    OperatorError,
    RefusedError,
    TransientError,
    UserError,
)
from finetune_operator.fence import OPEN, WRITES, Fence, UnderWay, checks, sockets

Object = dict[str, Any]
Observer = Callable[[str, str], None]
"""Told of each request: verb, and status code or `error`."""

MERGE = "application/merge-patch+json"
_SECONDS = 15.0
_CONNECT_SECONDS = 5.0
_ANSWER_LIMIT = 64 * 1024 * 1024
_CHUNK = 500


def in_cluster() -> bool:
    """Whether this process runs in a pod."""
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST"))


class Chunk(NamedTuple):
    """Part of a list, and the resource version of the whole."""

    items: Sequence[Object]
    version: str


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What another client needs to reach the same API server with the same rights."""

    server: str
    ca_path: str | None
    insecure: bool
    authorization: str | None
    certificate_path: str | None
    private_key_path: str | None


class Connection:
    """One API server. Made by `connect`."""

    def __init__(self, api: client.ApiClient, *, observer: Observer, fence: Fence = OPEN) -> None:
        self._api = api
        self._observer = observer
        self._fence = fence
        self._under_way = UnderWay()

    async def get(self, path: str, **query: str) -> Object:
        """One object, or one list, as it is now (a quorum read, unless `query` says otherwise)."""
        return await self._request("GET", path, query=query)

    async def post(self, path: str, body: Mapping[str, Any]) -> Object:
        """Create an object."""
        return await self._request("POST", path, query={"fieldManager": names.MANAGER}, body=body)

    async def patch(self, path: str, body: Mapping[str, Any]) -> Object:
        """Merge `body` into an object."""
        return await self._request("PATCH", path, query={"fieldManager": names.MANAGER}, body=body)

    async def delete(self, path: str, **preconditions: str) -> None:
        """Delete an object if it is still the one that is meant; what it owns goes after it.

        Raises GoneError if it isn't there, ConflictError if it is another or has changed.
        """
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": preconditions,
        }
        await self._request("DELETE", path, query={}, body=body)

    async def list(self, path: str, *, selector: str) -> AsyncIterator[Chunk]:
        """All objects, as they were at one resource version."""
        query = {"limit": str(_CHUNK)} | ({"labelSelector": selector} if selector else {})
        while True:
            answer = await self.get(path, **query)
            yield Chunk(answer["items"], answer["metadata"]["resourceVersion"])
            more = answer["metadata"].get("continue")
            if not more:
                return
            query["continue"] = more

    async def read(self, path: str, *, limit: int, seconds: float) -> bytes:
        """What a pod answers through the proxy. Raises TransientError for more than `limit` bytes, or no answer."""
        return await self._send("GET", path, query={}, body=None, limit=limit, seconds=seconds)

    async def settled(self, *, seconds: float) -> bool:
        """Whether every write has ended, in so many seconds at most, and none can take effect any more."""
        return await self._under_way.settled(seconds)

    async def credentials(self) -> Credentials:
        """For kopf's own connection; read anew, since tokens are replaced."""
        found = await _configuration()
        auth: Mapping[str, Any] = (await found.auth_settings()).get("BearerToken") or {}
        return Credentials(
            server=found.host,
            ca_path=found.ssl_ca_cert,
            insecure=not found.verify_ssl,
            authorization=auth.get("value"),
            certificate_path=found.cert_file,
            private_key_path=found.key_file,
        )

    async def _request(self, verb: str, path: str, *, query: Mapping[str, str], body: Any = None) -> Object:
        text = await self._send(verb, path, query=query, body=body, limit=_ANSWER_LIMIT, seconds=_SECONDS)
        answer: Object = json.loads(text)
        return answer

    async def _send(
        self, verb: str, path: str, *, query: Mapping[str, str], body: Any, limit: int, seconds: float
    ) -> bytes:
        headers = {"Content-Type": MERGE if verb == "PATCH" else "application/json"}
        if verb in WRITES:
            seconds = self._fence.promise(f"{verb} {path}", at_most=_SECONDS)
            served = seconds - min(self._fence.delivery, seconds / 2)
            query = {**query, "timeout": f"{served:.3f}s"}
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=min(_CONNECT_SECONDS, seconds))
        code = "error"
        writes = self._under_way.add(seconds) if verb in WRITES else None
        try:
            method, url, headers, _, _ = await self._api.param_serialize(
                verb, path, query_params=list(query.items()), header_params=headers, auth_settings=["BearerToken"]
            )
            answer = await self._api.call_api(method, url, headers, body, _request_timeout=timeout)
            async with answer.response as response:
                code = str(response.status)
                text = await _read(response, limit=limit)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise TransientError(f"{verb} {path}: {str(error) or type(error).__name__}") from error
        finally:
            self._observer(verb, code)
            if writes is not None:
                self._under_way.remove(writes, answered=code != "error")
        if response.status >= 300:
            if response.status == 401:
                await self._log_in_again()
            raise _error(response, text, where=f"{verb} {path}")
        return text

    async def _log_in_again(self) -> None:
        """The token has been replaced: take the new one for the next request."""
        self._api.configuration.api_key = (await _configuration()).api_key


@asynccontextmanager
async def connect(
    *, version: str, observer: Observer, identity: str = "", fence: Fence = OPEN
) -> AsyncIterator[Connection]:
    """A connection with the pod's service account, or else the kubeconfig's current context (KUBECONFIG).

    `identity` tells this process from others of the same account. Raises UserError if there is no API server to ask.
    """
    found = await _configuration()
    found.proxy = found.proxy or _proxy(found.host)
    async with client.ApiClient(found) as api:
        api.user_agent = f"{names.MANAGER}/{version}" + (f" ({identity})" if identity else "")
        connector = aiohttp.TCPConnector(
            limit=api.rest_client.maxsize, ssl=api.rest_client.ssl_context, socket_factory=sockets(fence)
        )
        found.client_session_kwargs = {
            "connector": connector,
            "middlewares": (_refuse_redirects,),
            "trace_configs": [checks(fence)],
            "auto_decompress": False,
            "trust_env": False,
            "headers": {"Accept-Encoding": "identity"},
        }
        async with connector:
            yield Connection(api, observer=observer, fence=fence)


def _proxy(server: str) -> str | None:
    """What the environment says of the way to the API server, asked once.

    aiohttp with trust_env reads it, and ~/.netrc too, before each request, in a thread of their own.
    """
    where = urllib.parse.urlsplit(server)
    if urllib.request.proxy_bypass(where.hostname or ""):
        return None
    return urllib.request.getproxies().get(where.scheme)


async def _configuration() -> client.Configuration:
    found = client.Configuration()
    try:
        if in_cluster():
            config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call] # as the client has it
        else:
            path = os.environ.get("KUBECONFIG")
            await config.load_kube_config(  # type: ignore[no-untyped-call] # as the client has it
                config_file=path, client_configuration=found, persist_config=False
            )
    except config.ConfigException as error:
        raise UserError("KUBECONFIG", f"no API server to talk to, in a cluster or by a kubeconfig: {error}") from error
    return found


async def _refuse_redirects(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    response = await handler(request)
    if 300 <= response.status < 400:
        response.close()
        raise aiohttp.ClientError(f"a redirect ({response.status}) is not followed")
    return response


async def _read(response: aiohttp.ClientResponse, *, limit: int) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > limit:
            response.close()
            raise TransientError(f"the answer is longer than {limit} bytes")
        parts.append(part)
    return b"".join(parts)


def _error(response: aiohttp.ClientResponse, text: bytes, *, where: str) -> OperatorError:
    """What must follow from a status code that isn't a success."""
    reason, message = _said(text)
    whole = f"{message or response.reason} ({where}: {response.status})"
    match response.status:
        case 404 | 410:
            return GoneError(whole)
        case 409 if reason == "AlreadyExists":
            return ExistsError(whole)
        case 409:
            return ConflictError(whole)
        case 403 | 422:
            return RefusedError(message or whole)
        case code if code in (401, 429) or code >= 500:
            return TransientError(whole, retry_after=_retry_after(response))
        case _:
            return OperatorError(whole)


def _said(text: bytes) -> tuple[str, str]:
    """Reason and message of the API server's Status object."""
    try:
        status = json.loads(text)
        return str(status.get("reason") or ""), cut(str(status["message"]))
    except (ValueError, KeyError, AttributeError, TypeError):
        return "", cut(text[:300].decode(errors="replace"))


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    try:
        return float(response.headers["Retry-After"])
    except (KeyError, ValueError):
        return None
