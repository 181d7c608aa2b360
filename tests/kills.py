"""Kills trainings at seeded instants, in saves above all, and checks that what is left ends as if nothing had happened.

`python -m tests.kills` plays 50, a line each; its last line has the figures. Instants are drawn from all passings of
named places in the code, or from the clock. That each record is learned once an epoch is read off what the model was
given, with nothing of the trainer's own plan.
"""

import argparse
import functools
import hashlib
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune_api.snapshot import ExitCode
from tests import trainer_process
from tests.trainer_builders import configuration, merged

FULL: dict[str, Any] = {"method": {"type": "Full", "lora": None}}
PADDED: dict[str, Any] = {"training": {"packing": False}}
KINDS: dict[str, dict[str, Any]] = {
    "LoRA packed": {},
    "LoRA padded": PADDED,
    "full packed": FULL,
    "full padded": merged(FULL, PADDED),
}
RECORDS, INTERVAL, RECORDS_A_STEP = 24, 2, 4
"""As `configuration` has them."""

IN_SAVES = ("copied", "bytes", "fsync", "read back", "rename", "link", "delete")
ELSEWHERE = ("forward", "stepped", "clock", "restore")
FACTS = "facts.json"


@dataclass(frozen=True, kw_only=True)
class Instant:
    """When a training is killed: at the n-th passing of a place, or after so many milliseconds for the clock."""

    kind: str
    place: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}, {self.place} {self.number}"


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What an undisturbed training ends with."""

    weights: str
    passings: Mapping[str, int]
    """How often it passes each place; for the clock, its milliseconds from the first step to the end."""
    records: Counter[str]
    """The digests of all its records."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training that was killed ends with."""

    struck: bool
    in_save: bool
    same_weights: bool
    each_record_once: bool
    repeated: int
    """Steps that were computed again."""

    @property
    def good(self) -> bool:
        """Whether it went as it should."""
        return self.struck and self.same_weights and self.each_record_once


def undisturbed(kind: str, folder: Path) -> Whole:
    """Train without a kill."""
    config = configuration(folder, KINDS[kind])
    attempt = trainer_process.run(config, before=functools.partial(_watch, folder, "", 0))
    assert attempt.process.exitcode == ExitCode.DONE, attempt.log.read_text()[-2000:]
    times = [datetime.fromisoformat(line["time"]) for line in attempt.events() if line["event"] != "DATA_VALIDATED"]
    passings = json.loads((folder / FACTS).read_text())
    passings["clock"] = round((times[-1] - times[1]).total_seconds() * 1000)
    return Whole(weights=_weights(folder), passings=passings, records=_records_of(config))


def instants(seed: int, count: int, wholes: Mapping[str, Whole]) -> Iterator[Instant]:
    """So many of them: all kinds and places by turns, two of three in saves."""
    draw = random.Random(seed)
    places = [*IN_SAVES, *IN_SAVES, *ELSEWHERE]
    for number in range(count):
        if number % len(places) == 0:
            draw.shuffle(places)
        kind, place = list(KINDS)[number % len(KINDS)], places[number % len(places)]
        most = {"bytes": 60_000, "restore": 1}.get(place, wholes[kind].passings.get(place, 0))
        yield Instant(kind=kind, place=place, number=draw.randint(1, most))


def kill(instant: Instant, folder: Path, whole: Whole) -> Outcome:
    """Train, be killed at the instant, and go on to the end."""
    config = configuration(folder, KINDS[instant.kind])
    plots = [(instant.place, instant.number), ("", 0)]
    if instant.place == "restore":
        plots.insert(0, ("stepped", 7))
    attempts = []
    for number, (place, passing) in enumerate(plots, start=1):
        before = functools.partial(_watch, folder, place, passing)
        attempts.append(trainer_process.run(merged(config, {"run": {"attempt": number}}), before=before))
    struck = all(a.process.exitcode in (-signal.SIGKILL, -signal.SIGXFSZ) for a in attempts[:-1])
    assert attempts[-1].process.exitcode == ExitCode.DONE, attempts[-1].log.read_text()[-2000:]
    seen, repeated = _effective([_draws(folder, a.process.pid or 0) for a in attempts], list(map(_start, attempts)))
    epoch = -(-RECORDS // RECORDS_A_STEP)
    epochs = [itertools.chain.from_iterable(seen[start : start + epoch]) for start in range(0, len(seen), epoch)]
    once = [Counter(records) == whole.records for records in epochs]
    return Outcome(
        struck=struck,
        in_save=(folder / f"saving-{attempts[-2].process.pid}").read_text() == "1",
        same_weights=_weights(folder) == whole.weights,
        each_record_once=all(once) and len(once) == 2,
        repeated=repeated,
    )


def _effective(attempts: list[list[list[str]]], starts: list[int | None]) -> tuple[list[list[str]], int]:
    """The records of each step as the final weights have seen them, and how many steps were computed again."""
    seen: list[list[str]] = []
    repeated = 0
    for steps, start in zip(attempts, starts, strict=True):
        if start is None:
            assert not steps, "what was finished is trained again"
            continue
        assert start <= len(seen), "steps are missing between two attempts"
        repeated += len(seen) - start
        seen = [*seen[:start], *steps]
    return seen, repeated


def _start(attempt: trainer_process.Attempt) -> int | None:
    """The step after which an attempt went on, by its own word; None where it found the output complete."""
    if attempt.messages("ALREADY_FINISHED"):
        return None
    said = re.search(r"Resumed from \S+ \(step (\d+) of", " ".join(attempt.messages("RESUMED")))
    return int(said[1]) if said else 0


def _draws(folder: Path, process: int) -> list[list[str]]:
    """The digests of the records in each step that a process finished."""
    path = folder / f"draws-{process}"
    steps: list[list[str]] = [[]]
    for line in path.read_text().splitlines() if path.exists() else ():
        if line == "step":
            steps.append([])
        else:
            steps[-1] += line.split()
    return steps[:-1]


def _records_of(config: Mapping[str, Any]) -> Counter[str]:
    from finetune_api.trainer_config import TrainerConfig
    from finetune_trainer import preflight

    data = preflight.check(TrainerConfig.model_validate(config)).data
    found = Counter(_digest(data.record(index)[0]) for index in range(len(data.lengths)))
    assert len(found) == RECORDS
    return found


def _digest(tokens: Any) -> str:
    return hashlib.sha256(tokens.tobytes()).hexdigest()[:16]


def _weights(folder: Path) -> str:
    output = folder / "run" / "output"
    return " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("*.safetensors")))


def _watch(folder: Path, place: str, number: int) -> None:
    """In the trainer's process: count what passes, note what is learned, be killed at the n-th passing of a place."""
    passed: Counter[str] = Counter()
    lock = threading.Lock()
    flag = os.open(folder / f"saving-{os.getpid()}", os.O_WRONLY | os.O_CREAT)
    draws = os.open(folder / f"draws-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.pwrite(flag, b"0", 0)

    def passes(where: str) -> None:
        with lock:
            passed[where] += 1
            if (where, passed[where]) == (place, number):
                os.kill(os.getpid(), signal.SIGKILL)
            (folder / FACTS).write_text(json.dumps(passed))

    _at_places(passes)
    _note_draws(draws)
    _note_saves(flag, bytes_left=number if place == "bytes" else None)
    if place == "clock":
        threading.Thread(target=_kill_later, args=(passed, number / 1000), daemon=True).start()


def _at_places(passes: Callable[[str], None]) -> None:
    """Call `passes` at each passing of a place."""
    import torch

    from finetune_trainer.saves import content, durable, staging

    def early(owner: Any, name: str, place: str) -> None:
        real = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            passes(place)
            return real(*arguments, **options)

        setattr(owner, name, wrapped)

    def late(owner: Any, name: str, place: str) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            passes(place)
            return result

        setattr(owner, name, wrapped)

    late(staging.Stage, "copy", "copied")
    late(torch.optim.AdamW, "step", "stepped")
    late(content, "put_back", "restore")
    early(os, "fsync", "fsync")
    early(durable, "sha256", "read back")
    early(Path, "rename", "rename")
    early(Path, "replace", "link")
    early(shutil, "rmtree", "delete")
    early(torch.Tensor, "backward", "forward")


def _note_draws(file: int) -> None:
    """Write down the records of each forward pass and the end of each step."""
    import torch

    from finetune_trainer.data import batch

    build, step = batch.build, torch.optim.AdamW.step

    def noted_build(data: Any, records: Any, **options: Any) -> Any:
        os.write(file, (" ".join(_digest(data.record(record)[0]) for record in records) + "\n").encode())
        return build(data, records, **options)

    @functools.wraps(step)
    def noted_step(*arguments: Any, **options: Any) -> Any:
        os.write(file, b"step\n")
        return step(*arguments, **options)

    batch.build = noted_build
    torch.optim.AdamW.step = noted_step  # type: ignore[method-assign]


def _note_saves(flag: int, *, bytes_left: int | None) -> None:
    """Show whether a save is under way. With `bytes_left` the kernel ends the process where a file outgrows them."""
    from finetune_trainer.saves import checkpoint, content

    write, write_files = checkpoint.Store.write, content.write

    def noted(*arguments: Any, **options: Any) -> Any:
        os.pwrite(flag, b"1", 0)
        try:
            return write(*arguments, **options)
        finally:
            os.pwrite(flag, b"0", 0)

    def limited(*arguments: Any, **options: Any) -> None:
        assert bytes_left is not None
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGXFSZ})
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, bytes_left))
        write_files(*arguments, **options)

    checkpoint.Store.write = noted  # type: ignore[method-assign]
    if bytes_left is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        content.write = limited


def _kill_later(passed: Counter[str], seconds: float) -> None:
    """By the clock, which starts with the first step."""
    while not passed["stepped"]:
        time.sleep(0.001)
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Play them, and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instants", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        wholes = {kind: undisturbed(kind, Path(name) / kind.replace(" ", "-")) for kind in KINDS}
        outcomes = []
        for number, instant in enumerate(instants(options.seed, options.instants, wholes)):
            folder = Path(name) / str(number)
            outcomes.append(kill(instant, folder, wholes[instant.kind]))
            sys.stdout.write(f"{number + 1:3} {instant}: {outcomes[-1]}\n")
            sys.stdout.flush()
            shutil.rmtree(folder)
    figures = {
        "instants": len(outcomes),
        "struck": sum(outcome.struck for outcome in outcomes),
        "in_saves": sum(outcome.in_save for outcome in outcomes),
        "same_weights": sum(outcome.same_weights for outcome in outcomes),
        "each_record_once": sum(outcome.each_record_once for outcome in outcomes),
        "most_steps_repeated": max(outcome.repeated for outcome in outcomes),
        "seed": options.seed,
    }
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0 if all(outcome.good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
