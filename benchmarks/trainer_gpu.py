"""The trainer's speed on a GPU, beside TRL's: a Llama of 8 billion random weights, LoRA in bf16, rows of 4,096 tokens.

`python -m benchmarks.trainer_gpu`. Nothing is downloaded: weights are random and made on the device, tokens too, and
all of them are learned. Without a GPU, `--shape tiny --length 64` goes the same way on CPU. The last line is one JSON
object: tokens per second and the share of the device's peak (MFU), of work that has to be done: no recomputation.
"""

import argparse
import gc
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks import trainer_trl
from benchmarks.trainer_sides import RATE, SEED
from finetune_api.method import BatchSize, Lora, Precision, Training
from finetune_trainer import distributed, loop
from finetune_trainer.data.dataset import Dataset
from finetune_trainer.data.plan import Plan
from finetune_trainer.data.records import Place
from finetune_trainer.learning import adapter, attention, flops, model, optimizer, outputlayer
from finetune_trainer.learning.kernels import Kernels
from finetune_trainer.learning.objective import NextToken
from tests import tiny_model

SHAPES = {
    "8b": tiny_model.Shape(
        hidden=4096, layers=32, heads=32, kv_heads=8, intermediate=14336, vocabulary=128256, positions=8192, tied=False
    ),
    "tiny": tiny_model.Shape(tied=False),
}
RANK = 16
WARM_UP = 3


def main() -> None:
    """Print a line a round and the result."""
    options = _options()
    device = distributed.choose_device("Auto")
    place, shape = torch.device(device.kind), SHAPES[options.shape]
    known = flops.peak(device.name, Precision.BF16)
    peak = options.peak_tflops or (None if known is None else known / 1e12)
    data = _tokens(shape, count=options.steps + WARM_UP, length=options.length)
    sides: dict[str, Callable[[tiny_model.Shape, Dataset, torch.device], float]] = {
        "ours": _ours,
        "ours, compiled": partial(_ours, compiled=True),
        "trl": _trl,
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds):
        for name, measure in sides.items():
            found[name].append(options.steps * options.length / measure(shape, data, place))
            gc.collect()
            torch.cuda.empty_cache()
        told = ", ".join(f"{name} {speeds[-1]:,.0f}" for name, speeds in found.items())
        print(f"round {number + 1}, tokens/s: {told}", flush=True)
    each = _flops_a_token(shape, options.length)
    result: dict[str, Any] = {
        "device": device.name,
        "shape": asdict(shape),
        "length": options.length,
        "vs_trl": _ratio(found["ours"], found["trl"]),
        "compiled_vs_eager": _ratio(found["ours, compiled"], found["ours"]),
    }
    for name, speeds in found.items():
        speed = statistics.median(speeds)
        share = None if peak is None else round(speed * each / (peak * 1e12), 3)
        result[name] = {"tokens_per_second": round(speed), "mfu": share}
    print(json.dumps(result))


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 2)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peak-tflops", type=float, help="of the device, dense bf16; known for some")
    return parser.parse_args()


def _flops_a_token(shape: tiny_model.Shape, length: int) -> float:
    """Of a forward and backward pass: 4 for a frozen weight, 6 for a trained one, and causal attention."""
    size = shape.hidden // shape.heads
    inner = shape.heads * size
    ends = {
        (shape.hidden, inner): 2,
        (shape.hidden, shape.kv_heads * size): 2,
        (shape.hidden, shape.intermediate): 3,
    }
    frozen = shape.layers * sum(a * b * count for (a, b), count in ends.items()) + shape.hidden * shape.vocabulary
    trained = shape.layers * RANK * sum((a + b) * count for (a, b), count in ends.items())
    return 4.0 * frozen + 6.0 * trained + 6.0 * shape.layers * length * inner


def _tokens(shape: tiny_model.Shape, *, count: int, length: int) -> Dataset:
    drawn = np.random.default_rng(SEED).integers(3, shape.vocabulary, count * length, dtype=np.int32)
    return Dataset(
        tokens=drawn,
        learned=np.ones(count * length, dtype=np.bool_),
        ends=np.arange(1, count + 1, dtype=np.int64) * length,
        places=[Place("random", number + 1, "line") for number in range(count)],
    )


def _network(shape: tiny_model.Shape, place: torch.device) -> Any:
    torch.manual_seed(SEED)
    with place:
        return transformers.AutoModelForCausalLM.from_config(tiny_model.configuration(shape), dtype=torch.bfloat16)  # type: ignore[no-untyped-call]


def _ours(shape: tiny_model.Shape, data: Dataset, place: torch.device, *, compiled: bool = False) -> float:
    """Seconds of the timed steps, as the loop takes them."""
    attention.register()
    network = _network(shape, place)
    network.set_attn_implementation(attention.NAME)
    network = adapter.add(network, Lora(rank=RANK, alpha=2 * RANK, dropout=0.0), seed=SEED)
    network.train()
    kernels = Kernels(network)
    kernels.compile() if compiled else kernels.fuse()
    head = outputlayer.TargetsOnly(network)
    learner = model.Learner(
        network,
        device=place,
        precision=Precision.BF16,
        packed=True,
        full=False,
        bits=None,
        recomputes=False,
        stored_dtype=torch.bfloat16,
        head=head,
        kernels=kernels,
    )
    training = Training(learning_rate=RATE, max_duration="1ep", batch_size=BatchSize(per_device=1), seed=SEED)
    plan, objective = Plan.of(training, data.lengths), NextToken(learner, data)
    adamw = optimizer.adamw(learner.trained.values(), training)
    started = 0.0
    for step in range(plan.steps):
        if step == WARM_UP:
            started = _now(place)
        loop.gradient(objective, plan.batch(step), training.max_grad_norm)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
    took = _now(place) - started
    kernels.restore()  # the rotation's place is one for all networks of the process
    return took


def _trl(shape: tiny_model.Shape, data: Dataset, place: torch.device) -> float:
    """The same by SFTTrainer: bf16 weights, packing, scaled dot product attention, no gradient checkpointing."""
    trainer_trl.enable()
    peft, datasets, trl = (importlib.import_module(name) for name in ("peft", "datasets", "trl"))
    datasets.disable_progress_bars()
    lora = peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    ended: list[float] = []

    class Timed(transformers.TrainerCallback):
        """Says when each step ended."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            ended.append(_now(place))

    arguments = trl.SFTConfig(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=1,
        num_train_epochs=1,
        max_length=max(data.lengths),
        packing=True,
        learning_rate=RATE,
        bf16=True,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=place.type == "cpu",
        seed=SEED,
    )
    trainer = trl.SFTTrainer(
        model=_network(shape, place),
        args=arguments,
        train_dataset=datasets.Dataset.from_list(list(_rows(data))),
        processing_class=transformers.AutoTokenizer.from_pretrained(tiny_model.build()),
        peft_config=lora,
        callbacks=[Timed()],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return ended[-1] - ended[WARM_UP - 1]


def _rows(data: Dataset) -> Iterator[Mapping[str, list[int]]]:
    for number in range(len(data.lengths)):
        tokens = data.record(number)[0].tolist()
        yield {"input_ids": tokens, "labels": tokens}


def _now(place: torch.device) -> float:
    if place.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
