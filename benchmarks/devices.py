"""What a device gets done beside others: tokens a second and process with several processes, as a ratio to one.

`python -m benchmarks.devices`. Each process has one thread and the same work in each step; runs with one and several
take turns. On a machine with fewer idle cores than processes the ratio tells of the cores, so the load is printed too.
The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import tiny_model

WARM_UP = 5
"""Steps of a run that aren't counted."""


def main() -> None:
    """Print a line a run and the result."""
    options = _options()
    began = os.getloadavg()
    for method in options.methods:
        found: dict[int, list[float]] = {1: [], options.processes: []}
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            for number in range(options.rounds):
                for processes, rates in found.items():
                    rates.append(_run(Path(name) / f"{processes}-{number}", options, method, processes))
                    print(f"{method}, {processes} processes: {rates[-1]:,.0f} tokens/s a process", flush=True)
        medians = {processes: round(statistics.median(each), 1) for processes, each in found.items()}
        ratio = round(medians[options.processes] / medians[1], 3)
        options.found[method] = {"tokens_per_second_per_process": medians, "ratio": ratio}
    load = {"load_before": began, "load_after": os.getloadavg(), "cores": os.cpu_count()}
    print(json.dumps({**options.found, **load, "processes": options.processes, "rounds": options.rounds}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--methods", nargs="+", choices=["LoRA", "Full"], default=["LoRA", "Full"])
    parser.add_argument("--folder", type=Path, help="for the runs; the system's temporary folder otherwise")
    options = parser.parse_args()
    options.found = {}
    return options


def _run(folder: Path, options: argparse.Namespace, method: str, processes: int) -> float:
    """Tokens a second and process."""
    folder.mkdir(parents=True)
    variables = {
        "FINETUNE_CONFIG": json.dumps(_config(folder, options.steps, method)),
        "FINETUNE_BIND_ADDRESS": "127.0.0.1",
        "FINETUNE_PORT": "0",
        "OMP_NUM_THREADS": "1",
        "PET_NPROC_PER_NODE": str(processes),
    }
    command = [sys.executable, "-m", "finetune_trainer"]
    ended = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(ended.stdout[-3000:] + ended.stderr[-3000:])
    lines = (folder / "run" / "training_logs" / "metrics.jsonl").read_text().splitlines()
    steps: list[Mapping[str, Any]] = [json.loads(line) for line in lines][WARM_UP:]
    rate: float = sum(step["tokens"] for step in steps) / sum(step["seconds"] for step in steps)
    return rate / processes


def _config(folder: Path, steps: int, method: str) -> dict[str, Any]:
    data = tiny_model.write_questions(folder / "train.jsonl", 800)
    return {
        "run": {"namespace": "bench", "name": "devices", "uid": folder.name, "attempt": 1},
        "model": {"uri": "pvc://models/small", "path": str(tiny_model.build(tiny_model.SMALL))},
        "task": "InstructionFineTune",
        "dataset": {"train": {"uri": "pvc://data/train.jsonl", "path": str(data)}},
        "method": {"type": method},
        "training": {
            "maxDuration": f"{steps}ba",
            "maxSequenceLength": 512,
            "precision": "FP32",
            "batchSize": {"perDevice": 8},
        },
        "checkpoint": {"interval": "100000ba"},
        "runPath": str(folder / "run"),
    }


if __name__ == "__main__":
    main()
