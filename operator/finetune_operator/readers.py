"""Who may read /metrics: the API server says whose token it is (TokenReview), and whether they may get the non-resource
URL /metrics (SubjectAccessReview). Its answers hold for a while.

It must never keep a token, nor let anybody in whom the API server didn't, also while that can't be asked. Whoever
reaches the port can invent tokens: that must never use up memory, nor the operator's share of the API server.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Protocol

from finetune_api.fields import cut
from finetune_operator.budget import Budget
from finetune_operator.errors import OperatorError, RefusedError

log = logging.getLogger(__name__)

PATH = "/metrics"
TOKENS = "/apis/authentication.k8s.io/v1/tokenreviews"
ACCESS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
_SECONDS = 5.0
"""For both questions: a scrape waits for 10 s."""
_ALLOWED_FOR = timedelta(seconds=60)
_DENIED_FOR = timedelta(seconds=10)
_ALLOWED_AT_MOST = 256
_DENIED_AT_MOST = 1024
_STRANGERS_PER_SECOND = 5.0
"""Tokens that haven't been allowed before and are asked about; who was allowed is asked about in any case."""


class Api(Protocol):
    """What is needed of a connection."""

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]: ...


class Verdict(NamedTuple):
    """What is answered in place of metrics: status code and line; 200 for the metrics themselves."""

    status: int
    text: str = ""


ALLOWED = Verdict(200)
NO_TOKEN = Verdict(401, "metrics are told with a token of the cluster alone: send Authorization: Bearer TOKEN")
UNKNOWN = Verdict(401, "the API server doesn't know this token: it is wrong, has expired, or is for another audience")
BUSY = Verdict(503, "too many tokens that haven't been seen before: ask again in a second")
AWAY = Verdict(503, "the API server can't be asked whose token this is: ask again later")
NO_RIGHT = Verdict(503, "the operator has no right to ask whose token this is: see its log")


def _steady() -> datetime:
    """A time that nobody can set back, so that no verdict holds longer."""
    return datetime.fromtimestamp(time.monotonic(), UTC)


class Readers:
    """Judges by the Authorization header of a request."""

    def __init__(self, api: Api, *, clock: Callable[[], datetime] = _steady) -> None:
        self._api = api
        self._clock = clock
        self._allowed = _Remembered(at_most=_ALLOWED_AT_MOST, good_for=_ALLOWED_FOR)
        self._denied = _Remembered(at_most=_DENIED_AT_MOST, good_for=_DENIED_FOR)
        self._budget = Budget(per_second=_STRANGERS_PER_SECOND, clock=clock)

    async def judge(self, authorization: str) -> Verdict:
        """The API server's verdict, or the last one while it holds."""
        scheme, _, token = authorization.strip().partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return NO_TOKEN
        if not token.isascii():
            return UNKNOWN
        key, now = hashlib.sha256(token.encode()).digest(), self._clock()
        held = self._allowed.get(key, now=now) or self._denied.get(key, now=now)
        if held:
            return held
        if key not in self._allowed and not self._budget.take():
            return BUSY
        return self._remember(key, await self._asked(token))

    def _remember(self, key: bytes, verdict: Verdict) -> Verdict:
        if verdict == ALLOWED:
            self._allowed.put(key, verdict, now=self._clock())
        elif verdict != AWAY:
            self._allowed.drop(key)
            self._denied.put(key, verdict, now=self._clock())
        return verdict

    async def _asked(self, token: str) -> Verdict:
        try:
            async with asyncio.timeout(_SECONDS):
                return await self._review(token)
        except RefusedError as error:
            log.warning("%s is closed: %s; examples/metrics-login.yaml has the rights that are needed", PATH, error)
            return NO_RIGHT
        except (OperatorError, TimeoutError) as error:
            log.warning("%s is closed: %s", PATH, str(error) or "the API server doesn't answer")
            return AWAY

    async def _review(self, token: str) -> Verdict:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        found = (await self._api.post(TOKENS, body)).get("status") or {}
        if not found.get("authenticated"):
            return UNKNOWN
        user = found["user"]
        wanted = {
            "user": user["username"],
            "uid": user.get("uid", ""),
            "groups": user.get("groups", []),
            "extra": user.get("extra", {}),
            "nonResourceAttributes": {"path": PATH, "verb": "get"},
        }
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": wanted}
        if (await self._api.post(ACCESS, body))["status"].get("allowed"):
            return ALLOWED
        return Verdict(403, f"{cut(user['username'])} has no right to get the non-resource URL {PATH}")


class _Remembered:
    """Verdicts by the hash of a token; the oldest makes room for a new one."""

    def __init__(self, *, at_most: int, good_for: timedelta) -> None:
        self._at_most = at_most
        self._good_for = good_for
        self._verdicts: OrderedDict[bytes, tuple[datetime, Verdict]] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        """Whether there was one, however long ago."""
        return key in self._verdicts

    def get(self, key: bytes, *, now: datetime) -> Verdict | None:
        """The verdict while it holds."""
        said, verdict = self._verdicts.get(key, (now - self._good_for, None))
        return verdict if now - said < self._good_for else None

    def put(self, key: bytes, verdict: Verdict, *, now: datetime) -> None:
        """Remember it."""
        self._verdicts[key] = (now, verdict)
        self._verdicts.move_to_end(key)
        if len(self._verdicts) > self._at_most:
            self._verdicts.popitem(last=False)

    def drop(self, key: bytes) -> None:
        """Forget it."""
        self._verdicts.pop(key, None)
