"""Whether torch.compile pays back in the trainer's step: compiled beside eager in one process, by turns, in CPU time.

    python -m benchmarks.compiled [--threads 1] [--rounds 3]

The trainer's own model, records and loss, forward and backward, LoRA in FP32 on CPU, and its own compiled parts: norms,
rotation, gated activation. The first round holds the compilation. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = 16


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description="Measure whether torch.compile pays back on CPU.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()

    import torch

    from benchmarks.trainer_sides import RECORDS_PER_STEP, Task
    from finetune_trainer.learning.compiling import Parts
    from tests import tiny_model

    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        task = Task.prepare(Path(folder), tiny_model.build(tiny_model.SMALL), steps=STEPS, precision="FP32")
        eager, compiled = _objective(task, given.threads), _objective(task, given.threads)
        parts = Parts(compiled.learner.network)
        rounds, difference = [], 0.0
        for number in range(given.rounds):
            spent = [0.0, 0.0]
            for step in range(STEPS):
                records = list(range(step * RECORDS_PER_STEP, (step + 1) * RECORDS_PER_STEP))
                plain = _step(eager, records, spent, 0)
                parts.put_in()
                difference = max(difference, abs(_step(compiled, records, spent, 1) - plain))
                parts.take_out()
            rounds.append(round(spent[0] / spent[1], 3))
            sys.stderr.write(f"round {number + 1}: eager {spent[0]:.2f} s, compiled {spent[1]:.2f} s\n")
    report = {"threads": given.threads, "eagerOverCompiled": rounds, "lossDifference": difference}
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


def _objective(task: Any, threads: int) -> Any:
    from finetune_trainer.distributed import Device
    from finetune_trainer.learning import model
    from finetune_trainer.learning.objective import NextToken

    device = Device(kind="cpu", name="cpu", threads=threads)
    learner = model.load(task.prepared.model, task.config, device, most_tokens=4096)
    return NextToken(learner, task.prepared.data)


def _step(side: Any, records: list[int], spent: list[float], which: int) -> float:
    """The loss; the CPU time of forward and backward is added."""
    began = time.process_time()
    loss = side.loss(records) / side.units(records)
    loss.backward()
    spent[which] += time.process_time() - began
    for weight in side.learner.trained.values():
        weight.grad = None
    return float(loss.detach())


if __name__ == "__main__":
    sys.exit(main())
