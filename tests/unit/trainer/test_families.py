"""Families of models, with random weights, through the trainer's own loading: the loss is that of transformers.

What the trainer does to a network to be quick (packing, fused formulas, losses in the output layer, a last MLP that
leaves tokens out) it does where a family's code allows it; which those are is written down here.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from finetune_trainer import preflight
from finetune_trainer.data.dataset import Dataset
from finetune_trainer.distributed import Device
from finetune_trainer.learning import model
from finetune_trainer.learning.objective import NextToken
from tests import tiny_model
from tests.trainer_builders import parsed

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
PACKS, LOSSES, PICKS = "packs", "takes losses", "picks"
ALL = {PACKS, LOSSES, PICKS}
FAMILIES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "Llama": ({}, ALL),
    "Mistral": ({}, ALL),
    "Qwen2": ({}, ALL),
    "Qwen3": ({"head_dim": 16}, ALL),
    "Phi3": ({}, ALL),
    "Gemma2": ({"head_dim": 16}, {PICKS}),  # caps attention and logits
    "Gemma3Text": ({"head_dim": 16}, ALL),
    "Cohere2": ({}, {PACKS, PICKS}),  # scales logits
    "Glm": ({"head_dim": 16}, ALL),
    "Olmo2": ({}, ALL),
    "Granite": ({}, ALL),
    "SmolLM3": ({}, ALL),
    "Starcoder2": ({}, ALL),
    "GPTNeoX": ({}, ALL),
    "Falcon": ({}, {LOSSES, PICKS}),
    "Mixtral": ({"num_local_experts": 4}, {PACKS, LOSSES}),
    "Qwen3Moe": (
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        {PACKS, LOSSES},
    ),
    "GptOss": ({"head_dim": 16, "num_local_experts": 4}, {LOSSES}),  # sinks
}
"""Sizes beyond the usual ones, and what is done to it."""
RECORDS = range(5)


@pytest.mark.parametrize(("family", "more", "expected"), [(name, *case) for name, case in FAMILIES.items()])
def test_the_loss_is_that_of_transformers(
    tmp_path: Path, family: str, more: dict[str, Any], expected: set[str]
) -> None:
    own = _written(tmp_path / "model", family, more)
    for packing in (True, False):
        changes = {
            "model": {"path": str(tmp_path / "model")},
            "method": {"type": "Full", "lora": None},
            "training": {"precision": "FP32", "packing": packing},
        }
        config = parsed(tmp_path / f"packing-{packing}", changes)
        prepared = preflight.check(config)
        most = prepared.plan.most_tokens
        learner = model.load(prepared.model, config, Device("cpu", "cpu", 1), most_tokens=most)
        head = learner.head
        done = {PACKS: learner.packed, LOSSES: head.takes_losses, PICKS: head.picks_in_last_layer}
        assert {name for name, is_done in done.items() if is_done} == expected - (set() if packing else {PACKS})
        objective = NextToken(learner, prepared.data)
        loss = float(objective.loss(RECORDS).detach()) / objective.units(RECORDS)
        learner.kernels.restore()  # the rotation's place is one for all networks of the process
        assert loss == pytest.approx(_alone(own, prepared.data), abs=5e-6)


def _written(folder: Path, family: str, more: dict[str, Any]) -> Any:
    """The network, as transformers computes it; it lies in the folder, beside the tiny model's tokenizer."""
    shutil.copytree(tiny_model.build(), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = getattr(transformers, f"{family}Config")(**SIZES, **more)
    torch.manual_seed(0)
    network = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    network.save_pretrained(folder)
    return network.eval()


def _alone(network: Any, data: Dataset) -> float:
    """The mean loss of the records' targets, one record after the other, without padding."""
    total, targets = 0.0, 0
    for record in RECORDS:
        tokens, learned = (torch.from_numpy(part.copy()) for part in data.record(record))
        labels = torch.where(learned, tokens, -100)[None].long()
        count = int((labels[0, 1:] != -100).sum())
        with torch.no_grad():
            found = network(input_ids=tokens[None].long(), labels=labels, use_cache=False).loss
        total, targets = total + float(found) * count, targets + count
    return total / targets
