"""The program between a pod's runner and its command: a container's file system and process tree, without a container.

`processes.py` starts it with a plan (one JSON line on standard input) and keeps that pipe open: "term" asks the command
to end, "kill" and the end of the pipe end it and everything that it started at once, so nothing outlives a runner that
is killed. Its one child enters a private mount namespace (in a user namespace when not root), mounts the plan's volumes
there and becomes the command. Standard output gets one JSON line when the command runs and one, with its last word,
when it has ended. It must never change a mount or a file that the host sees, other than in the volumes themselves.
Standard library alone, started with `python -I -S`: it imports nothing of ours and starts in milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import stat
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 0x1, 0x20, 0x1000, 0x2000, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
TERMINATION_BYTES = 4096

# Flags of a mount that a remount inside a user namespace must repeat: statvfs flag -> mount flag.
KEPT_FLAGS = {0x2: 0x2, 0x4: 0x4, 0x8: 0x8, 0x400: 0x400, 0x800: 0x800, 0x1000: 0x200000}

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raise the C library's error with what was being done."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str | None, target: str, *, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    encoded = [text.encode() if text is not None else None for text in (source, target, kind, data)]
    check(libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]), f"mount {target}")


def enter_namespace() -> None:
    """A mount namespace of our own. Where the system keeps that from its users, the error says what would help."""
    try:
        _unshare()
    except PermissionError as error:
        remedy = "run as root, or allow user namespaces: sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        raise PermissionError(error.errno, f"{error.strerror}; {remedy}") from error


def _unshare() -> None:
    """Without root inside a user namespace, in which we stay the same user."""
    user, group = os.geteuid(), os.getegid()
    check(libc.unshare(CLONE_NEWNS if user == 0 else CLONE_NEWNS | CLONE_NEWUSER), "private mount namespace")
    if user != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    mount(None, "/", flags=MS_REC | MS_PRIVATE)


class Mounts:
    """Mounts volumes where the plan wants them, also where the host has no such folder."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.volumes: list[str] = []
        self.staged: set[int] = set()

    def add(self, target: str, *, source: str | None, read_only: bool, tmpfs_bytes: int | None) -> None:
        target = os.path.realpath(target)
        self._make(target, folder=source is None or os.path.isdir(source))
        if source is None:
            mount("tmpfs", target, kind="tmpfs", data="mode=1777" + (f",size={tmpfs_bytes}" if tmpfs_bytes else ""))
        else:
            mount(source, target, flags=MS_BIND | MS_REC)
        if read_only:
            found = os.statvfs(target).f_flag
            kept = sum(flag for seen, flag in KEPT_FLAGS.items() if found & seen)
            mount(None, target, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | kept)
        self.volumes.append(target)

    def _make(self, target: str, *, folder: bool) -> None:
        """A place to mount on; the host's own folder stays untouched, for it is staged first."""
        if os.path.lexists(target):
            return
        existing = os.path.dirname(target)
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        in_volume = any(existing == volume or existing.startswith(volume + "/") for volume in self.volumes)
        if not in_volume and os.stat(existing).st_dev not in self.staged:
            self._stage(existing)
        if folder:
            os.makedirs(target)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with open(target, "x"):
                pass

    def _stage(self, folder: str) -> None:
        """Put a tmpfs over the folder that shows all it held before, to which this process alone can add."""
        if folder == "/":
            raise OSError(0, "a volume can only be mounted below a folder that this machine has, such as /mnt")
        mode = stat.S_IMODE(os.stat(folder).st_mode)
        mount("tmpfs", self.stage, kind="tmpfs", data=f"mode={mode:o}")
        for entry in os.scandir(folder):
            place = os.path.join(self.stage, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), place)
            elif entry.is_dir():
                os.mkdir(place)
                mount(entry.path, place, flags=MS_BIND | MS_REC)
            else:
                os.close(os.open(place, os.O_CREAT))
                mount(entry.path, place, flags=MS_BIND)
        mount(self.stage, folder, flags=MS_MOVE)
        self.staged.add(os.stat(folder).st_dev)


def start(plan: dict[str, Any]) -> int:
    """Fork the command; its process id once it runs. Raises OSError when a mount or the command fails."""
    launcher = os.getpid()
    failure, report = os.pipe2(os.O_CLOEXEC)
    command = os.fork()
    if command == 0:
        try:
            execute(plan, launcher=launcher)
        except OSError as error:
            os.write(report, f"{error.filename}: {error.strerror}".removeprefix("None: ").encode())
        os._exit(127)
    os.close(report)
    with open(failure, "rb") as pipe:
        said = pipe.read().decode()
    if said:
        os.waitpid(command, 0)
        raise OSError(0, said)
    return command


def execute(plan: dict[str, Any], *, launcher: int) -> NoReturn:
    """In the forked child: become the command."""
    enter_namespace()
    mounts = Mounts(plan["stage"])
    for wanted in sorted(plan["mounts"], key=lambda item: str(item["target"])):
        mounts.add(**wanted)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # only now: a change of credentials clears it
    if os.getppid() != launcher:
        os._exit(127)
    os.setsid()
    for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored_by_python, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    log = os.open(plan["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(plan["working_dir"])
    try:
        os.execvpe(plan["argv"][0], plan["argv"], plan["env"])
    except OSError as error:
        raise OSError(error.errno, f"can't run {plan['argv'][0]!r}: {error.strerror}") from error


def descendants(root: int) -> Iterable[int]:
    """Every process below this one; orphans too, since we are their subreaper."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as file:
                    parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    below = {root}
    while found := {child for child, parent in parents.items() if parent in below and child not in below}:
        below |= found
    return below - {root}


def kill_all() -> None:
    """SIGKILL whatever is left of the command's tree, until none is."""
    while left := descendants(os.getpid()):
        for child in left:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            continue


def supervise(command: int) -> int:
    """Wait for the command and obey the pipe; the wait status of the command, with nothing of its tree left."""
    wakeup, notify = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(notify)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    watched = [0, wakeup]
    while (status := reap(command)) is None:
        ready, _, _ = select.select(watched, [], [])
        if wakeup in ready:
            os.read(wakeup, 512)
        if 0 in ready:
            orders = os.read(0, 512)
            if b"term" in orders:
                os.kill(command, signal.SIGTERM)
            if b"kill" in orders or not orders:
                os.kill(command, signal.SIGKILL)
            if not orders:
                watched.remove(0)
    kill_all()
    return status


def reap(command: int) -> int | None:
    """Collect whatever has ended, orphans among it; the command's wait status once it is among them."""
    while True:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child == 0:
            return None
        if child == command:
            return status


def say(**message: object) -> None:
    with contextlib.suppress(BrokenPipeError):  # The runner is gone; the end of its pipe tells us so, too.
        os.write(1, json.dumps(message).encode() + b"\n")


def last_word(plan: dict[str, Any]) -> str:
    with open(plan["termination_log"], "rb") as file:
        return file.read(TERMINATION_BYTES).decode(errors="replace")


def main() -> int:
    """Obey one plan; whatever happens, the folder that was made for it is gone at the end."""
    plan = json.loads(sys.stdin.buffer.readline())
    try:
        check(libc.prctl(PR_SET_CHILD_SUBREAPER, 1), "subreaper")
        command = start(plan)
        say(pid=command)
        status = supervise(command)
        say(status=status, last_word=last_word(plan))
    except OSError as error:
        say(error=error.strerror)
    finally:
        shutil.rmtree(plan["scratch"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
