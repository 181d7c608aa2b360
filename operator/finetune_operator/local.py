"""Train without a cluster: `python -m finetune_operator.local run.yaml` runs the same reconcile loop on this machine.

The objects live in memory, Jobs run as processes, claims are folders, and ConfigMaps come from the same file. The run's
status is kept beside the volumes, so that the same file started again goes on where it was. It must never leave a
process behind.
"""

import argparse
import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from finetune_api.status import Phase
from finetune_api.types import PROFILE_KIND
from finetune_operator import documents, jobs, kueue, machine, manifests, names, poller
from finetune_operator.console import Console, table
from finetune_operator.documents import Documents, ManifestError
from finetune_operator.memory import PROFILE, RUN, Memory, Object, Ref
from finetune_operator.names import Key
from finetune_operator.profiles import Profile
from finetune_operator.reconcile import Reconciler
from finetune_operator.run import Run
from finetune_operator.settings import PREFIX, Settings

USAGE = 64
"""Exit code for a file that can't be run."""


class Session:
    """One run, from its file to its end."""

    def __init__(
        self,
        found: Documents,
        *,
        volumes: Path,
        console: Console,
        access: poller.Access,
        trainer: Sequence[str] = machine.TRAINER,
    ) -> None:
        self._key = Key(found.run["metadata"]["namespace"], found.run["metadata"]["name"])
        self._profiles = found.profiles
        self._record = Record(found, volumes=volumes)
        self._volumes = volumes
        self._console = console
        self._settings = Settings(progress_write_seconds=1, poll_seconds=0.5)
        self._memory = Memory(clock=_now)
        self._memory.on_change = self._note
        self._machine = machine.Machine(
            self._memory,
            access=access,
            volumes=volumes,
            config_maps=found.config_maps,
            environment={name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
            settings=self._settings,
            trainer=trainer,
        )
        self._reconcile = Reconciler(self._memory, line=self._memory.line, settings=self._settings, clock=_now)
        self._changed = asyncio.Event()
        self._signal: signal.Signals | None = None

    async def train(self) -> int:
        """To the end, or to a signal. Returns the exit code. Raises ManifestError if this machine can't."""
        with self._record.held():
            for profile in self._profiles:
                self._memory.add(profile)
            self._memory.add(self._record.read())
            self._check()
            with self._signals():
                try:
                    await self._follow()
                finally:
                    await self._machine.stop()
                jobs.control(self._memory)
                if not self._is_over:
                    await self._reconcile(self._key)  # once more, to record how a stopped trainer ended
        self._report()
        if self._signal is not None and not self._run.status.is_finished:
            return 128 + self._signal
        return 0 if self._run.status.phase == Phase.COMPLETED else 1

    async def _follow(self) -> None:
        """Reconcile whenever something has changed, as the work queue does in a cluster."""
        while self._signal is None and not self._is_over:
            self._changed.clear()
            delay = await self._reconcile(self._key)
            self._memory.collect_garbage()
            jobs.control(self._memory)
            self._machine.look()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), delay)

    def _check(self) -> None:
        run = self._run.under(Profile.parse(profile) for profile in self._memory.all(PROFILE))
        if run.missing_profile:
            raise ManifestError([f"spec.profile: {PROFILE_KIND} {run.missing_profile} isn't in the file: add it"])
        if run.spec is None or run.status.is_finished or run.not_allowed:
            return  # the reconciler says why it won't
        if kueue.concerns(run.spec):
            raise ManifestError(["spec.queue.name: there is no Kueue without a cluster: remove it"])
        problems = self._machine.unable(manifests.job(run, attempt=1, settings=self._settings))
        found = [str(problem) for problem in problems]
        if found:
            raise ManifestError(found)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM stop the training; the second one doesn't wait for a checkpoint."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _stop(self, number: signal.Signals) -> None:
        if self._signal is None:
            self._console.say("Stopping: the trainer saves a checkpoint first. Once more ends it at once.")
        else:
            self._killing = asyncio.ensure_future(self._machine.stop(grace_seconds=0))
        self._signal = number
        self._changed.set()

    def _note(self, ref: Ref) -> None:
        self._changed.set()
        if ref.kind == RUN:
            self._record.write(self._body)
            self._console.show(self._run)

    @property
    def _is_over(self) -> bool:
        """Whether nothing more happens: it has ended, or the file says that it is to wait."""
        return self._run.status.is_finished or self._run.status.phase == Phase.SUSPENDED

    @property
    def _body(self) -> Object:
        found = self._memory.get(Ref.run(self._key))
        assert found is not None, "nobody deletes the run"
        return found

    @property
    def _run(self) -> Run:
        return Run.parse(self._body)

    def _report(self) -> None:
        """How it stands, and where the model lies."""
        status = self._run.status
        self._console.say(f"\n{table(self._body, now=_now())}\n")
        if status.output is not None:
            self._console.say(f"The model: {self._volumes / status.output.uri.removeprefix('pvc://')}")
        elif status.failure is not None and status.is_finished:
            pod = status.failure.pod
            log = f"\nIts log: {self._machine.log_path(pod)}" if pod else ""
            self._console.say(f"{status.failure.reason}: {status.failure.message}{log}")
        elif self._run.status.phase == Phase.SUSPENDED:
            self._console.say("It is suspended: set spec.suspend to false and start it again.")
        else:
            self._console.say("Start it again to go on from the newest checkpoint.")


class Record:
    """The run as it was last written, beside the volumes: what etcd is to a cluster."""

    def __init__(self, found: Documents, *, volumes: Path) -> None:
        self._found = found
        name = names.claim(found.run["metadata"]["name"], found.uid)
        self._path = volumes / ".runs" / f"{name}.json"

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else runs it meanwhile. Raises ManifestError if somebody does."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ManifestError([f"this run is under way already: {lock.name} is held"]) from error
            yield

    def read(self) -> Object:
        """The run to go on with: the one that was begun; a new one if there is none, or it failed or was canceled."""
        new: Object = self._found.run | {"metadata": self._found.run["metadata"] | {"uid": self._found.uid}}
        if not self._path.exists():
            return new
        old: Object = json.loads(self._path.read_text(encoding="utf-8"))
        over = old["status"].get("phase") in (Phase.FAILED, Phase.CANCELED)
        return new if over else old | {"spec": new["spec"]}

    def write(self, body: Object) -> None:
        """Keep it; whole or not at all."""
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(body, indent=1), encoding="utf-8")
        part.replace(self._path)


async def _train(found: Documents, *, volumes: Path) -> int:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
        session = Session(found, volumes=volumes, console=Console(sys.stdout), access=poller.by_address(http))
        return await session.train()


def _now() -> datetime:
    return datetime.now(UTC)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a file. Returns 0 if the run completed, 1 if it failed, 64 if the file can't be run, 128 + n on signal n."""
    parser = argparse.ArgumentParser(
        prog="python -m finetune_operator.local",
        description="Train without a cluster. Limits of memory, CPU and storage don't count here, nor does placement.",
    )
    parser.add_argument("file", type=Path, help="YAML with one FineTuneRun, its profile and its ConfigMaps")
    parser.add_argument(
        "--volumes",
        type=Path,
        default=Path("volumes"),
        metavar="DIR",
        help="a folder for each claim (default: volumes)",
    )
    given = parser.parse_args(arguments)
    try:
        return asyncio.run(_train(documents.read(given.file.read_text(encoding="utf-8")), volumes=given.volumes))
    except (OSError, UnicodeDecodeError) as error:
        print(f"{given.file}: {error}", file=sys.stderr)
    except ManifestError as error:
        print("\n".join(f"{given.file}: {problem}" for problem in error.problems), file=sys.stderr)
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
