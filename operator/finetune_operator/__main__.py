"""The operator's process: `python -m finetune_operator`. Settings come from the environment, see `settings`.

Waits for the lease, lists everything once, and then works until a signal ends it. It must never go on when one of its
tasks has ended: it exits, and Kubernetes starts it anew.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import aiohttp
import kopf
from kopf._cogs.structs.references import Insights

from finetune_operator import connection, handlers, health, kinds, lease, logs, poller, runmetrics, scrapes
from finetune_operator.admission import Line
from finetune_operator.boosts import Boosts
from finetune_operator.cache import Cache
from finetune_operator.cluster import KubernetesCluster
from finetune_operator.connection import Connection
from finetune_operator.errors import RefusedError, TransientError, UserError
from finetune_operator.fence import OPEN, Fence
from finetune_operator.health import Health
from finetune_operator.lease import Lease
from finetune_operator.metrics import Metrics
from finetune_operator.names import Key
from finetune_operator.poller import Poller
from finetune_operator.readers import Readers
from finetune_operator.reconcile import Reconciler
from finetune_operator.resync import Resync
from finetune_operator.settings import PREFIX, Settings
from finetune_operator.signals import Leaving
from finetune_operator.workqueue import WorkQueue

log = logging.getLogger("finetune_operator")

VERSION = version("finetune-operator")
_SETTLE_SECONDS = 0.6
_RELEASE_SECONDS = 0.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal; the exit code."""
    _parser().parse_args(arguments)
    leaving = Leaving()
    leaving.take_signals()
    try:
        settings = Settings.from_environment()
        logs.configure(settings.log_format)
        asyncio.run(serve(settings, leaving=leaving))
    except (UserError, RefusedError, TransientError, OSError) as error:
        sys.stderr.write(f"finetune-operator: {_words(error)}\n")
        return _code(error)
    return os.EX_OK


def _code(error: BaseException) -> int:
    match error:
        case UserError():
            return os.EX_USAGE
        case RefusedError():
            return os.EX_NOPERM
        case TransientError():
            return os.EX_TEMPFAIL
        case OSError():
            return os.EX_OSERR
    return 1


def _words(error: Exception) -> str:
    match error:
        case UserError():
            return f"{error.field} {error.message}"
        case RefusedError():
            return f"{error}; examples/operator-rbac.yaml has the rights that are needed"
        case OSError():
            return error.strerror or str(error)
    return str(error)


def _parser() -> argparse.ArgumentParser:
    variables = "\n".join(
        f"  {(PREFIX + name).upper():44}{field.description}" for name, field in Settings.model_fields.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m finetune_operator",
        description="Runs FineTuneRuns: in a cluster with the pod's service account, else by the kubeconfig.",
        epilog=f"environment:\n{variables}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=VERSION)
    return parser


async def serve(settings: Settings, *, leaving: Leaving) -> None:
    """Everything, until a signal."""
    asked = leaving.asked()
    metrics = Metrics(version=VERSION)
    known: dict[str, Any] = {"version": VERSION, "identity": lease.identity(), "observer": metrics.request}
    async with AsyncExitStack() as stack:
        leadership, fence = None, OPEN
        if settings.lease_seconds:
            # a connection of its own: its requests wait for no others, and no fence keeps it from the lease
            apart = await stack.enter_async_context(connection.connect(**known))
            leadership = Lease(apart, settings=settings, identity=known["identity"])
            fence = Fence(left=leadership.left, delivery=leadership.delivery)
        api = await stack.enter_async_context(connection.connect(**known, fence=fence))
        session = await stack.enter_async_context(poller.session())
        readers = None
        if settings.metrics_authentication:
            # to ask about a reader changes nothing: no fence, so that one that stands by may ask too
            readers = Readers(await stack.enter_async_context(connection.connect(**known)))
        port = await stack.enter_async_context(scrapes.serving(metrics, readers=readers, settings=settings))
        told = Health()
        await stack.enter_async_context(health.serving(told, address=settings.bind_address, port=settings.health_port))
        log.info("finetune-operator %s, metrics on port %d", VERSION, port)
        operator = _Operator(settings, api=api, session=session, metrics=metrics, health=told, leadership=leadership)
        work = asyncio.create_task(operator.run(), name="operator")
        try:
            await _until_one_ends([work, asyncio.create_task(_wait(asked), name="signals")])
        except BaseException as error:
            leaving.end_soon(_code(error))
            raise
        finally:
            await _leave(work, api=api, leadership=leadership)


async def _leave(work: asyncio.Task[None], *, api: Connection, leadership: Lease | None) -> None:
    """Act no more. The lease is released if every write is known to have ended, else it runs out."""
    if leadership is not None:
        leadership.stop()
        if await api.settled(seconds=_SETTLE_SECONDS):
            try:
                async with asyncio.timeout(_RELEASE_SECONDS):
                    await leadership.release()
            except TimeoutError:
                log.warning("the lease runs out by itself: the API server doesn't answer")
    await _stop([work])


class _Operator:
    """What one process does, from standing by to working."""

    def __init__(
        self,
        settings: Settings,
        *,
        api: Connection,
        session: aiohttp.ClientSession,
        metrics: Metrics,
        health: Health,
        leadership: Lease | None,
    ) -> None:
        self._settings = settings
        self._api = api
        self._session = session
        self._metrics = metrics
        self._health = health
        self._leadership = leadership
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Until a part has ended, through an error most likely."""
        try:
            if self._leadership is not None:
                await self._lead(self._leadership)
            await self._work()
        finally:
            await _stop(self._tasks)

    async def _lead(self, leadership: Lease) -> None:
        self._health.trouble = leadership.trouble
        self._health.unready = lambda: None if leadership.seen else "the lease hasn't been seen yet"
        await leadership.acquire()
        self._tasks.append(asyncio.create_task(leadership.hold(), name="lease"))

    async def _work(self) -> None:
        settings, metrics, line = self._settings, self._metrics, Line(self._settings.limits)
        cache = Cache(line=line, wake=lambda key: queue.add(key))  # noqa: PLW0108 - the queue comes later
        cluster = KubernetesCluster(self._api, cache=cache)
        boosts = Boosts(cluster, settings=settings) if settings.kueue_priority_boost else None
        looking = Reconciler(cluster, line=line, settings=settings, clock=_now, changed=metrics.changed, boosts=boosts)
        reconcile = metrics.timed(looking)

        async def look(key: Key) -> float | None:
            try:
                return await reconcile(key)
            finally:
                polls.follow(key)
                for called in line.newly_called():
                    queue.add(called)

        queue = WorkQueue(look, workers=settings.workers)
        access = poller.choose(settings, connection=self._api, session=self._session)
        polls = Poller(access, cache=cache, wake=queue.add, failed=metrics.poll_failed, settings=settings)
        watches = health.Watches(by_namespace=bool(settings.namespaces))
        resync = Resync(
            self._api,
            cache=cache,
            wake=queue.add,
            done=metrics.resynced,
            settings=settings,
            found=watches.found,
        )
        grace = settings.run_metrics_seconds
        runs = runmetrics.Runs(cache.seen, limits=settings.limits, clock=_now, grace_seconds=grace)
        metrics.watch(runs=runs, depth=lambda: queue.depth)
        metrics.leads()
        self._health.trouble = health.stuck(resync, queue, watches)
        self._health.unready = lambda: "not everything has been listed yet"
        first = asyncio.create_task(resync.first(), name="first list")
        self._tasks.append(first)
        await _until_one_ends(self._tasks)
        self._tasks.remove(first)
        self._health.unready = lambda: None
        shell = handlers.Shell(cache=cache, wake=queue.add, credentials=self._api.credentials, told=watches.told)
        insights = Insights()
        parts = {
            "queue": queue.run(),
            "poller": polls.run(),
            "resync": resync.run(),
            "kopf": _kopf(shell, settings, insights),
            "discovery": _see_that_all_is_watched(insights),
        }
        self._tasks += [asyncio.create_task(part, name=name) for name, part in parts.items()]
        await _until_one_ends(self._tasks)
        raise RuntimeError("a part that works for ever has ended")


async def _kopf(shell: handlers.Shell, settings: Settings, insights: Insights) -> None:
    await kopf.operator(
        registry=handlers.registry(shell),
        settings=handlers.settings(),
        insights=insights,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
    )


async def _see_that_all_is_watched(insights: Insights) -> None:
    """For ever, unless a kind isn't: then TransientError, and the process starts again.

    Seen in kopf 1.45: it asks the API server once which kinds there are, takes a 404 of one group for the group's
    absence, and never watches its kinds. They do exist: all have been listed before.
    """
    await insights.ready_resources.wait()
    watched = {(resource.group, resource.plural) for resource in insights.watched_resources}
    missing = [kind.plural for kind in kinds.KINDS if (kind.group, kind.plural) not in watched]
    if missing:
        raise TransientError(f"the API server's discovery left out {', '.join(missing)}, which it listed a moment ago")
    await asyncio.Event().wait()


async def _until_one_ends(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Until one has ended. If that was through an error, it is raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _wait(asked: asyncio.Event) -> None:
    await asked.wait()


async def _stop(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel them, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    sys.exit(main())
