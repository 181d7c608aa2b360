"""What the trainer's benchmark gives to each side and takes from it, and our side: a training as the image runs it.

A step's time is wall time between the ends of two steps, whoever takes it: evaluation and saves aren't part of it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import preflight

RECORDS_PER_STEP = 8
LONGEST = 512
RATE = 0.001
SEED = 17


@dataclass
class Clock:
    """When steps ended, in wall time and in the process's CPU time."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def tick(self) -> None:
        """A step has ended."""
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())


@dataclass(frozen=True)
class Result:
    """One side of one round; tokens per second."""

    per_second: float
    per_cpu_second: float
    tokens: int
    """In all steps."""
    losses: tuple[float, ...] = ()

    @classmethod
    def of(cls, clock: Clock, tokens: Sequence[int], losses: Sequence[float] = ()) -> "Result":
        """From the tokens of each step; the first one isn't counted."""
        assert len(clock.wall) == len(tokens), f"{len(clock.wall)} steps, tokens of {len(tokens)}"
        counted = sum(tokens[1:])
        wall, cpu = clock.wall[-1] - clock.wall[0], clock.cpu[-1] - clock.cpu[0]
        return cls(counted / wall, counted / cpu, sum(tokens), tuple(losses))


@dataclass(frozen=True, eq=False)
class Task:
    """What is trained."""

    config: TrainerConfig
    prepared: preflight.Prepared
    folder: Path

    @classmethod
    def prepare(cls, folder: Path, model: Path, *, steps: int, precision: str, compiled: str = "Auto") -> "Task":
        """One epoch of as many records as the steps take: docstrings as they are, cut at LONGEST tokens."""
        from tests import tiny_model

        data = tiny_model.write_questions(folder / "train.jsonl", steps * RECORDS_PER_STEP, longest=1_000_000)
        config = TrainerConfig.model_validate(
            {
                "run": {"namespace": "bench", "name": "bench", "uid": "bench", "attempt": 1},
                "model": {"uri": "pvc://models/bench", "path": str(model)},
                "task": "InstructionFineTune",
                "dataset": {"train": {"uri": "pvc://data/train.jsonl", "path": str(data)}},
                "method": {"type": "LoRA", "lora": {"rank": 16, "alpha": 32, "dropout": 0.0}},
                "training": {
                    "learningRate": RATE,
                    "scheduler": "Constant",
                    "warmupRatio": 0,
                    "maxSequenceLength": LONGEST,
                    "precision": precision,
                    "compile": compiled,
                    "batchSize": {"perDevice": RECORDS_PER_STEP},
                    "gradientCheckpointing": "Disabled",
                    "seed": SEED,
                },
                "checkpoint": {"interval": "1000000ba"},
                "device": "CPU",
                "runPath": str(folder / "checked"),
            }
        )
        return cls(config, preflight.check(config), folder)

    def rows(self, records: Sequence[int]) -> list[dict[str, list[int]]]:
        """Records as the other trainers take them."""
        return [_as_row(*self.prepared.data.record(record)) for record in records]


def _as_row(tokens: Any, learned: Any) -> dict[str, list[int]]:
    pairs = zip(tokens.tolist(), learned.tolist(), strict=True)
    return {"input_ids": tokens.tolist(), "labels": [token if is_learned else -100 for token, is_learned in pairs]}


def ours(task: Task) -> Result:
    """The whole training as the image runs it, reports included, into a folder of its own."""
    import tempfile

    from transformers.models.llama import modeling_llama

    from finetune_trainer import training
    from finetune_trainer.reporting.reporter import Reporter, Step
    from finetune_trainer.stopping import StopRequest

    clock, steps = Clock(), list[Step]()

    class Timed(Reporter):
        """Says when each step ended."""

        def step_done(self, step: Step) -> None:
            super().step_done(step)
            steps.append(step)
            clock.tick()

    own = modeling_llama.apply_rotary_pos_emb
    with tempfile.TemporaryDirectory(dir=task.folder) as folder:
        config = task.config.model_copy(update={"run_path": folder})
        training.run(config, task.prepared, Timed("bench", attempt=1), StopRequest(last_act=lambda: None))
    modeling_llama.apply_rotary_pos_emb = own  # the file's own again, for the others
    return Result.of(clock, [step.tokens for step in steps], [step.loss for step in steps])
