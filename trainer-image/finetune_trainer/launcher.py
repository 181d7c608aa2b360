"""Starts a process for each device of this machine, hands them what it is told to stop, and ends as they did.

The first to fail names the exit code and the last word, unless it only followed another's end; the others are given a
while to end by themselves. It imports no torch, never starts a process again, and leaves none behind.
"""

import ctypes
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.snapshot import PEER_LOST, REASONS, ExitCode, LastError, Snapshot
from finetune_trainer.distributed import LISTEN_VARIABLE, Nodes, Place
from finetune_trainer.reporting import lastword

PATIENCE_SECONDS = 30.0
"""How long the others may take to end once one has failed: they notice by themselves, unless a device holds them."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, eq=False)
class _Worker:
    """One process."""

    place: Place
    process: subprocess.Popen[bytes]
    last_word: Path

    @property
    def code(self) -> int:
        """Its exit code, as a shell tells it."""
        code = self.process.returncode
        return code if code >= 0 else 128 - code

    def word(self) -> Snapshot | None:
        """What it said at its end."""
        try:
            return Snapshot.decode(self.last_word.read_bytes())
        except (OSError, ValueError):
            return None


def environment_of(place: Place, given: Mapping[str, str], *, port: int | None, listen: int | None) -> dict[str, str]:
    """What a process is told: where it stands, and where to find the first; `port` is for processes of one machine."""
    told = {
        "RANK": place.rank,
        "WORLD_SIZE": place.size,
        "LOCAL_RANK": place.local_rank,
        "LOCAL_WORLD_SIZE": place.local_size,
        "MASTER_ADDR": given.get("PET_MASTER_ADDR", "") if port is None else "127.0.0.1",
        "MASTER_PORT": given.get("PET_MASTER_PORT", "") if port is None else port,
    }
    if listen is not None and place.rank == 0:
        told[LISTEN_VARIABLE] = listen
    return {**given, **{name: str(value) for name, value in told.items()}}


def main(arguments: Sequence[str]) -> int:
    """Train with every device of this machine."""
    nodes = Nodes.of(os.environ)
    asked: list[int] = []
    workers: list[_Worker] = []

    def hand_on(number: int, _: object) -> None:
        asked.append(number)
        for worker in workers:
            if worker.process.returncode is None:
                worker.process.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, hand_on)
    with tempfile.TemporaryDirectory(prefix="finetune-words.") as words:
        try:
            _start(nodes, arguments, workers, Path(words))
            if asked:
                hand_on(asked[0], None)
            ended = _wait(workers)
        finally:
            for worker in workers:
                worker.process.kill()
        return _tell(workers, ended, stopped=bool(asked))


def _start(nodes: Nodes, arguments: Sequence[str], workers: list[_Worker], words: Path) -> None:
    """All of them, each in the list as soon as it runs."""
    here = socket.create_server(("127.0.0.1", 0), backlog=nodes.devices_each + 8) if nodes.count == 1 else None
    port, listen = (None, None) if here is None else (here.getsockname()[1], here.fileno())
    for local_rank in range(nodes.devices_each):
        place = nodes.place(local_rank)
        word = words / str(place.rank)
        variables = environment_of(place, os.environ, port=port, listen=listen)
        process = subprocess.Popen(  # noqa: S603 - this program itself
            [sys.executable, "-m", "finetune_trainer", *arguments],
            env={**variables, lastword.VARIABLE: str(word)},
            pass_fds=[listen] if listen is not None and place.rank == 0 else [],
            preexec_fn=_end_with_parent,  # noqa: PLW1509 - there is no other thread yet
        )
        workers.append(_Worker(place, process, word))
    if here is not None:
        here.close()


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait(workers: Sequence[_Worker]) -> list[_Worker]:
    """Until all have ended, in the order in which they did."""
    news: queue.Queue[_Worker] = queue.Queue()
    for worker in workers:
        threading.Thread(target=_tell_end, args=(worker, news), daemon=True).start()
    ended: list[_Worker] = []
    deadline: float | None = None
    while len(ended) < len(workers):
        try:
            ended.append(news.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic())))
        except queue.Empty:
            for worker in workers:
                worker.process.kill()
            deadline = None
        else:
            if ended[-1].code and deadline is None:
                deadline = time.monotonic() + PATIENCE_SECONDS
    return ended


def _tell_end(worker: _Worker, news: "queue.Queue[_Worker]") -> None:
    worker.process.wait()
    news.put(worker)


def _tell(workers: Sequence[_Worker], ended: Sequence[_Worker], *, stopped: bool) -> int:
    """Leave the last word of them all; returns the exit code."""
    failed = [worker for worker in ended if worker.code]
    said = {worker.place.rank: worker.word() for worker in workers}
    first = said[workers[0].place.rank]
    if not failed:
        _leave(first)
        return ExitCode.DONE
    blamed = min(failed, key=lambda worker: _follows(said[worker.place.rank]))
    code = ExitCode.STOPPED if stopped and blamed.code == 128 + signal.SIGTERM else blamed.code
    word = said[blamed.place.rank]
    error = word.error if word is not None else None
    base = first or next((found for found in said.values() if found is not None), None)
    if base is not None:
        _leave(base.model_copy(update={"error": error or _unsaid(blamed.place, code)}))
    return code


def _follows(word: Snapshot | None) -> bool:
    """Whether a process only ended because another one had."""
    return word is not None and word.error is not None and word.error.reason == PEER_LOST


def _unsaid(place: Place, code: int) -> LastError:
    message = f"process {place.rank + 1} of {place.size} ended with exit code {code} and no word"
    return LastError(reason=REASONS.get(code, "TrainerFailed"), message=message, exit_code=code)


def _leave(word: Snapshot | None) -> None:
    if word is not None:
        lastword.leave(word)
