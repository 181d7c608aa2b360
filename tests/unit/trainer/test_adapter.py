"""The adapter: each form computes what peft computes, and one of an earlier run is gone on with or refused by field."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from finetune_api.method import Lora, LoraBias
from finetune_trainer.data import bounded
from finetune_trainer.errors import ConfigInvalid, NotFound
from finetune_trainer.learning import adapter
from tests import tiny_model

BIASED = tiny_model.Shape(biases=True)
FORMS = {
    "LoRA": Lora(rank=4, alpha=8, dropout=0.0),
    "rsLoRA": Lora(rank=4, alpha=8, dropout=0.0, rs_lora=True),
    "DoRA": Lora(rank=4, alpha=8, dropout=0.0, dora=True),
    "rsLoRA with DoRA": Lora(rank=4, alpha=8, dropout=0.0, rs_lora=True, dora=True),
    "some modules, with their biases": Lora(
        rank=4, alpha=8, dropout=0.0, target_modules=("q_proj", "down_proj"), bias=LoraBias.LORA_ONLY
    ),
    "all biases": Lora(rank=4, alpha=8, dropout=0.0, bias=LoraBias.ALL),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_output_is_that_of_plain_peft(tmp_path: Path, form: Lora) -> None:
    ours = _drawn(adapter.add(_network(), form, seed=1))
    _save(ours, tmp_path)
    plain = peft.PeftModel.from_pretrained(_network(), str(tmp_path))
    assert torch.allclose(_logits(ours), _logits(plain), atol=1e-6)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_adapter_of_an_earlier_run_is_gone_on_with(tmp_path: Path, form: Lora) -> None:
    before = _drawn(adapter.add(_network(), form, seed=1))
    _save(before, tmp_path)
    after = adapter.load(_network(), tmp_path, "run://first", form, seed=2)
    assert _trained(after).keys() == _trained(before).keys()
    assert all(torch.equal(weight, _trained(before)[name]) for name, weight in _trained(after).items())


def test_without_settings_of_its_own_the_adapters_form_is_taken(tmp_path: Path) -> None:
    _save(adapter.add(_network(), Lora(rank=3, alpha=6, dropout=0.2, dora=True), seed=1), tmp_path)
    settings = adapter.load(_network(), tmp_path, "run://first", None, seed=2).peft_config["default"]
    assert (settings.r, settings.lora_alpha, settings.lora_dropout, settings.use_dora) == (3, 6, 0.2, True)


def test_the_dropout_may_be_another(tmp_path: Path) -> None:
    _save(adapter.add(_network(), Lora(rank=4, dropout=0.2), seed=1), tmp_path)
    loaded = adapter.load(_network(), tmp_path, "run://first", Lora(rank=4, dropout=0.5), seed=2)
    rates = {m.p for name, m in loaded.named_modules() if "lora_dropout" in name and isinstance(m, torch.nn.Dropout)}
    assert rates == {0.5}


OTHERS = {
    "rank": (Lora(rank=8), "method.lora.rank is 8, but the adapter run://first was made with 4; set it to that"),
    "alpha": (Lora(rank=4, alpha=16), "method.lora.alpha is 16.0, but .* with 32"),
    "DoRA": (Lora(rank=4, dora=True), "method.lora.dora is True"),
    "biases": (Lora(rank=4, bias=LoraBias.ALL), "method.lora.bias is all"),
    "modules": (Lora(rank=4, target_modules=("q_proj",)), "method.lora.targetModules is q_proj, but .* with down_proj"),
}


@pytest.mark.parametrize(("wanted", "said"), OTHERS.values(), ids=OTHERS)
def test_another_form_than_the_adapters_is_refused_by_field(tmp_path: Path, wanted: Lora, said: str) -> None:
    _save(adapter.add(_network(), Lora(rank=4), seed=1), tmp_path)
    with pytest.raises(ConfigInvalid, match=said):
        adapter.load(_network(), tmp_path, "run://first", wanted, seed=2)


BROKEN = {
    "no adapter": (lambda folder: (folder / "adapter_config.json").unlink(), "adapter run://first is not one"),
    "pickled weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "pickled ones are not loaded"),
    "half a file": (lambda folder: _truncate(folder / "adapter_model.safetensors"), "can't be loaded"),
    "weights of another model": (
        lambda folder: _shrink(folder / "adapter_model.safetensors"),
        "doesn't fit this model",
    ),
    "another kind of adapter": (
        lambda folder: _rewrite(folder / "adapter_config.json", peft_type="IA3"),
        "is not one|is of type IA3",
    ),
    "a rank of a million": (lambda folder: _rewrite(folder / "adapter_config.json", r=10**6), "says r 1,000,000, but"),
    "a rank of a million for one module": (
        lambda folder: _rewrite(folder / "adapter_config.json", rank_pattern={"q_proj": 10**6}),
        "says r 1,000,000, but",
    ),
    "a rank that is no number": (lambda folder: _rewrite(folder / "adapter_config.json", r="x"), "can't be"),
    "a pattern that is none": (lambda folder: _rewrite(folder / "adapter_config.json", target_modules="("), "can't be"),
}
ENDLESS = "([a-z0-9_.]+)+!"
PATTERNS = {
    "modules": {"target_modules": ENDLESS},
    "ranks": {"rank_pattern": {ENDLESS: 4}},
    "out": {"exclude_modules": ENDLESS},
}


@pytest.mark.parametrize(("damage", "said"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_whole_adapter_is_refused(tmp_path: Path, damage: Any, said: str) -> None:
    _save(adapter.add(_network(), Lora(rank=4), seed=1), tmp_path)
    damage(tmp_path)
    with pytest.raises(NotFound, match=said):
        adapter.load(_network(), tmp_path, "run://first", None, seed=2)


@pytest.mark.parametrize("settings", PATTERNS.values(), ids=PATTERNS)
def test_a_pattern_that_never_ends_is_ended(
    tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 0.3)
    _save(adapter.add(_network(), Lora(rank=4), seed=1), tmp_path)
    _rewrite(tmp_path / "adapter_config.json", **settings)
    with pytest.raises(NotFound, match=r"adapter run://first: a pattern of modules in adapter_config\.json was ended"):
        adapter.load(_network(), tmp_path, "run://first", None, seed=2)


def test_every_name_must_be_a_modules() -> None:
    with pytest.raises(ConfigInvalid, match=r"targetModules query: no module .* are down_proj, gate_proj, k_proj"):
        adapter.add(_network(), Lora(target_modules=("q_proj", "query")), seed=1)


def test_all_linear_stands_alone() -> None:
    with pytest.raises(ConfigInvalid, match="all-linear is all of them; remove the other names"):
        adapter.add(_network(), Lora(target_modules=("all-linear", "q_proj")), seed=1)


def test_a_module_that_takes_no_adapter_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"targetModules input_layernorm: .*not supported"):
        adapter.add(_network(), Lora(target_modules=("input_layernorm",)), seed=1)


def test_biases_that_the_model_has_not_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"method\.lora\.bias All: there is no bias vector"):
        adapter.add(_network(tiny_model.TINY), Lora(bias=LoraBias.ALL), seed=1)


def test_the_biases_that_are_trained_are_those_asked_for() -> None:
    def biases(form: Lora) -> set[str]:
        names = _trained(adapter.add(_network(), form, seed=1))
        return {name.split(".")[-2] for name in names if name.endswith("bias")} - {"base_layer"} | {
            name.split(".")[-3] for name in names if name.endswith("base_layer.bias")
        }

    assert biases(Lora(target_modules=("q_proj",))) == set()
    assert biases(Lora(target_modules=("q_proj",), bias=LoraBias.LORA_ONLY)) == {"q_proj"}
    every = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert biases(Lora(target_modules=("q_proj",), bias=LoraBias.ALL)) == every


def test_switched_off_the_model_is_the_one_it_was() -> None:
    adapted = _drawn(adapter.add(_network(), FORMS["LoRA"], seed=1))
    with adapted.disable_adapter():
        off = _logits(adapted)
    assert torch.equal(off, _logits(_network()))
    assert not torch.allclose(_logits(adapted), off, atol=1e-3)


def test_what_is_trained_is_fp32_whatever_the_model_is() -> None:
    adapted = adapter.add(_network(dtype=torch.bfloat16), Lora(dora=True, bias=LoraBias.ALL), seed=1)
    assert {weight.dtype for weight in _trained(adapted).values()} == {torch.float32}


def _network(shape: tiny_model.Shape = BIASED, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_model.build(shape), dtype=dtype)


def _drawn(adapted: Any) -> Any:
    """With weights as after a training: none is zero."""
    torch.manual_seed(5)
    for weight in _trained(adapted).values():
        weight.data += torch.randn_like(weight) * 0.05
    return adapted.eval()


def _logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = network.eval()(input_ids=torch.arange(3, 15)[None], use_cache=False).logits
    return logits


def _trained(adapted: Any) -> dict[str, torch.nn.Parameter]:
    return {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}


def _save(adapted: Any, folder: Path) -> None:
    save_file({n: t.contiguous() for n, t in adapter.state(adapted).items()}, folder / adapter.WEIGHTS)
    adapted.peft_config["default"].save_pretrained(str(folder))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _shrink(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: tensor[:, :3].contiguous() for name, tensor in tensors.items()}, path)


def _rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
