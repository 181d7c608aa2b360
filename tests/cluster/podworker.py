"""One pod on the test node, from the moment it is bound until its object is gone: start, watch, report, stop, clean up.

It behaves as a kubelet does with restartPolicy Never: waits while an image or a volume can't be had, runs the
containers side by side, writes the status, and when the pod is deleted sends SIGTERM, waits for the grace period and
lets the object go at last. A pod that was running before this node started is reported as failed; nothing is adopted.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import hashlib
import logging
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from finetune_operator.processes import Command, Exit, PodProcess, ProcessError
from tests.cluster import podspec, podstatus
from tests.cluster.api import STRATEGIC, Api, ApiError, Object
from tests.cluster.peers import Peers
from tests.cluster.podspec import Image, NotReady, Sources
from tests.cluster.volumes import Volumes

log = logging.getLogger(__name__)

FALLBACK_BYTES = 2048
LAST_BACK_OFF = 10.0


@dataclasses.dataclass(frozen=True)
class Host:
    """What every pod of a node shares."""

    api: Api
    folder: Path
    images: Mapping[str, Image]
    services: Mapping[str, str]
    peers: Peers
    shown_address: Callable[[str], str]


class PodWorker:
    """The life of one pod; `update` and `gone` tell it what the API server says."""

    def __init__(self, pod: Object, *, host: Host) -> None:
        self.pod = pod
        self.folder: Path = host.folder / pod["metadata"]["uid"]
        self._host = host
        self._path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        self._states: dict[str, podstatus.State] = {c["name"]: podstatus.Waiting() for c in pod["spec"]["containers"]}
        self._processes: dict[str, PodProcess] = {}
        self._address: str | None = None
        self._verdict: podstatus.Ended | None = None
        self._stop = asyncio.Event()
        self._gone = asyncio.Event()
        self._reporting = asyncio.Lock()

    def update(self, pod: Object) -> None:
        """The object has changed; a deletion timestamp means stop."""
        self.pod = pod
        if "deletionTimestamp" in pod["metadata"]:
            self._stop.set()

    def gone(self) -> None:
        """There is no such object any more."""
        self._gone.set()
        self._stop.set()

    def running(self, container: str) -> bool:
        """Whether the container may still write to its log."""
        return not isinstance(self._states[container], podstatus.Terminated)

    def log_file(self, container: str) -> Path:
        """What the container has said."""
        return self.folder / f"{container}.log"

    async def run(self) -> None:
        """From whatever phase the pod is in to the end of its object."""
        try:
            phase = self.pod["status"].get("phase")
            if phase == "Pending":
                await self._live()
            elif phase == "Running":
                await self._lost()
            await self._stop.wait()
            await self._insist(
                lambda: self._host.api.delete(self._path, uid=self.pod["metadata"]["uid"], grace_seconds=0)
            )
            await self._gone.wait()
        finally:
            await asyncio.gather(*(process.kill() for process in self._processes.values()))
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _live(self) -> None:
        with self._host.peers.join(self.pod, folder=self.folder) as address:
            self._address = address
            commands = await self._prepared(address)
            if commands is None:
                self._verdict = podstatus.Ended("", "The pod was deleted before its containers started.")
            else:
                await self._start(commands)
                await self._until_ended()
        await self._report()

    async def _lost(self) -> None:
        """The pod ran on this node before the node was restarted."""
        now = datetime.datetime.now(datetime.UTC)
        message = "The container could not be located when the pod was terminated"
        unknown = Exit(code=137, signal=None, termination_message=message, started=now, finished=now)
        self._states = {name: podstatus.Terminated(unknown, "ContainerStatusUnknown") for name in self._states}
        await self._report()

    async def _prepared(self, address: str) -> Mapping[str, Command] | None:
        """The containers' commands, once everything they need is there; None if the pod is deleted first."""
        delay, shown = 1.0, ""
        while not self._stop.is_set():
            try:
                return await self._commands(address)
            except NotReady as error:
                if str(error) != shown:
                    await self._event("Warning", error.event, str(error))
                shown = str(error)
            await self._report()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay)
            delay = min(2 * delay, LAST_BACK_OFF)
        return None

    async def _commands(self, address: str) -> Mapping[str, Command]:
        spec = self.pod["spec"]
        if spec.get("initContainers") or spec["restartPolicy"] != "Never":
            raise NotReady(
                "CreateContainerError", "the test node runs pods with restartPolicy Never and no init containers only"
            )
        sources = Sources(self._host.api, self.pod["metadata"]["namespace"])
        volumes = Volumes(self._host.api, self.pod, self.folder / "volumes", sources, address)
        commands = {}
        for container in spec["containers"]:
            try:
                commands[container["name"]] = await self._command(container, volumes, sources=sources, address=address)
            except NotReady as error:
                self._states[container["name"]] = self._waiting(container["name"], error)
                raise
        return commands

    def _waiting(self, container: str, error: NotReady) -> podstatus.Waiting:
        """The first failure to pull shows as such, every later one as backing off."""
        before = self._states[container]
        if error.reason == "ErrImagePull" and isinstance(before, podstatus.Waiting) and "Image" in before.reason:
            return podstatus.Waiting("ImagePullBackOff", f"Back-off pulling image: {error.reason}: {error.message}")
        return podstatus.Waiting(error.reason, error.message)

    async def _command(self, container: Object, volumes: Volumes, *, sources: Sources, address: str) -> Command:
        reference = container["image"]
        if reference not in self._host.images:
            raise NotReady("ErrImagePull", f'failed to pull and unpack image "{reference}": not found')
        image = self._host.images[reference]
        env = await podspec.environment(
            container, self.pod, image=image, sources=sources, pod_ip=address, services=self._host.services
        )
        return Command(
            argv=podspec.command_line(container, image=image, env=env),
            env=env,
            mounts=tuple(podspec.mounts(container, volumes=await volumes.ready(), env=env)),
            log=self.log_file(container["name"]),
            pod_ip=address,
            working_dir=container.get("workingDir") or "/",
            grace_seconds=self.pod["spec"]["terminationGracePeriodSeconds"],
            termination_log=container["terminationMessagePath"],
            hosts=self.folder / "hosts",
        )

    async def _start(self, commands: Mapping[str, Command]) -> None:
        for name, command in commands.items():
            try:
                self._processes[name] = process = await PodProcess.start(command)
            except ProcessError as error:
                self._states[name] = podstatus.not_started(str(error), datetime.datetime.now(datetime.UTC))
                await self._event("Warning", "Failed", f"Error: {error}")
            else:
                self._states[name] = podstatus.Running(process.started, process.pid)
        await self._report()

    async def _until_ended(self) -> None:
        """Until every container has ended, by itself, because the pod is deleted, or at its deadline."""
        all_ended = asyncio.gather(*(self._follow(name, process) for name, process in self._processes.items()))
        stop = asyncio.create_task(self._stop.wait())
        deadline = self.pod["spec"].get("activeDeadlineSeconds")
        waited_for: list[asyncio.Future[Any]] = [all_ended, stop]
        await asyncio.wait(waited_for, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not all_ended.done():
            if not self._stop.is_set():
                words = "Pod was active on the node longer than the specified deadline"
                self._verdict = podstatus.Ended("DeadlineExceeded", words)
            await self._event("Normal", "Killing", "Stopping containers")
            await asyncio.gather(*(self._end(process) for process in self._processes.values()))
        await all_ended

    async def _end(self, process: PodProcess) -> None:
        """SIGTERM and the grace period; no grace once the object is gone, as after a forced deletion."""
        grace = self.pod["metadata"].get("deletionGracePeriodSeconds", process.command.grace_seconds)
        gone = asyncio.create_task(self._gone.wait())
        terminated = asyncio.create_task(process.terminate(grace_seconds=grace))
        await asyncio.wait({gone, terminated}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        await process.kill()
        await terminated

    async def _follow(self, name: str, process: PodProcess) -> None:
        """Wait for one container; the last one's end is reported with the pod's."""
        self._states[name] = podstatus.ended(self._with_last_word(name, await process.wait()))
        if any(isinstance(state, podstatus.Running) for state in self._states.values()):
            await self._report()

    def _with_last_word(self, name: str, end: Exit) -> Exit:
        """The end of the log in place of an empty termination message, for containers that ask for it."""
        container = next(one for one in self.pod["spec"]["containers"] if one["name"] == name)
        wanted = container.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        if not wanted or end.code == 0 or end.termination_message:
            return end
        said = self.log_file(name).read_bytes()[-FALLBACK_BYTES:].decode(errors="replace")
        return dataclasses.replace(end, termination_message=said)

    async def _report(self) -> None:
        """Write the status as it is now; what the API server then has is what the next one starts from."""
        async with self._reporting:
            shown = self._host.shown_address(self._address) if self._address else None
            now = datetime.datetime.now(datetime.UTC)
            body = podstatus.build(self.pod, self._states, pod_ip=shown, now=now, verdict=self._verdict)
            await self._insist(lambda: self._patch(body))

    async def _patch(self, body: Object) -> None:
        self.update(await self._host.api.request("PATCH", f"{self._path}/status", body=body, content_type=STRATEGIC))

    async def _insist(self, call: Callable[[], Awaitable[object]]) -> None:
        """Until the API server has taken it or the pod is gone; trouble passes, and a refusal is a bug of ours."""
        while not self._gone.is_set():
            try:
                await call()
                return
            except ApiError as error:
                if error.code == 404:
                    return
                if error.code < 500 and error.code not in (409, 429):
                    raise
                log.warning("%s: %s", self._path, error)
            except (aiohttp.ClientError, TimeoutError) as error:
                log.warning("%s: %s", self._path, error)
            await asyncio.sleep(0.5)

    async def _event(self, kind: str, reason: str, message: str) -> None:
        """Tell of it in an Event; one that can't be written is only logged, as everywhere in Kubernetes."""
        meta = self.pod["metadata"]
        now = podstatus.time(datetime.datetime.now(datetime.UTC))
        name = f"{meta['name']}.{hashlib.sha256((meta['uid'] + reason + message + now).encode()).hexdigest()[:16]}"
        involved = {"kind": "Pod", "apiVersion": "v1"} | {key: meta[key] for key in ("name", "namespace", "uid")}
        event: dict[str, Any] = {
            "metadata": {"name": name},
            "type": kind,
            "reason": reason,
            "message": message,
            "involvedObject": involved,
        }
        event |= {"firstTimestamp": now, "lastTimestamp": now, "count": 1}
        event |= {"source": {"component": "test-node", "host": self.pod["spec"]["nodeName"]}}
        try:
            await self._host.api.request("POST", f"/api/v1/namespaces/{meta['namespace']}/events", body=event)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            log.warning("event %s of %s: %s", reason, self._path, error)
