"""A node that is this machine: the pods of a `Memory` run as processes with folders for volumes, and are followed.

Only the trainer installed here is run, whatever a pod's image; `unable` says what a run asks for and can't have. It
must never leave a process behind, nor promise what a cluster would: limits of memory, CPU and storage, or placement.
"""

import asyncio
import hashlib
import logging
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from finetune_api.snapshot import PORT, Snapshot
from finetune_api.trainer_config import TOKEN_VARIABLE
from finetune_operator import jobs, names, processes
from finetune_operator.children import Body, Pod
from finetune_operator.environment import HUB_VARIABLE
from finetune_operator.errors import OperatorError, UserError
from finetune_operator.memory import POD, Memory, Ref
from finetune_operator.names import Key
from finetune_operator.poller import Access, Target
from finetune_operator.processes import Command, Mount, PodProcess
from finetune_operator.settings import Settings

log = logging.getLogger(__name__)

TRAINER = (sys.executable, "-m", "finetune_trainer")
"""What a container of the default image runs."""
_COULD_NOT_START = 128
_UNITS = {"k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4, "P": 1000**5}
_UNITS |= {"Ki": 1024, "Mi": 1024**2, "Gi": 1024**3, "Ti": 1024**4, "Pi": 1024**5}


class Machine:
    """Runs what is pending when it is told to look."""

    def __init__(
        self,
        memory: Memory,
        *,
        access: Access,
        volumes: Path,
        config_maps: Mapping[Key, Mapping[str, str]],
        environment: Mapping[str, str],
        settings: Settings,
        trainer: Sequence[str] = TRAINER,
    ) -> None:
        self._memory = memory
        self._access = access
        self._volumes = volumes.absolute()
        self._config_maps = config_maps
        self._environment = environment
        self._settings = settings
        self._trainer = tuple(trainer)
        self._tasks: dict[Ref, asyncio.Task[None]] = {}
        self._processes: dict[Ref, PodProcess] = {}
        self._ends: dict[Ref, asyncio.Task[processes.Exit]] = {}
        self._stopping = False

    def unable(self, job: Body) -> Iterator[UserError]:
        """What the pods of a run's Job would need, and this machine doesn't have."""
        pod = job["spec"]["template"]["spec"]
        container = pod["containers"][0]
        if container["image"] != self._settings.trainer_image:
            message = "no image can be run without a cluster: remove it, and the trainer installed here is used"
            yield UserError("spec.trainer.image", message)
        if job["spec"]["completions"] > 1:
            yield UserError("spec.resources.nodes", "there is one machine without a cluster: use 1")
        secret = (entry["name"] for entry in container["env"] if "secretKeyRef" in entry.get("valueFrom", {}))
        if any(name not in self._environment for name in secret):
            message = f"there are no Secrets without a cluster: set {TOKEN_VARIABLE} in the environment"
            yield UserError("spec.model.credentials", message)
        metadata = job["metadata"]
        own = names.claim(metadata["labels"][names.RUN_LABEL], metadata["annotations"][names.RUN_UID_ANNOTATION])
        for volume in pod["volumes"]:
            problem = self._missing(volume, namespace=metadata["namespace"], own=own)
            if problem:
                yield UserError(_FIELDS[volume["name"]], problem)

    def _missing(self, volume: Body, *, namespace: str, own: str) -> str | None:
        if "configMap" in volume:
            name, key = volume["configMap"]["name"], volume["configMap"]["items"][0]["key"]
            there = key in self._config_maps.get(Key(namespace, name), {})
            return None if there else f"ConfigMap {name} with the key {key} isn't in the file: add it"
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if claim in (None, own) or (self._volumes / claim).is_dir():
            return None
        return f"claim {claim} is the folder {self._volumes / claim} here, which isn't there: make it, or name another"

    def log_path(self, pod: str) -> Path:
        """What a pod's process prints."""
        return self._volumes / ".logs" / f"{pod}.log"

    def look(self) -> None:
        """Run the pods that are pending, and stop those that are being deleted."""
        for body in self._memory.all(POD):
            ref, pod = Ref.of(body), Pod.parse(body)
            if ref not in self._tasks and pod.phase == "Pending" and not self._stopping:
                self._tasks[ref] = asyncio.create_task(self._run(ref, body))
            elif pod.deletion is not None and ref in self._processes and ref not in self._ends:
                self._ends[ref] = asyncio.create_task(self._processes[ref].terminate())

    async def stop(self, *, grace_seconds: float | None = None) -> None:
        """End every process: SIGTERM, and SIGKILL after the pod's grace period or this one. Reports their ends."""
        self._stopping = True
        await asyncio.gather(*(process.terminate(grace_seconds=grace_seconds) for process in self._processes.values()))
        await asyncio.gather(*self._tasks.values())

    async def _run(self, ref: Ref, pod: Body) -> None:
        scratch = Path(tempfile.mkdtemp(prefix="finetune-volumes."))
        try:
            address = _free_address(pod["metadata"]["uid"])
            process = await PodProcess.start(self._command(pod, address=address, scratch=scratch))
            await self._attend(ref, process, address=address)
        except (processes.ProcessError, OSError) as error:
            jobs.end_pod(self._memory, ref, exit_code=_COULD_NOT_START, last_word=str(error), reason="StartError")
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    async def _attend(self, ref: Ref, process: PodProcess, *, address: str) -> None:
        self._processes[ref] = process
        jobs.start_pod(self._memory, ref, ip=address, node=platform.node())
        asking = asyncio.create_task(self._ask(ref, address=address))
        try:
            if self._stopping:
                await process.terminate()
            end = await process.wait()
        finally:
            asking.cancel()
            del self._processes[ref]
        stopped = "StoppedByUser" if self._stopping and end.code != 0 else ""
        jobs.end_pod(self._memory, ref, exit_code=end.code, last_word=end.termination_message, disrupted=stopped)

    async def _ask(self, ref: Ref, *, address: str) -> None:
        """Keep what the trainer says of itself, until it has ended."""
        pod = self._memory.get(ref)
        assert pod is not None, "a pod stays while its process runs"
        key = Key(ref.namespace, pod["metadata"]["labels"][names.RUN_LABEL])
        uid = pod["metadata"]["annotations"][names.RUN_UID_ANNOTATION]
        found = Pod.parse(pod)
        target = Target(
            key=key, run_uid=uid, attempt=found.attempt, pod=ref.name, pod_uid=found.uid, ip=address, trains=True
        )
        while True:
            await asyncio.sleep(self._settings.poll_seconds)
            try:
                snapshot = Snapshot.decode(await self._access(target))
            except (OperatorError, ValueError) as error:
                log.debug("pod %s doesn't tell its progress: %s", ref.name, error)
                continue
            self._memory.snapshots[key] = snapshot
            self._memory.on_change(ref)

    def _command(self, pod: Body, *, address: str, scratch: Path) -> Command:
        container = pod["spec"]["containers"][0]
        said = {entry["name"]: entry["value"].replace("$$", "$") for entry in container["env"] if "value" in entry}
        del said[HUB_VARIABLE]  # what the user has downloaded before is in the user's own place
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        namespace = pod["metadata"]["namespace"]
        return Command(
            argv=self._trainer,
            log=self.log_path(pod["metadata"]["name"]),
            env={**self._environment, **said},
            mounts=tuple(
                self._mount(mount, volumes[mount["name"]], namespace=namespace, scratch=scratch)
                for mount in container["volumeMounts"]
            ),
            pod_ip=address,
            grace_seconds=pod["spec"]["terminationGracePeriodSeconds"],
        )

    def _mount(self, mount: Body, volume: Body, *, namespace: str, scratch: Path) -> Mount:
        """The folder behind a volume; made if it is the run's own."""
        target, read_only = mount["mountPath"], bool(mount.get("readOnly"))
        if (volume.get("emptyDir") or {}).get("medium") == "Memory":
            return Mount(target=target, tmpfs_bytes=_bytes(volume["emptyDir"]["sizeLimit"]))
        if "persistentVolumeClaim" in volume:
            folder = self._volumes / volume["persistentVolumeClaim"]["claimName"] / mount.get("subPath", "")
        else:
            folder = scratch / volume["name"]
        folder.mkdir(parents=True, exist_ok=True)
        if "configMap" in volume:
            data = self._config_maps[Key(namespace, volume["configMap"]["name"])]
            for item in volume["configMap"]["items"]:
                (folder / item["path"]).write_text(data[item["key"]], encoding="utf-8")
        return Mount(target=target, source=folder, read_only=read_only)


_FIELDS = {
    "run": "spec.storage.claimName",
    "data": "spec.dataset.train.uri",
    "eval": "spec.dataset.eval.uri",
    "model": "spec.model.uri",
    "adapter": "spec.model.uri",
}
"""The field that asks for a volume."""


def _bytes(quantity: str) -> int:
    digits = quantity.rstrip("kKMGTPi")
    return int(float(digits) * _UNITS.get(quantity[len(digits) :], 1))


def _free_address(seed: str) -> str:
    """A loopback address on which nobody answers yet, so that each pod has its own port 9400."""
    for attempt in range(100):
        drawn = hashlib.sha256(f"{seed} {attempt}".encode()).digest()
        address = f"127.{drawn[0] % 253 + 2}.{drawn[1]}.{drawn[2] % 253 + 1}"
        with socket.socket() as probe:
            try:
                probe.bind((address, PORT))
            except OSError:
                continue
            return address
    raise OSError(f"no loopback address has port {PORT} free")
