"""A node of a test cluster: it registers with the API server and runs its pods as processes of this machine.

    images = {"trainer": Image(("python", "-m", "finetune_trainer"))}
    with node.running(node.Settings(kubeconfig=cluster.node_kubeconfig, folder=cluster.folder / "node", images=images)):
        ...

or `python -m tests.cluster.node --kubeconfig FILE --folder FOLDER --image trainer=python,-m,finetune_trainer`. To the
scheduler and the controllers it is a node like any other: capacity (a GPU is only pretended), heartbeats, status, logs,
evictions; `podworker.py` is the life of one pod. When it ends, every process of every pod ends. It must never be
pointed at a cluster that people use.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import enum
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path

from tests.cluster import podlogs, podnetwork, registration
from tests.cluster.api import Api, Listed, Object
from tests.cluster.peers import Peers
from tests.cluster.podspec import Image
from tests.cluster.podworker import Host, PodWorker
from tests.cluster.provisioner import Provisioner

log = logging.getLogger(__name__)


class PodNetwork(enum.StrEnum):
    """Which address a pod reports; `podnetwork.py` says why there are two."""

    PROXIED = "proxied"  # 198.18.x.y, which the API server's pod proxy reaches
    LOOPBACK = "loopback"  # 127.18.x.y, which processes of this machine reach


@dataclasses.dataclass(frozen=True)
class Machine:
    """One Node object."""

    name: str = "node-1"
    cpu: str = "16"
    memory: str = "64Gi"
    pods: int = 110
    devices: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"nvidia.com/gpu": "2"})
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def capacity(self) -> Mapping[str, str]:
        """What the scheduler may give away."""
        return {
            "cpu": self.cpu,
            "memory": self.memory,
            "pods": str(self.pods),
            "ephemeral-storage": "1Ti",
            **self.devices,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a node needs to know. Without a certificate there are no logs to be had through the API server."""

    kubeconfig: Path
    folder: Path  # volumes, files of pods and their logs
    images: Mapping[str, Image]
    machines: tuple[Machine, ...] = (Machine(),)
    network: PodNetwork = PodNetwork.PROXIED
    certificate: tuple[Path, Path] | None = None
    api_server: str | None = None


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[None]:
    """The node in a thread of this process, registered and ready; its processes are gone when the block has ended."""
    begun: Future[Callable[[], object]] = Future()
    ready: Future[None] = Future()
    ended: Future[None] = Future()

    async def serve() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task
        begun.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        async with _Node.started(settings) as node:
            ready.set_result(None)
            await node.run()

    def main() -> None:
        try:
            asyncio.run(serve())
        except asyncio.CancelledError:
            ended.set_result(None)
        except BaseException as error:
            log.exception("the node has failed")
            (ended if ready.done() else ready).set_exception(error)

    thread = threading.Thread(target=main, name="test-node")
    thread.start()
    stop = begun.result()
    try:
        ready.result()
        yield
    finally:
        if thread.is_alive():
            stop()
        thread.join()
    ended.result()


class _Node:
    def __init__(self, api: Api, *, settings: Settings, addresses: podnetwork.Addresses) -> None:
        self._api = api
        self._machines = {machine.name: machine for machine in settings.machines}
        self._workers: dict[str, PodWorker] = {}
        self._lives: dict[str, asyncio.Task[None]] = {}
        self._provisioner = Provisioner(api, settings.folder / "volumes")
        shown = podnetwork.public if settings.network is PodNetwork.PROXIED else str
        services = _services(settings.api_server)
        self._host = Host(api, settings.folder / "pods", settings.images, services, Peers(addresses), shown)

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, settings: Settings) -> AsyncIterator[_Node]:
        """Registered, with its log endpoint; on leaving, every process has ended."""
        async with contextlib.AsyncExitStack() as stack:
            addresses = stack.enter_context(contextlib.closing(podnetwork.Addresses()))
            api = Api.from_kubeconfig(settings.kubeconfig)
            stack.push_async_callback(api.close)
            node = cls(api, settings=settings, addresses=addresses)
            stack.push_async_callback(node._end_all)
            port = 0
            if settings.certificate:
                certificate, key = settings.certificate
                port = await stack.enter_async_context(podlogs.served(node.find, certificate=certificate, key=key))
            for machine in settings.machines:
                await registration.register(
                    api, machine.name, capacity=machine.capacity, labels=machine.labels, port=port
                )
            yield node

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._provisioner.run())
            tasks.create_task(self._follow_pods())
            for name in self._machines:
                tasks.create_task(registration.heartbeat(self._api, name))

    def find(self, namespace: str, name: str) -> PodWorker | None:
        """The pod of that name that is on this node now."""
        wanted = (namespace, name)
        found = [
            w for w in self._workers.values() if (w.pod["metadata"]["namespace"], w.pod["metadata"]["name"]) == wanted
        ]
        return found[-1] if found else None

    async def _end_all(self) -> None:
        for life in self._lives.values():
            life.cancel()
        await asyncio.gather(*self._lives.values(), return_exceptions=True)

    async def _follow_pods(self) -> None:
        async for news in self._api.follow("/api/v1/pods"):
            if isinstance(news, Listed):
                there = {pod["metadata"]["uid"] for pod in news.items}
                for uid in self._workers.keys() - there:
                    self._forget(uid)
                for pod in news.items:
                    self._see(pod)
            elif news.deleted:
                self._forget(news.item["metadata"]["uid"])
            else:
                self._see(news.item)

    def _see(self, pod: Object) -> None:
        """A pod as it is now; one that is bound to this node and new gets a worker."""
        uid = pod["metadata"]["uid"]
        if uid in self._workers:
            self._workers[uid].update(pod)
        elif pod["spec"].get("nodeName") in self._machines:
            self._workers[uid] = worker = PodWorker(pod, host=self._host)
            worker.update(pod)
            self._lives[uid] = life = asyncio.create_task(worker.run())
            life.add_done_callback(lambda ended: self._ended(uid, ended))

    def _forget(self, uid: str) -> None:
        if uid in self._workers:
            self._workers[uid].gone()

    def _ended(self, uid: str, life: asyncio.Task[None]) -> None:
        pod = self._workers.pop(uid).pod["metadata"]
        del self._lives[uid]
        if not life.cancelled() and life.exception():
            log.error("pod %s/%s was dropped", pod["namespace"], pod["name"], exc_info=life.exception())


def _services(server: str | None) -> Mapping[str, str]:
    """How a pod finds the API server."""
    if server is None:
        return {}
    host, _, port = server.removeprefix("https://").rpartition(":")
    return {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}


def main() -> int:
    """Run until Ctrl-C."""
    parser = argparse.ArgumentParser(description="A node that runs pods as processes of this machine.")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--name", default="node-1")
    parser.add_argument("--gpus", default="2", help="pretended nvidia.com/gpu capacity")
    parser.add_argument("--image", action="append", default=[], metavar="NAME=WORD,WORD", help="an image's entry point")
    parser.add_argument("--network", type=PodNetwork, choices=list(PodNetwork), default=PodNetwork.LOOPBACK)
    parser.add_argument(
        "--certificate", type=Path, nargs=2, metavar=("CERTIFICATE", "KEY"), help="for the log endpoint"
    )
    parser.add_argument("--folder", type=Path, required=True, help="for volumes, files of pods and their logs")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    images = {
        name: Image(tuple(words.split(","))) for name, _, words in (text.partition("=") for text in options.image)
    }
    machine = Machine(options.name, devices={"nvidia.com/gpu": options.gpus})
    settings = Settings(
        kubeconfig=options.kubeconfig,
        images=images,
        machines=(machine,),
        folder=options.folder,
        network=options.network,
        certificate=tuple(options.certificate) if options.certificate else None,
    )
    with contextlib.suppress(KeyboardInterrupt), running(settings):
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
