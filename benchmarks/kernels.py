"""What a training step costs by each way to compute norms, rotation and gated activation, on CPU, LoRA in FP32.

    python -m benchmarks.kernels [--threads 1] [--rounds 5] [--profile]

The model's own code, our fused formulas, and what torch.compile makes of the former take turns over the same steps in
one process: the trainer's model, records and loss, forward and backward. A step counts with its least CPU time of all
rounds. The last line is one JSON object: how much of the first one's time the others take; and the bytes that are kept
for the backward pass, a token, layer and hidden unit, by a Llama with the proportions of the one of 8 billion.
With --profile it says instead where the time of the fused step goes, in microseconds a token.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS = 16
OWN = "own"


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description="Measure what norms, rotation and activation cost, computed each way.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error("--rounds must be 1 or more")

    import torch

    from benchmarks.trainer_sides import RECORDS_PER_STEP, Task
    from tests import tiny_model

    with tempfile.TemporaryDirectory() as folder:
        task = Task.prepare(Path(folder), tiny_model.build(tiny_model.SMALL), steps=STEPS, precision="FP32")
        objective = _objective(task, given.threads)
        torch.set_num_threads(given.threads)
        kernels = objective.learner.kernels
        ways = {OWN: kernels.restore, "fused": kernels.fuse, "compiled": kernels.compile}
        if given.profile:
            lora = task.config.method.lora
            assert lora is not None
            sys.stdout.write(json.dumps(_profile(objective, lora.rank)) + "\n")
            return 0
        least: dict[tuple[str, int], float] = {}
        losses: dict[tuple[str, int], float] = {}
        for number, step in itertools.product(range(given.rounds + 1), range(STEPS)):
            records = list(range(step * RECORDS_PER_STEP, (step + 1) * RECORDS_PER_STEP))
            for name in sorted(ways, reverse=bool((number + step) % 2)):
                ways[name]()
                losses[name, step], spent = _step(objective, records)
                least[name, step] = min(spent, least.get((name, step), spent))
    total = {name: sum(least[name, step] for step in range(STEPS)) for name in ways}
    off = max(abs(losses[name, step] - losses[OWN, step]) for name in ways for step in range(STEPS))
    report: dict[str, Any] = {"threads": given.threads, "lossDifference": off}
    report |= {name: round(spent / total[OWN], 3) for name, spent in total.items()}
    report["bytesKept"] = {precision: _bytes_kept(precision) for precision in ("BF16", "FP32")}
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


def _profile(objective: Any, rank: int) -> dict[str, dict[str, float]]:
    """Microseconds a token by kind of operation, and what products reach."""
    import torch

    from benchmarks.trainer_sides import RECORDS_PER_STEP

    steps = [list(range(step * RECORDS_PER_STEP, (step + 1) * RECORDS_PER_STEP)) for step in range(STEPS)]
    for records in steps[:3]:
        _step(objective, records)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profiled:
        for records in steps[3:]:
            _step(objective, records)
    tokens = sum(int(objective.data.lengths[record]) for records in steps[3:] for record in records)
    vocabulary = objective.learner.network.config.vocab_size
    found: dict[str, dict[str, float]] = {}
    for operation in profiled.key_averages(group_by_input_shape=True):
        # addmm's first argument is what is added to
        matrices = [shape for shape in operation.input_shapes if len(shape) == 2][-2:]
        if operation.key in {"aten::mm", "aten::addmm", "aten::addmm_"}:
            (rows, inner), (_, columns) = matrices
            sizes, flops = {rows, inner, columns}, 2 * rows * inner * columns * operation.count
            narrow = min(sizes) <= 3 * rank
            kind = "output layer" if vocabulary in sizes else "adapter's products" if narrow else "frozen products"
        else:
            kind, flops = "attention" if "flash_attention" in operation.key else "rest", 0
        entry = found.setdefault(kind, {"microseconds": 0.0, "gflops": 0.0})
        entry["microseconds"] += operation.self_cpu_time_total / tokens
        entry["gflops"] += flops / tokens / 1e3
    for entry in found.values():
        entry["gflops"] = round(entry["gflops"] / entry["microseconds"], 1)
        entry["microseconds"] = round(entry["microseconds"], 1)
    return found


def _bytes_kept(precision: str) -> dict[str, float]:
    from benchmarks.trainer_sides import Task
    from finetune_trainer.learning.probe import kept_bytes
    from tests import tiny_model

    shape = tiny_model.Shape(
        hidden=512, layers=4, heads=16, kv_heads=4, intermediate=1792, vocabulary=2048, positions=2048
    )
    with tempfile.TemporaryDirectory() as folder:
        task = Task.prepare(Path(folder), tiny_model.build(shape), steps=1, precision=precision)
        objective = _objective(task, 1)
        records = range(len(task.prepared.data.lengths))
        units = sum(task.prepared.data.lengths) * shape.layers * shape.hidden
        ways = {OWN: objective.learner.kernels.restore, "fused": objective.learner.kernels.fuse}
        kept = {}
        for name, way in ways.items():
            way()
            kept[name] = round(kept_bytes(objective, tuple(records)) / units, 1)
    return kept


def _objective(task: Any, threads: int) -> Any:
    from finetune_trainer.distributed import Device
    from finetune_trainer.learning import model
    from finetune_trainer.learning.objective import NextToken

    device = Device(kind="cpu", name="cpu", threads=threads)
    learner = model.load(task.prepared.model, task.config, device, most_tokens=4096)
    return NextToken(learner, task.prepared.data)


def _step(side: Any, records: list[int]) -> tuple[float, float]:
    """The loss, and the CPU time of forward and backward in seconds."""
    began = time.process_time()
    loss = side.loss(records) / side.units(records)
    loss.backward()
    spent = time.process_time() - began
    for weight in side.learner.trained.values():
        weight.grad = None
    return float(loss.detach()), spent


if __name__ == "__main__":
    sys.exit(main())
