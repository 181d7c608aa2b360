"""The trainer's speed beside TRL's packed SFTTrainer and transformers.Trainer: same model, records, adapter, precision.

`make bench-trainer`. Rounds alternate, so that a busy machine slows all of them; a figure is the median of the rounds'
ratios. Tokens are non-padding tokens of whole optimizer steps, the first of which warms up and isn't counted. For each
number of threads there is a process of its own. The last line is one JSON object.
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


def main() -> None:
    """Print a line a round and the result."""
    options = _options()
    if options.child:
        _measure(options, options.threads[0])
        return
    from benchmarks import trainer_trl

    trainer_trl.folder()  # fetched before anything is timed
    found = {f"threads_{threads}": _in_a_process(threads) for threads in options.threads}
    print(json.dumps(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--model", type=Path, help="a model's folder; else a random Llama of 3.7 million parameters")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--precision", choices=("FP32", "BF16"), default="FP32")
    parser.add_argument("--compile", choices=("Auto", "Enabled"), default="Auto", help="ours alone: training.compile")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_a_process(threads: int) -> Figures:
    """The measurement with so many threads: what it prints is passed on, its last line is the result."""
    command = [sys.executable, "-m", "benchmarks.trainer", *sys.argv[1:], "--child", "--threads", str(threads)]
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
        rounds = [_round(number, sides, task) for number in range(options.rounds)]
        theirs = trainer_peers.transformers_on_our_batches(task)
    losses = zip(rounds[0]["ours"].losses, theirs.losses, strict=True)
    print(json.dumps({**_figures(rounds), "loss_difference": round(max(abs(a - b) for a, b in losses), 7)}))


def _round(number: int, sides: "Mapping[str, Callable[[Task], Result]]", task: "Task") -> "dict[str, Result]":
    results = {name: measure(task) for name, measure in sides.items()}
    assert {result.tokens for result in results.values()} == {task.prepared.plan.tokens}, "not the same data"
    told = ", ".join(
        f"{name} {result.per_second:,.0f} ({result.per_cpu_second:,.0f})" for name, result in results.items()
    )
    print(f"round {number + 1}, tokens/s (of CPU time): {told}", flush=True)
    return results


def _figures(rounds: "Sequence[Mapping[str, Result]]") -> Figures:
    """Medians over the rounds: ratios of tokens per second, the same of CPU time, and the tokens per second."""
    found: dict[str, float] = {}
    for peer in ("trl_packed", "transformers"):
        pairs = [(each["ours"], each[peer]) for each in rounds]
        found[f"vs_{peer}"] = _median([a.per_second / b.per_second for a, b in pairs], 2)
        found[f"vs_{peer}_cpu"] = _median([a.per_cpu_second / b.per_cpu_second for a, b in pairs], 2)
    for name in rounds[0]:
        found[f"{name}_tokens_per_second"] = _median([each[name].per_second for each in rounds], 0)
    return found


def _median(values: Sequence[float], digits: int) -> float:
    return round(statistics.median(values), digits)


if __name__ == "__main__":
    main()
