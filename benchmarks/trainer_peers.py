"""The other sides of the trainer's benchmark: transformers.Trainer and TRL's SFTTrainer, on one CPU process.

Each has the same base weights, LoRA on the same layers, learning rate and precision as ours, and no gradient
checkpointing. What isn't named here is as the library has it.
"""

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import peft
import torch
import transformers

from benchmarks import trainer_trl
from benchmarks.trainer_sides import LONGEST, RATE, RECORDS_PER_STEP, SEED, Result, Task, result
from benchmarks.trainer_turns import Turns


def transformers_default(task: Task, turns: Turns) -> Result:
    """As it comes: random batches of the same number of records, padded to the longest of each."""
    batches = _Padded()
    arguments = transformers.TrainingArguments(**_arguments(task))
    rows = task.rows(range(len(task.prepared.data.lengths)))
    return _train(
        transformers.Trainer(args=arguments, train_dataset=rows, **_common(task, batches)), batches.tokens, turns
    )


def transformers_on_our_batches(task: Task, turns: Turns) -> Result:
    """The very batches that ours has, in their order: for the losses."""
    plan, batches = task.prepared.plan, _Padded()
    order = [record for step in range(plan.steps) for micro in plan.batch(step) for record in micro]
    arguments = transformers.TrainingArguments(
        **_arguments(task), train_sampling_strategy="sequential", logging_steps=1
    )
    trainer = transformers.Trainer(args=arguments, train_dataset=task.rows(order), **_common(task, batches))
    return _train(trainer, batches.tokens, turns)


def trl_packed(task: Task, turns: Turns) -> Result:
    """Best-fit packing into rows of LONGEST tokens, one row a step: about as many tokens a step as ours."""
    trainer_trl.enable()
    datasets, trl = (importlib.import_module(name) for name in ("datasets", "trl"))
    datasets.disable_progress_bars()
    rows = datasets.Dataset.from_list(task.rows(range(len(task.prepared.data.lengths))))
    arguments = trl.SFTConfig(
        **{**_arguments(task), "per_device_train_batch_size": 1},
        max_length=LONGEST,
        packing=True,
        dataset_num_proc=None,
    )
    common = _common(task, None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(task.prepared.model.path)
    trainer = trl.SFTTrainer(args=arguments, train_dataset=rows, processing_class=tokenizer, **common)
    counted = _Counted(trainer.data_collator)
    trainer.data_collator = counted
    return _train(trainer, counted.tokens, turns)


def _common(task: Task, batches: "_Padded | None") -> dict[str, Any]:
    base = transformers.AutoModelForCausalLM.from_pretrained(task.prepared.model.path, dtype=torch.float32)
    wanted = task.config.method.adapter
    assert wanted is not None
    adapter = peft.LoraConfig(
        r=wanted.rank,
        lora_alpha=wanted.alpha,  # type: ignore[arg-type]  # a float is scaled with just the same
        lora_dropout=wanted.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(SEED)
    given: dict[str, Any] = {"model": peft.get_peft_model(base, adapter)}
    return given if batches is None else given | {"data_collator": batches}


def _arguments(task: Task) -> dict[str, Any]:
    return {
        "output_dir": str(task.folder / "theirs"),
        "per_device_train_batch_size": RECORDS_PER_STEP,
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "bf16": task.config.training.precision == "BF16",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": SEED,
    }


def _train(trainer: Any, tokens: list[int], turns: Turns) -> Result:
    """Train; `tokens` fills with what each step has. Loaders fetch ahead, so that more may have been counted."""

    class Timed(transformers.TrainerCallback):
        """Says when each step ended."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            turns.step_ended()

    logging.getLogger("transformers").setLevel(logging.ERROR)
    trainer.add_callback(Timed())
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    return result(turns, tokens, losses)


class _Padded:
    """What transformers' DataCollatorForSeq2Seq does: right padding with a mask."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
        self.tokens.append(sum(len(row["input_ids"]) for row in rows))
        width = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        full = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]
        return {
            key: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in full])
            for key, value in fill.items()
        }


class _Counted:
    """Another collator, and the tokens that it was given."""

    def __init__(self, collator: Any) -> None:
        self._collator = collator
        self.tokens: list[int] = []

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Any:
        self.tokens.append(sum(len(row["input_ids"]) for row in rows))
        return self._collator(rows)


SIDES: Mapping[str, Callable[[Task, Turns], Result]] = {
    "trl_packed": trl_packed,
    "transformers": transformers_default,
    "transformers_on_our_batches": transformers_on_our_batches,
}
