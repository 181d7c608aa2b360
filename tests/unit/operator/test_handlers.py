"""kopf's handlers and settings: an event source, and nothing that writes."""

import itertools
from dataclasses import dataclass, field
from typing import Any, cast

import kopf
import pytest

from finetune_operator import handlers, kinds
from finetune_operator.cache import Cache
from finetune_operator.connection import Credentials
from finetune_operator.handlers import Shell
from finetune_operator.kinds import KINDS
from finetune_operator.names import Key
from tests import bodies, worlds
from tests.worlds import KEY


@dataclass
class Operator:
    """What the handlers call, and what they called."""

    cache: Cache = field(default_factory=worlds.cache)
    woken: list[Key] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)

    async def credentials(self) -> Credentials:
        return Credentials(
            server="https://10.96.0.1",
            ca_path="/ca.crt",
            insecure=False,
            authorization="Bearer abc",
            certificate_path=None,
            private_key_path=None,
        )

    @property
    def shell(self) -> Shell:
        return Shell(
            cache=self.cache,
            wake=self.woken.append,
            credentials=self.credentials,
            told=lambda kind, namespace: self.told.append((kind, namespace)),
        )


@pytest.fixture
def operator() -> Operator:
    return Operator()


@pytest.fixture
def registry(operator: Operator) -> kopf.OperatorRegistry:
    return handlers.registry(operator.shell)


def activity(registry: kopf.OperatorRegistry, kind: str) -> Any:
    activities: Any = registry._activities.get_all_handlers()
    (found,) = (handler for handler in activities if handler.activity.value == kind)
    return found


def test_no_handler_that_writes_is_registered(registry: kopf.OperatorRegistry) -> None:
    """Each of these makes kopf write to the API server, wait for its own writes, or lose events after a conflict."""
    for kind in ("_changing", "_spawning", "_indexing", "_webhooks"):
        assert getattr(registry, kind).get_all_handlers() == [], kind
    assert sorted(handler.id for handler in registry._watching.get_all_handlers()) == sorted(k.plural for k in KINDS)
    activities: Any = registry._activities.get_all_handlers()
    assert sorted(handler.activity.value for handler in activities) == ["authentication"]


def test_no_handler_is_registered_behind_the_back() -> None:
    default = kopf.get_default_registry()
    assert default._watching.get_all_handlers() == []
    assert default._changing.get_all_handlers() == []


NAMESPACED = [kind for kind in KINDS if kind.is_namespaced]


@pytest.mark.parametrize("kind", NAMESPACED, ids=[kind.name for kind in NAMESPACED])
async def test_an_event_goes_into_the_cache_and_names_the_run(
    operator: Operator, registry: kopf.OperatorRegistry, kind: kinds.Kind
) -> None:
    made: dict[kinds.Kind, Any] = {
        kinds.RUN: worlds.body,
        kinds.JOB: bodies.job,
        kinds.POD: bodies.running,
        kinds.CLAIM: bodies.claim,
    }
    body = made[kind]()
    watching: Any = registry._watching.get_all_handlers()
    (handler,) = (found for found in watching if found.id == kind.plural)
    for event in (None, "ADDED", "MODIFIED"):
        assert await handler.fn(event={"type": event, "object": body}, body=body) is None
    assert operator.woken == [KEY], "the same version is no news"
    assert await handler.fn(event={"type": "DELETED", "object": body}) is None
    assert operator.woken == [KEY, KEY]
    assert operator.told == [(kind.name, KEY.namespace)] * 4, "each shows that the watch works"


def test_kopf_writes_nothing_and_never_gives_up() -> None:
    settings = handlers.settings()
    assert settings.peering.standalone
    assert not settings.posting.enabled
    assert not settings.posting.loggers
    assert settings.queueing.worker_limit is None
    assert settings.watching.inactivity_timeout <= 20
    ended_by_the_server: object = settings.watching.server_timeout
    assert ended_by_the_server == 15
    assert isinstance(ended_by_the_server, int), "the API server refuses 15.0"
    pauses = cast(Any, settings.networking.error_backoffs)
    for _ in range(2):
        first = list(itertools.islice(pauses, 1000))
        assert len(first) == 1000
        assert max(first) == 5
    assert not hasattr(pauses, "__len__"), "kopf counts what has a length"


async def test_kopf_gets_the_operators_own_credentials(registry: kopf.OperatorRegistry) -> None:
    info = await activity(registry, "authentication").fn()
    assert (info.server, info.scheme, info.token, info.ca_path) == ("https://10.96.0.1", "Bearer", "abc", "/ca.crt")


def test_only_the_operators_own_children_are_watched() -> None:
    selectors = handlers.settings().watching.label_selectors
    assert list(selectors.values()) == ["app.kubernetes.io/managed-by=finetune-operator"] * 3
    assert {kind.name for kind in KINDS if not kind.selector} == {"FineTuneRun", "ClusterFineTuneProfile"}
