"""`python -m tests.faults`: play all plans, print the report, and end with 1 if one is bad.

-k WORD picks the plans whose name holds it (a plan's whole name picks just that), --list prints names alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from tests.cluster import controlplane, kube, node, operatorprocess, stage
from tests.faults import plans, report, saver, scenario
from tests.faults.performance import Outcome
from tests.faults.plans import Plan, Seen
from tests.faults.rig import AT_ONCE, REFERENCES, Rig


@contextlib.asynccontextmanager
async def cluster(*, at_once: int = AT_ONCE, references: int = REFERENCES, keep: bool = False) -> AsyncIterator[Rig]:
    """A control plane, a node and a rig of one's own."""
    with controlplane.start(binaries=kube.binaries(progress=kube.ProgressLine())) as control_plane:
        settings = node.Settings(
            kubeconfig=control_plane.node_kubeconfig,
            images={stage.STUB_IMAGE: stage.STUB, **saver.images()},
            folder=control_plane.folder / "node",
            api_server=control_plane.server,
        )
        with node.running(settings), scratch() as folder:
            operatorprocess.install(control_plane)
            kubeconfig = operatorprocess.account(control_plane)
            async with Rig.ready(
                control_plane,
                kubeconfig=kubeconfig,
                folder=folder,
                keep=keep,
                at_once=at_once,
                references=references,
            ) as found:
                yield found


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A new folder for the gates and logs of plans; it stays if something is kept in it."""
    folder = Path(tempfile.mkdtemp(prefix="finetune-faults."))
    yield folder
    with contextlib.suppress(OSError):
        folder.rmdir()


async def every_plan(found: Rig, *, written: Sequence[Plan], only: str) -> Sequence[Plan]:
    """Those in YAML, and those that the reference runs give rise to; of one scenario if `only` begins with its name."""
    everything = list(written)
    done = Seen(writes=(), reads=(), lines=())
    names = sorted(scenario.names(), key=lambda name: name != "succeed")
    first, slash, _ = only.partition("/")
    if slash and first in names:
        names = [first]
    references = await asyncio.gather(*(found.reference(name) for name in names))
    for name, reference in zip(names, references, strict=True):
        chosen = scenario.Scenario.read(name)
        if chosen.sweep:
            everything += plans.generated(chosen, reference.seen, done=done)
            done = done.with_(reference.seen)
    return everything


def say(text: str) -> None:
    """To whoever waits for it."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def run(options: argparse.Namespace) -> Sequence[Outcome]:
    """The chosen plans."""
    written = plans.written()
    async with cluster(at_once=options.at_once, keep=options.keep) as found:
        everything = await every_plan(found, written=written, only=options.k)
        exact = [plan for plan in everything if plan.name == options.k]
        chosen = exact or [plan for plan in everything if options.k in plan.name]
        if options.list:
            say("\n".join(plan.name for plan in chosen))
            return []
        began = time.monotonic()

        def done(outcome: Outcome) -> None:
            counted.append(outcome)
            said = "BAD" if outcome.bad else "good"
            clock = int(time.monotonic() - began)
            say(f"{clock:5d} s {len(counted)}/{len(chosen)} {said} {outcome.plan.name} {outcome.seconds:.1f} s")

        counted: list[Outcome] = []
        return await found.play_all(chosen, done=done)


def main() -> int:
    """1 if a plan is bad."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Play fault plans.")
    parser.add_argument("-k", default="", metavar="WORD", help="plans whose name holds it")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="how many plans run at once")
    parser.add_argument("--list", action="store_true", help="print the names of the plans")
    parser.add_argument("--keep", action="store_true", help="keep the logs of good plans too")
    options = parser.parse_args()
    outcomes = asyncio.run(run(options))
    if options.list:
        return 0
    say("\n".join(report.lines(outcomes)))
    return int(any(outcome.bad for outcome in outcomes) or not outcomes)


if __name__ == "__main__":
    sys.exit(main())
