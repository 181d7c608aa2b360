"""A pod's container as a process of this machine: the runner that the local backend and the test node share.

`PodProcess.start` runs a command with its volumes mounted where the pod wants them, in a mount namespace of its own,
and `wait` tells how it ended, as a kubelet would: exit code (128 + n after signal n), last word, times. Memory isn't
limited and the network is the machine's: a command finds the address that is its own in FINETUNE_BIND_ADDRESS and has
to listen there. It must never leave a process behind, whatever becomes of the runner, nor change what the host sees
under /mnt, /dev or /etc.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from finetune_operator import launcher

BIND_ADDRESS = "FINETUNE_BIND_ADDRESS"
TERMINATION_LOG = "/dev/termination-log"


class ProcessError(Exception):
    """The command couldn't be started; the message says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mount:
    """A folder or file of the host at a place of the pod's choosing; without a source an empty folder in memory."""

    target: str
    source: Path | None = None
    read_only: bool = False
    tmpfs_bytes: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What to run. `env` is the whole environment but for FINETUNE_BIND_ADDRESS; `log` gets both output streams."""

    argv: tuple[str, ...]
    log: Path
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    pod_ip: str = "127.0.0.1"
    working_dir: str = "/"
    grace_seconds: float = 30
    termination_log: str = TERMINATION_LOG
    hosts: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exit:
    """How a command ended."""

    code: int
    signal: int | None
    termination_message: str
    started: datetime.datetime
    finished: datetime.datetime


class PodProcess:
    """One running command; made by `start`."""

    def __init__(self, command: Command, *, supervisor: asyncio.subprocess.Process, pid: int, scratch: Path) -> None:
        self.command = command
        self.pid = pid
        self.started = _now()
        self._supervisor = supervisor
        self._scratch = scratch
        self._exit = asyncio.create_task(self._finish())

    @classmethod
    async def start(cls, command: Command) -> PodProcess:
        """Run the command; raises ProcessError when a mount or the command itself fails."""
        if sys.platform != "linux":
            raise ProcessError("pods run as processes on Linux only: mount namespaces are needed for their volumes")
        scratch = Path(tempfile.mkdtemp(prefix="finetune-pod."))
        try:
            supervisor = await _launch(command, scratch=scratch)
            pid = await _begun(supervisor, log=command.log)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return cls(command, supervisor=supervisor, pid=pid, scratch=scratch)

    async def wait(self) -> Exit:
        """How it ended, once it has; any number of callers may wait."""
        return await asyncio.shield(self._exit)

    async def terminate(self, *, grace_seconds: float | None = None) -> Exit:
        """SIGTERM, then SIGKILL to all that is left after the grace period."""
        grace = self.command.grace_seconds if grace_seconds is None else grace_seconds
        if grace > 0:
            self._order("term")
            done, _ = await asyncio.wait([self._exit], timeout=grace)
            if done:
                return await self.wait()
        return await self.kill()

    async def kill(self) -> Exit:
        """SIGKILL at once."""
        self._order("kill")
        return await self.wait()

    def _order(self, order: str) -> None:
        pipe = self._supervisor.stdin
        assert pipe
        if not self._exit.done():
            pipe.write(order.encode() + b"\n")

    async def _finish(self) -> Exit:
        said = await _said(self._supervisor)
        finished = _now()
        await _hang_up(self._supervisor)
        # A launcher that was killed takes its command with it and says nothing; nor could it clean up.
        shutil.rmtree(self._scratch, ignore_errors=True)
        code = os.waitstatus_to_exitcode(int(str(said["status"]))) if "status" in said else -signal.SIGKILL
        return Exit(
            code=code if code >= 0 else 128 - code,
            signal=-code if code < 0 else None,
            termination_message=str(said.get("last_word", "")),
            started=self.started,
            finished=finished,
        )


async def _launch(command: Command, *, scratch: Path) -> asyncio.subprocess.Process:
    """The launcher, in a session of its own so that Ctrl-C reaches the runner alone, with the plan on its way."""
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("ab") as log:
        supervisor = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", launcher.__file__),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert supervisor.stdin
    supervisor.stdin.write(json.dumps(_plan(command, scratch=scratch)).encode() + b"\n")
    return supervisor


def _plan(command: Command, *, scratch: Path) -> dict[str, object]:
    """What the launcher needs; makes the files that it finds in the scratch folder, which it removes at the end."""
    stage, last_word = scratch / "stage", scratch / "termination-log"
    stage.mkdir()
    last_word.touch()
    own = [Mount(target=command.termination_log, source=last_word)]
    if command.hosts:
        own.append(Mount(target="/etc/hosts", source=command.hosts))
    mounts = [
        {
            "target": mount.target,
            "source": str(mount.source) if mount.source else None,
            "read_only": mount.read_only,
            "tmpfs_bytes": mount.tmpfs_bytes,
        }
        for mount in (*command.mounts, *own)
    ]
    return {
        "argv": command.argv,
        "env": {**command.env, BIND_ADDRESS: command.pod_ip},
        "working_dir": command.working_dir,
        "log": str(command.log.absolute()),
        "scratch": str(scratch),
        "stage": str(stage),
        "termination_log": str(last_word),
        "mounts": mounts,
    }


async def _begun(supervisor: asyncio.subprocess.Process, *, log: Path) -> int:
    """The command's process id; if there is none, or the wait is cancelled, the launcher is gone on return."""
    try:
        said = await _said(supervisor)
        if "pid" not in said:
            raise ProcessError(str(said.get("error", f"the launcher ended early, see {log}")))
        return int(str(said["pid"]))
    except BaseException:
        await _hang_up(supervisor)
        raise


async def _hang_up(supervisor: asyncio.subprocess.Process) -> None:
    """Close the pipe, whereupon the launcher ends whatever it has started, and itself."""
    assert supervisor.stdin
    supervisor.stdin.close()
    await supervisor.wait()


async def _said(supervisor: asyncio.subprocess.Process) -> Mapping[str, object]:
    """The launcher's next message; empty when it has ended."""
    assert supervisor.stdout
    line = await supervisor.stdout.readline()
    message: Mapping[str, object] = json.loads(line) if line else {}
    return message


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
