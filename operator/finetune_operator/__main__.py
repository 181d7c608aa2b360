"""The operator's process: `python -m finetune_operator`. Settings come from the environment, see `settings`.

Puts the pieces together, lists everything once, and hands the process to kopf until a signal ends it. It must never go
on when one of its tasks has ended: it exits, and Kubernetes starts it anew.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import kopf

from finetune_operator import connection, handlers, logs, poller
from finetune_operator.cache import Cache
from finetune_operator.cluster import KubernetesCluster
from finetune_operator.errors import RefusedError, UserError
from finetune_operator.metrics import Metrics
from finetune_operator.names import Key
from finetune_operator.poller import Poller
from finetune_operator.reconcile import Reconciler
from finetune_operator.resync import Resync
from finetune_operator.settings import PREFIX, Settings
from finetune_operator.workqueue import WorkQueue

log = logging.getLogger("finetune_operator")

VERSION = version("finetune-operator")
_OLD_SECONDS = 60.0
_STUCK_SECONDS = 180.0
_LAST_SECONDS = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal; the exit code."""
    _parser().parse_args(arguments)
    try:
        settings = Settings.from_environment()
        logs.configure(settings.log_format)
        asyncio.run(serve(settings))
    except UserError as error:
        sys.stderr.write(f"finetune-operator: {error.field} {error.message}\n")
        return os.EX_USAGE
    except RefusedError as error:
        sys.stderr.write(f"finetune-operator: {error}; examples/operator-rbac.yaml has the rights that are needed\n")
        return os.EX_NOPERM
    except OSError as error:
        sys.stderr.write(f"finetune-operator: {error.strerror}\n")
        return os.EX_OSERR
    except KeyboardInterrupt:
        return 130
    return 0


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


async def serve(settings: Settings) -> None:
    """Everything, until a signal."""
    metrics = Metrics(version=VERSION)
    async with (
        connection.connect(version=VERSION, observer=metrics.request) as api,
        poller.session() as session,
    ):
        cache = Cache()
        reconcile = metrics.timed(Reconciler(KubernetesCluster(api, cache=cache), settings=settings, clock=_now))

        async def look(key: Key) -> float | None:
            try:
                return await reconcile(key)
            finally:
                polls.follow(key)

        queue = WorkQueue(look, workers=settings.workers)
        access = poller.choose(settings, connection=api, session=session)
        polls = Poller(access, cache=cache, wake=queue.add, failed=metrics.poll_failed, settings=settings)
        resync = Resync(api, cache=cache, wake=queue.add, done=metrics.resynced, settings=settings)
        metrics.watch(phases=cache.phases, depth=lambda: queue.depth)
        port = metrics.serve(address=settings.bind_address, port=settings.metrics_port)
        log.info("finetune-operator %s, metrics on port %d", VERSION, port)
        await resync.first()
        asked = asyncio.Event()
        tasks = [asyncio.create_task(part.run(), name=type(part).__name__) for part in (queue, polls, resync)]
        shell = handlers.Shell(
            cache=cache,
            wake=queue.add,
            credentials=api.credentials,
            trouble=lambda: trouble(resync, queue, settings=settings),
            started=lambda: _take_signals(asked.set),
            stop=lambda: _stop(tasks),
        )
        await _until_one_ends(tasks, _kopf(shell, settings), asked=asked)


async def _kopf(shell: handlers.Shell, settings: Settings) -> None:
    address = settings.bind_address or "0.0.0.0"  # noqa: S104 - a setting
    await kopf.operator(
        registry=handlers.registry(shell),
        settings=handlers.settings(),
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        liveness_endpoint=f"http://{address}:{settings.health_port}/healthz" if settings.health_port else None,
    )


def _take_signals(stop: Callable[[], None]) -> None:
    """In kopf's place, whose own way to end raises an AssertionError if it is in the middle of its scan of the API."""
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)


async def _until_one_ends(
    tasks: Sequence[asyncio.Task[None]], shell: Coroutine[None, None, None], *, asked: asyncio.Event
) -> None:
    """Until it is asked to end, or anything has ended through an error, which is raised."""
    kopf_task = asyncio.create_task(shell, name="kopf")
    everything = [kopf_task, *tasks]
    waiter = asyncio.create_task(_wait(asked), name="signals")
    try:
        done, _ = await asyncio.wait([waiter, *everything], return_when=asyncio.FIRST_COMPLETED)
        if all(task.cancelled() for task in done):
            # kopf has stopped them, since it ends. What it still waits for is an API server that doesn't answer.
            await asyncio.wait([kopf_task], timeout=_LAST_SECONDS)
    finally:
        await _stop([waiter, *everything])
    for task in everything:
        if not task.cancelled():
            task.result()


async def _wait(asked: asyncio.Event) -> None:
    await asked.wait()


async def _stop(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel them, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def trouble(resync: Resync, queue: WorkQueue, *, settings: Settings) -> str | None:
    """Why this process should be restarted, None if it is well."""
    if resync.age() > max(_OLD_SECONDS, 3 * settings.resync_seconds):
        return f"the last good resync was {resync.age():.0f} s ago"
    if queue.longest() > _STUCK_SECONDS:
        return f"a worker has been at one run for {queue.longest():.0f} s"
    return None


def _now() -> datetime:
    return datetime.now(UTC)


if __name__ == "__main__":
    sys.exit(main())
