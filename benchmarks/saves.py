"""What a checkpoint costs the training: written in the background, and beside it with the training waiting, by turns.

`make bench-saves`. Full fine-tuning, so that a checkpoint is three times the model. The stall is the time in which no
step is computed; the steps during a write are compared with all others. The last save of a run, for which it waits, is
left out. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from finetune_trainer import distributed

BACKGROUND, WAITING = "background", "waiting"


@dataclass(frozen=True, kw_only=True)
class Save:
    """One save between two steps."""

    stalled: float
    seconds: float
    step: float
    """What a step takes while nothing is written: the run's median."""
    during: float | None
    """What one takes meanwhile; none where no step lies in it."""
    lost: float
    """The stall, and by how much the steps meanwhile were longer."""
    size: int


def main() -> None:
    """Print a line a run and the result."""
    options = _options()
    if options.child:
        _train(json.loads(options.child), waits=options.waits)
    found: dict[str, list[Save]] = {BACKGROUND: [], WAITING: []}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for number in range(options.rounds):
            for mode, saves in found.items():
                saves.extend(_run(Path(name) / f"{mode}-{number}", options, waits=mode == WAITING))
                print(f"round {number + 1}, {mode}: {_summary(saves, options.interval)}", flush=True)
    figures = {mode: _summary(saves, options.interval) for mode, saves in found.items()}
    print(json.dumps({**figures, "interval": options.interval, "threads": options.threads, "method": options.method}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=330)
    parser.add_argument("--interval", type=int, default=100)
    parser.add_argument("--method", choices=("Full", "LoRA"), default="Full")
    parser.add_argument("--threads", type=int, default=distributed.usable_cpus())
    parser.add_argument("--folder", type=Path, help="where to write; else the system's folder for temporary files")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--waits", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(folder: Path, options: argparse.Namespace, *, waits: bool) -> list[Save]:
    """The saves of one training."""
    from tests import tiny_model
    from tests.trainer_builders import configuration

    data = folder / "train.jsonl"
    folder.mkdir()
    tiny_model.write_questions(data, 2000)
    lora = {} if options.method == "LoRA" else {"method": {"type": "Full", "lora": None}}
    training = {"maxDuration": f"{options.steps}ba", "maxSequenceLength": 512, "learningRate": 1e-4}
    batch = {"batchSize": {"perDevice": 4, "gradientAccumulationSteps": 1}}
    changes = lora | {
        "model": {"path": str(tiny_model.build(tiny_model.SMALL))},
        "training": training | batch,
        "checkpoint": {"interval": f"{options.interval}ba", "keep": 2},
    }
    command = [sys.executable, "-m", "benchmarks.saves", "--child", json.dumps(configuration(folder, changes))]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "FINETUNE_PORT": "0"}
    done = subprocess.run(
        [*command, "--waits"] if waits else command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    steps = (folder / "run" / "training_logs" / "metrics.jsonl").read_text().splitlines()
    took = {line["step"]: line["seconds"] for line in map(json.loads, steps)}
    return list(_saves([json.loads(line) for line in done.stdout.splitlines()], took))


def _train(config: dict[str, Any], *, waits: bool) -> None:
    """In a process of its own: one training."""
    from finetune_trainer import attempt
    from finetune_trainer.saves import staging

    if waits:  # as where there is no memory for a copy
        staging.reserve = lambda *_, **__: None
    sys.exit(attempt.main(json.dumps(config)))


def _saves(events: list[dict[str, Any]], took: dict[int, float]) -> Iterator[Save]:
    """All but the last."""
    ends = {line["batch"]: _time(line) for line in events if line["event"] == "TRAIN_UPDATED"}
    typical = statistics.median(took.values())
    for line in [line for line in events if line["event"] == "CHECKPOINT_SAVED"][:-1]:
        end = _time(line)
        begin = end - line["seconds"] + line["stalledSeconds"]
        meanwhile = [took[step] for step, at in ends.items() if at > begin and at - took[step] < end]
        yield Save(
            stalled=line["stalledSeconds"],
            seconds=line["seconds"],
            step=typical,
            during=statistics.median(meanwhile) if meanwhile else None,
            lost=line["stalledSeconds"] + sum(seconds - typical for seconds in meanwhile),
            size=line["bytes"],
        )


def _time(line: dict[str, Any]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


def _summary(saves: list[Save], interval: int) -> dict[str, float | None]:
    step = statistics.median(save.step for save in saves)
    stalled = statistics.median(save.stalled for save in saves)
    during = [save.during / save.step for save in saves if save.during is not None]
    return {
        "saves": len(saves),
        "mebibytes": round(saves[0].size / 2**20, 1),
        "step_ms": round(step * 1000, 1),
        "save_ms": round(statistics.median(save.seconds for save in saves) * 1000, 1),
        "stall_ms": round(stalled * 1000, 2),
        "longest_stall_ms": round(max(save.stalled for save in saves) * 1000, 2),
        "stall_in_steps": round(stalled / step, 3),
        "stall_percent_of_interval": round(100 * stalled / (step * interval), 3),
        "step_during_write": round(statistics.median(during), 2) if during else None,
        "lost_percent_of_interval": round(100 * statistics.median(save.lost for save in saves) / (step * interval), 3),
    }


if __name__ == "__main__":
    main()
