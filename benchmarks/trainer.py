"""The trainer's speed against transformers.Trainer: the same model, records, batches and settings, in the same run.

`make bench-trainer`. Rounds alternate, so that a busy machine slows both; the figure is the median of the rounds.
Tokens are non-padding tokens of whole optimizer steps. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_trainer import distributed

RECORDS_PER_STEP = 8
RATE = 0.001


@dataclass(frozen=True)
class Result:
    """One side of one round."""

    tokens_per_second: float
    losses: tuple[float, ...]


def main() -> None:
    """Print a line a round and the result."""
    options = _options()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    distributed.tune_threads(os.environ)
    from tests import tiny_model

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = tiny_model.write_questions(folder / "train.jsonl", options.steps * RECORDS_PER_STEP)
        model = options.model or tiny_model.build(tiny_model.SMALL)
        prepared = _prepare(folder, data, model, options)
        print(f"{prepared.summary} {options.steps} steps of {RECORDS_PER_STEP}, {options.threads} threads")
        rounds = [_round(number, prepared, folder, options) for number in range(options.rounds)]
    ours, theirs = ([pair[side].tokens_per_second for pair in rounds] for side in (0, 1))
    first, second = rounds[0]
    result = {
        "vs_transformers": round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2),
        "tokens_per_second": round(statistics.median(ours)),
        "transformers_tokens_per_second": round(statistics.median(theirs)),
        "loss_difference": round(max(abs(a - b) for a, b in zip(first.losses, second.losses, strict=True)), 6),
        "threads": options.threads,
    }
    print(json.dumps(result))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a model's folder; else a random Llama of 3.7 million parameters")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=distributed.usable_cpus())
    parser.add_argument("--precision", choices=("FP32", "BF16"), default="FP32")
    return parser.parse_args()


def _prepare(folder: Path, data: Path, model: Path, options: argparse.Namespace) -> Any:
    from finetune_api.trainer_config import TrainerConfig
    from finetune_trainer import preflight

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
                "maxSequenceLength": 512,
                "precision": options.precision,
                "batchSize": {"perDevice": RECORDS_PER_STEP},
                "seed": 17,
            },
            "checkpoint": {"interval": "1000000ba"},
            "runPath": str(folder / "run"),
        }
    )
    prepared = preflight.check(config)
    return argparse.Namespace(config=config, **vars(prepared))


def _round(number: int, prepared: Any, folder: Path, options: argparse.Namespace) -> tuple[Result, Result]:
    results = _ours(prepared), _theirs(prepared, folder, options.precision)
    speeds = [result.tokens_per_second for result in results]
    print(f"round {number + 1}: {speeds[0]:,.0f} tok/s, transformers.Trainer {speeds[1]:,.0f} tok/s", flush=True)
    return results


def _ours(prepared: Any) -> Result:
    """The trainer's own loop, as a run has it but for the first step, which warms up, and the saves."""
    import transformers

    from finetune_trainer import distributed, loop
    from finetune_trainer.learning import model, optimizer
    from finetune_trainer.learning.objective import NextToken

    config, plan = prepared.config, prepared.plan
    device = distributed.choose_device("CPU")
    learner = model.load(prepared.model, config, device, most_tokens=plan.most_tokens)
    objective = NextToken(learner, prepared.data)
    adamw = optimizer.adamw(learner.trained.values(), config.training)
    transformers.set_seed(config.training.seed)
    losses, started = [], 0.0
    for step in range(plan.steps):
        if step == 1:
            started = time.perf_counter()
        found = loop.gradient(objective, plan.batch(step), config.training.max_grad_norm)
        assert found is not None
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        losses.append(found[0])
    return Result(_timed_tokens(plan) / (time.perf_counter() - started), tuple(losses))


def _theirs(prepared: Any, folder: Path, precision: str) -> Result:
    """transformers.Trainer as it comes, given the very same batches in the same order."""
    import peft
    import torch
    import transformers

    plan, data, config = prepared.plan, prepared.data, prepared.config
    base = transformers.AutoModelForCausalLM.from_pretrained(prepared.model.path, dtype=torch.float32)
    adapter = peft.LoraConfig(
        r=config.method.adapter.rank,
        lora_alpha=config.method.adapter.alpha,
        lora_dropout=config.method.adapter.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(config.training.seed)
    network = peft.get_peft_model(base, adapter)
    order = [record for step in range(plan.steps) for micro in plan.batch(step) for record in micro]
    rows = [_as_row(*data.record(record)) for record in order]
    clock = _clock()

    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "theirs"),
        per_device_train_batch_size=RECORDS_PER_STEP,
        max_steps=plan.steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        bf16=precision == "BF16",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = transformers.Trainer(
        model=network,
        args=arguments,
        train_dataset=rows,
        data_collator=_pad,
        callbacks=[clock],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    torch.manual_seed(config.training.seed)
    trainer.train()
    losses = tuple(float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    return Result(_timed_tokens(plan) / (clock.ended - clock.started), losses)


def _clock() -> Any:
    import transformers

    class Clock(transformers.TrainerCallback):
        """Times all steps but the first."""

        started = ended = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            self.ended = time.perf_counter()
            if state.global_step == 1:
                self.started = self.ended

    return Clock()


def _timed_tokens(plan: Any) -> int:
    return int(plan.tokens - plan.tokens_in(plan.batch(0)))


def _as_row(tokens: Any, learned: Any) -> dict[str, list[int]]:
    labels = [
        token if is_learned else -100 for token, is_learned in zip(tokens.tolist(), learned.tolist(), strict=True)
    ]
    return {"input_ids": tokens.tolist(), "labels": labels}


def _pad(rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    """What DataCollatorForSeq2Seq does: right padding with a mask."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    full = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return {
        key: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in full]) for key, value in fill.items()
    }


if __name__ == "__main__":
    main()
