"""What the trainer's benchmark gives to each side and takes from it, and our side: a training as the image runs it.

A step goes from the end of the one before to its own, whatever lies between: evaluation and saves aren't part of it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from benchmarks.trainer_turns import Turns
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import distributed, preflight

RECORDS_PER_STEP = 8
LONGEST = 512
RATE = 0.001
SEED = 17


class Result(TypedDict):
    """What one side found in one round."""

    wall: float
    """Tokens per second."""
    cpu: float
    """Tokens per second of CPU time."""
    tokens: int
    """In all steps."""
    losses: list[float]
    """Of each step; none where they weren't logged."""


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


def as_the_image_starts() -> None:
    """What the trainer does before torch is imported."""
    distributed.tune_threads(os.environ)


def ours(task: Task, turns: Turns) -> Result:
    """The whole training as the image runs it, reports included, into a folder of its own."""
    from finetune_trainer import training
    from finetune_trainer.reporting.progress import Step
    from finetune_trainer.reporting.reporter import Reporter
    from finetune_trainer.stopping import StopRequest

    steps = list[Step]()

    class Timed(Reporter):
        """Says when each step ended."""

        def step_done(self, step: Step) -> None:
            super().step_done(step)
            steps.append(step)
            turns.step_ended()

    training.run(task.config, task.prepared, Timed("bench", attempt=1), StopRequest(last_act=lambda: None))
    return result(turns, [step.tokens for step in steps], [step.loss for step in steps])


def result(turns: Turns, tokens: Sequence[int], losses: Sequence[float]) -> Result:
    """From the tokens of each step; the first one isn't counted."""
    assert len(turns.wall) == len(tokens), f"{len(turns.wall)} steps, tokens of {len(tokens)}"
    counted = sum(tokens[1:])
    return {
        "wall": counted / sum(turns.wall),
        "cpu": counted / sum(turns.cpu),
        "tokens": sum(tokens),
        "losses": list(losses),
    }
