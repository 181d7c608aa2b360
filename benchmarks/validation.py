"""From how much data on other processes help to read, check and tokenize it: with them beside without, by size.

    python -m benchmarks.validation [--workers 2] [--rounds 5] [--megabytes 1,2,4,8,16]

Question and answer records of the tests, through the trainer's own `data.prepare.load`, which is told from where on
others help. A line for each size: seconds with and without, medians, and how much quicker it is with; the last is one
JSON object. Each call starts its processes afresh, as a run does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import distributed
from finetune_trainer.data import prepare
from finetune_trainer.data.tokenizer import TextEncoder, load
from finetune_trainer.sources import modelfolder
from tests.trainer_builders import parsed


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description="Measure from how much data on other processes help to check it.")
    parser.add_argument("--workers", type=int, default=distributed.usable_cpus())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", default="1,2,4,8,16")
    given = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in map(float, given.megabytes.split(",")):
            config, encoder = _task(Path(folder) / str(size), size)
            spent: dict[int, list[float]] = {1: [], given.workers: []}
            for _ in range(given.rounds):
                for workers, seconds in spent.items():
                    seconds.append(_seconds(config, encoder, workers=workers))
            alone, helped = (statistics.median(seconds) for seconds in spent.values())
            found[f"{size:g} MB"] = round(alone / helped, 2)
            sys.stderr.write(f"{size:g} MB: {alone:.2f} s alone, {helped:.2f} s with {given.workers} processes\n")
    sys.stdout.write(json.dumps({"workers": given.workers, "aloneOverHelped": found}) + "\n")
    return 0


def _task(folder: Path, megabytes: float) -> tuple[TrainerConfig, TextEncoder]:
    config = parsed(folder, records=100)
    data = folder / "train.jsonl"
    some = data.read_bytes()
    data.write_bytes(some * max(1, round(megabytes * 1e6 / len(some))))
    return config, load(modelfolder.find(config.model))


def _seconds(config: TrainerConfig, encoder: TextEncoder, *, workers: int) -> float:
    with mock.patch.object(prepare, "PARALLEL_FROM", 0 if workers > 1 else sys.maxsize):
        began = time.perf_counter()
        prepare.load(config.dataset, config.task, encoder, longest=config.training.max_sequence_length)
        return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
