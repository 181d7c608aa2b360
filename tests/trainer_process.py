"""Runs the trainer as a process of its own, forked from one that has imported torch already, so that it starts quickly.

It can be told to kill itself at the n-th call that makes something durable: those are the instants that matter. And it
can be told how many targets of the loss a device would hold: there is none here whose memory could be filled.
"""

import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from finetune_api.snapshot import Snapshot

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.trainer_imports"])


@dataclass
class Attempt:
    """One process of the trainer."""

    folder: Path
    process: ForkServerProcess = field(init=False)

    @property
    def log(self) -> Path:
        """What it wrote to stdout."""
        return self.folder / "log"

    def wait(self, timeout: float = 90) -> int:
        """Its exit code; the negative signal where one killed it."""
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            self.process.kill()
            raise TimeoutError(f"the trainer is still running after {timeout} s: {self.log.read_text()[-2000:]}")
        return code

    def until(self, event: str, *, times: int = 1, timeout: float = 60) -> None:
        """Wait until the log has an event so many times."""
        end = time.monotonic() + timeout
        while sum(line["event"] == event for line in self.events()) < times:
            assert self.process.is_alive(), self.log.read_text()[-2000:]
            assert time.monotonic() < end, f"no {event} within {timeout} s"
            time.sleep(0.01)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def events(self) -> list[dict[str, Any]]:
        """The log's complete lines."""
        text = self.log.read_text() if self.log.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def messages(self, event: str) -> list[str]:
        """What was said of an event."""
        return [line["message"] for line in self.events() if line["event"] == event]

    def last_word(self) -> Snapshot:
        """The termination message."""
        return Snapshot.decode((self.folder / "last-word").read_text())


def start(
    config: Mapping[str, Any],
    *,
    port: int = 0,
    die_at_call: int | None = None,
    largest_file: int | None = None,
    targets_that_fit: int | None = None,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Attempt:
    """Start an attempt; its log and last word go to a new folder beside the run's; `before` is called in it."""
    number = config["run"]["attempt"]
    folder = Path(config["runPath"]).parent / f"attempt-{number}-{time.monotonic_ns()}"
    folder.mkdir(parents=True)
    attempt = Attempt(folder)
    variables = {
        "FINETUNE_CONFIG": json.dumps(config),
        "FINETUNE_TERMINATION_LOG": str(folder / "last-word"),
        "FINETUNE_BIND_ADDRESS": "127.0.0.1",
        "FINETUNE_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
    }
    arguments = (variables, str(attempt.log), die_at_call, largest_file, targets_that_fit, before)
    attempt.process = _FORKS.Process(target=_run, args=arguments, daemon=True)
    attempt.process.start()
    return attempt


def run(config: Mapping[str, Any], **options: Any) -> Attempt:
    """Start an attempt and wait for its end."""
    attempt = start(config, **options)
    attempt.wait()
    return attempt


def _run(
    variables: Mapping[str, str],
    log: str,
    die_at_call: int | None,
    largest_file: int | None,
    targets_that_fit: int | None,
    before: Callable[[], None] | None,
) -> None:
    os.environ.update(variables)
    with Path(log).open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from finetune_trainer import __main__ as trainer

    torch.set_num_threads(1)
    if largest_file is not None:  # as a full disk: a write beyond it fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    if die_at_call is not None:
        _die_at(die_at_call)
    if targets_that_fit is not None:
        _run_out_of_memory_over(targets_that_fit)
    if before is not None:
        before()
    sys.exit(trainer.main())


def _die_at(call: int) -> None:
    """Be killed in place of the n-th fsync, rename or link replacement."""
    calls = iter(range(1, 1_000_000))

    def deadly(real: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return wrapper

    os.fsync = deadly(os.fsync)
    Path.rename = deadly(Path.rename)  # type: ignore[method-assign]
    Path.replace = deadly(Path.replace)  # type: ignore[method-assign]


def _run_out_of_memory_over(targets_that_fit: int) -> None:
    """Raise what CUDA raises when a forward pass has more targets."""
    import torch

    from finetune_trainer.learning import loss

    real = loss.summed

    def limited(*layer: Any, targets: Any) -> Any:
        if len(targets) > targets_that_fit:
            raise torch.OutOfMemoryError("CUDA out of memory (so says a test)")
        return real(*layer, targets=targets)

    loss.summed = limited  # type: ignore[assignment]  # with the arguments that are used
