"""The trainer's speed beside TRL's packed SFTTrainer and transformers.Trainer: same model, records, adapter, precision.

`make bench-trainer`. Rounds alternate, so that a busy machine slows all of them; a figure is the median of the rounds'
ratios. Tokens are non-padding tokens of whole optimizer steps, the first of which warms up and isn't counted. Each
round is a process of its own, since where a process has its memory is worth some hundredths, and another one of the
three begins, since who comes later finds memory in pieces. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer import distributed

if TYPE_CHECKING:
    from benchmarks.trainer_sides import Result, Task

Figures = Mapping[str, float]
PEERS = ("trl_packed", "transformers")


def main() -> None:
    """Print a line a round and the result."""
    options = _options()
    if options.round is not None:
        _measure(options, options.threads[0])
        return
    from benchmarks import trainer_trl

    trainer_trl.folder()  # fetched before anything is timed
    found = {
        f"threads_{threads}": _figures([_in_a_process(threads, number) for number in range(options.rounds)])
        for threads in options.threads
    }
    print(json.dumps(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model", type=Path, help="a model's folder; else a random Llama of 3.7 million parameters")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--precision", choices=("FP32", "BF16"), default="FP32")
    parser.add_argument("--compile", choices=("Auto", "Enabled"), default="Auto", help="ours alone: training.compile")
    parser.add_argument("--round", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    return options


def _in_a_process(threads: int, number: int) -> Figures:
    """A round with so many threads: what it prints is passed on, its last line is the result."""
    child_options = ["--round", str(number), "--threads", str(threads)]
    command = [sys.executable, "-m", "benchmarks.trainer", *sys.argv[1:], *child_options]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    last = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        for line in child.stdout or ():
            last = line
            print(line, end="", flush=True)
    if child.returncode:
        sys.exit(child.returncode)
    found: Figures = json.loads(last)
    return found


def _measure(options: argparse.Namespace, threads: int) -> None:
    distributed.tune_threads(os.environ)
    from benchmarks import trainer_peers, trainer_sides
    from tests import tiny_model

    with tempfile.TemporaryDirectory() as name:
        model = options.model or tiny_model.build(tiny_model.SMALL)
        task = trainer_sides.Task.prepare(
            Path(name), model, steps=options.steps, precision=options.precision, compiled=options.compile
        )
        if options.round == 0:
            print(
                f"{task.prepared.summary} {options.steps} steps of {trainer_sides.RECORDS_PER_STEP} records,"
                f" {options.precision}, {threads} {'thread' if threads == 1 else 'threads'}",
                flush=True,
            )
        sides = {
            "ours": trainer_sides.ours,
            "trl_packed": trainer_peers.trl_packed,
            "transformers": trainer_peers.transformers_default,
        }
        results = _round(options.round, sides, task)
        found = _ratios(results)
        if options.round == 0:  # losses are the same in each
            theirs = trainer_peers.transformers_on_our_batches(task)
            losses = zip(results["ours"].losses, theirs.losses, strict=True)
            found["loss_difference"] = round(max(abs(a - b) for a, b in losses), 7)
    print(json.dumps(found))


def _round(number: int, sides: "Mapping[str, Callable[[Task], Result]]", task: "Task") -> "dict[str, Result]":
    names = list(sides)
    first = number % len(names)
    results = {name: sides[name](task) for name in names[first:] + names[:first]}
    assert {result.tokens for result in results.values()} == {task.prepared.plan.tokens}, "not the same data"
    told = ", ".join(f"{name} {results[name].per_second:,.0f} ({results[name].per_cpu_second:,.0f})" for name in names)
    print(f"round {number + 1}, tokens/s (of CPU time): {told}", flush=True)
    return results


def _ratios(results: "Mapping[str, Result]") -> dict[str, float]:
    """Of tokens per second, the same of CPU time, and the tokens per second."""
    ours, found = results["ours"], dict[str, float]()
    for peer in PEERS:
        found[f"vs_{peer}"] = ours.per_second / results[peer].per_second
        found[f"vs_{peer}_cpu"] = ours.per_cpu_second / results[peer].per_cpu_second
    return found | {f"{name}_tokens_per_second": result.per_second for name, result in results.items()}


def _figures(rounds: Sequence[Figures]) -> Figures:
    """Medians over the rounds."""
    found = {name: statistics.median(each[name] for each in rounds if name in each) for name in rounds[0]}
    digits = {name: 2 if name.startswith("vs_") else 7 if name.startswith("loss") else 0 for name in found}
    return {name: round(value, digits[name]) for name, value in found.items()}


if __name__ == "__main__":
    main()
