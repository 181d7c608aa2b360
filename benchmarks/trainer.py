"""The trainer's speed beside TRL's packed SFTTrainer and transformers.Trainer: same model, records, adapter, precision.

`make bench-trainer`. Each has a process of its own, as it comes; they take turns after every step, so that a machine
that is busy for a while slows all of them. Time counts for the one whose turn it is. A figure is the median of the
rounds' ratios. Tokens are non-padding tokens of whole optimizer steps, the first of which warms up and isn't counted.
The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.trainer_turns import Side

Figures = Mapping[str, float]
OURS = "ours"
PEERS = ("trl_packed", "transformers")
OUR_BATCHES = "transformers_on_our_batches"
"""For the losses, not for time."""


def main() -> None:
    """Print a line a round and the result."""
    options = _options()
    if options.side is not None:
        _train(options)
        return
    from benchmarks import trainer_trl

    trainer_trl.folder()  # fetched before anything is timed
    found = {
        f"threads_{threads}": _figures([_round(threads, number) for number in range(options.rounds)])
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
    parser.add_argument("--side", choices=(OURS, *PEERS, OUR_BATCHES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if options.model and not (options.model / "config.json").is_file():
        parser.error(f"--model must be a model's folder: there is no {options.model / 'config.json'}")
    return options


def _train(options: argparse.Namespace) -> None:
    """In a process of its own: one side's training, by turns."""
    with tempfile.TemporaryDirectory() as name:
        from benchmarks import trainer_sides
        from benchmarks.trainer_turns import Turns
        from tests import tiny_model

        turns = Turns.of_this_process()
        if options.side == OURS:
            trainer_sides.as_the_image_starts()
        model = options.model or tiny_model.build(tiny_model.SMALL)
        task = trainer_sides.Task.prepare(
            Path(name), model, steps=options.steps, precision=options.precision, compiled=options.compile
        )
        if options.side == OURS:
            result = trainer_sides.ours(task, turns)
        else:
            from benchmarks import trainer_peers

            result = trainer_peers.SIDES[options.side](task, turns)
        assert result["tokens"] == task.prepared.plan.tokens, "not the same data"
        turns.end({**result, "summary": task.prepared.summary})


def _round(threads: int, number: int) -> Figures:
    """Ratios of tokens per second, the same of CPU time, and the tokens per second."""
    results = _by_turns((OURS, *PEERS), threads, number)
    count = "1 thread" if threads == 1 else f"{threads} threads"
    if number == 0:
        print(results[OURS]["summary"], flush=True)
    told = ", ".join(f"{name} {side['wall']:,.0f} ({side['cpu']:,.0f})" for name, side in results.items())
    print(f"{count}, round {number + 1}, tokens/s (of CPU time): {told}", flush=True)
    ours, found = results[OURS], dict[str, float]()
    for peer in PEERS:
        found[f"vs_{peer}"] = ours["wall"] / results[peer]["wall"]
        found[f"vs_{peer}_cpu"] = ours["cpu"] / results[peer]["cpu"]
    found |= {f"{name}_tokens_per_second": side["wall"] for name, side in results.items()}
    if number == 0:  # losses are the same in each
        theirs = _by_turns((OUR_BATCHES,), threads, number)[OUR_BATCHES]
        found["loss_difference"] = max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
    return found


def _by_turns(names: Sequence[str], threads: int, number: int) -> dict[str, dict[str, Any]]:
    """What they found, each a step at a time; another one begins each round."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "benchmarks.trainer", *sys.argv[1:], "--side"]
    first = number % len(names)
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(Side([*command, name], environment)) for name in (*names[first:], *names[:first])
        }
        at_work = list(sides.values())
        while at_work:
            at_work = [side for side in at_work if side.takes_a_turn()]
        return {name: sides[name].result for name in names}


def _figures(rounds: Sequence[Figures]) -> Figures:
    """Medians over the rounds."""
    found = {name: statistics.median(each[name] for each in rounds if name in each) for name in rounds[0]}
    digits = {name: 2 if name.startswith("vs_") else 7 if name.startswith("loss") else 0 for name in found}
    return {name: round(value, digits[name]) for name, value in found.items()}


if __name__ == "__main__":
    main()
