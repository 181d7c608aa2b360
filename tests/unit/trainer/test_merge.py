"""Merged weights: plain transformers loads them, and they say what model and adapter say together."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from finetune_trainer.learning import quantization
from tests import trainer_builders, trainer_process

ROWS = [
    pytest.param({}, 1e-4, id="LoRA"),
    pytest.param({"method": {"lora": {"dora": True, "rsLora": True}}}, 1e-4, id="DoRA with rsLoRA"),
    pytest.param({"method": {"type": "QLoRA"}}, 1e-3, id="QLoRA in 4 bits"),
    pytest.param(
        {"method": {"type": "QLoRA", "lora": {"dora": True, "targetModules": ["q_proj"]}}},
        1e-3,
        id="QDoRA of some modules",
    ),
]


def logits(model: Any) -> torch.Tensor:
    model.eval()
    tokens = (torch.arange(40) * 7 + 3) % model.config.vocab_size
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=tokens[None], use_cache=False).logits
    return found


@pytest.mark.parametrize(("changes", "tolerance"), ROWS)
def test_merged_weights_say_what_model_and_adapter_say(tmp_path: Path, changes: Any, tolerance: float) -> None:
    more = {"output": {"mergeAdapter": True}, "training": {"maxDuration": "3ba", "learningRate": 0.03}}
    config = trainer_builders.configuration(tmp_path, trainer_builders.merged(changes, more))
    assert trainer_process.run(config).process.exitcode == 0
    output = tmp_path / "run" / "output"
    merged = transformers.AutoModelForCausalLM.from_pretrained(output / "merged")
    assert transformers.AutoTokenizer.from_pretrained(output / "merged")
    assert not any("lora" in name or "quant" in name for name in merged.state_dict())
    assert "quantization_config" not in (output / "merged" / "config.json").read_text()
    base = _base(config)
    plain = logits(base)
    adapted = logits(peft.PeftModel.from_pretrained(base, str(output)))
    found = logits(merged)
    assert (found - adapted).abs().max() < tolerance * adapted.std()
    assert (plain - adapted).abs().max() > 20 * tolerance * adapted.std(), "else there is nothing to be seen"


def _base(config: Any) -> Any:
    """What the adapter was trained over."""
    path, options = config["model"]["path"], {}
    if config["method"]["type"] == "QLoRA":
        options["quantization_config"] = transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    base = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options)
    quantization.keep_differentiable(base)  # else CPUs that can would compute it in BF16
    return base


def test_8_bits_are_merged_into_what_they_stand_for(tmp_path: Path) -> None:
    """LLM.int8 rounds activations too, so its own logits differ; the weights are compared instead."""
    changes = {
        "method": {"type": "QLoRA", "quantization": {"bits": 8}},
        "output": {"mergeAdapter": True},
        "training": {"maxDuration": "2ba"},
    }
    config = trainer_builders.configuration(tmp_path, changes)
    assert trainer_process.run(config).process.exitcode == 0
    output = tmp_path / "run" / "output"
    base = transformers.AutoModelForCausalLM.from_pretrained(config["model"]["path"])
    adapted = peft.PeftModel.from_pretrained(base, str(output)).merge_and_unload().state_dict()
    merged = transformers.AutoModelForCausalLM.from_pretrained(output / "merged").state_dict()
    assert merged.keys() == adapted.keys()
    worst = max(((merged[n] - adapted[n]).abs().max() / adapted[n].abs().max()).item() for n in merged)
    assert 0 < worst < 0.02, "apart by no more than 8 bits can say"
    assert "8 bits" in (output / "README.md").read_text()
