"""The adapter's own forward and backward pass gives what peft's gives, whatever layers share their inputs."""

from typing import Any

import peft
import pytest
import torch
import transformers
from peft.tuners.lora.layer import Linear

from finetune_api.method import Lora, LoraBias
from finetune_trainer.learning import adapter, lora
from tests import tiny_model

CASES: dict[str, dict[str, Any]] = {
    "all layers": {},
    "query and value alone": {"target_modules": ("q_proj", "v_proj")},
    "rsLoRA": {"rs_lora": True},
    "trained biases": {"bias": LoraBias.ALL},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_outputs_and_gradients_are_those_of_peft(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    ours, gradients = _computed(changes)
    with monkeypatch.context() as patch:
        patch.setattr(lora, "install", lambda *_: None)
        expected, theirs = _computed(changes)
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-8)
    assert gradients.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-10, rtol=1e-8)


def test_layers_that_are_given_other_inputs_compute_their_own() -> None:
    network = _network({})
    attention = network.base_model.model.model.layers[0].self_attn
    first, second = torch.randn(2, 3, 64), torch.randn(2, 3, 64)
    attention.q_proj(first)  # key and value wait for the same inputs, and don't get them
    torch.testing.assert_close(attention.k_proj(second), Linear.forward(attention.k_proj, second))
    changed = first.clone()
    attention.q_proj(changed)
    changed += 1
    torch.testing.assert_close(attention.k_proj(changed), Linear.forward(attention.k_proj, changed))


def test_nothing_is_kept_once_all_layers_have_had_theirs() -> None:
    network = _network({})
    network(input_ids=torch.arange(8)[None], use_cache=False)
    shared = {id(module.forward.__func__.__self__): module.forward.__func__.__self__ for module in _linear(network)}
    assert shared
    assert all(one._inputs is None and not one._waiting for one in shared.values())


def test_what_a_pass_that_broke_off_has_left_can_be_let_go() -> None:
    network = _network({})
    network.base_model.model.model.layers[0].self_attn.q_proj(torch.randn(2, 3, 64))
    (left,) = {id(m): m for m in (one.forward.__func__.__self__ for one in _linear(network)) if m._waiting}.values()
    lora.forget(network)
    assert left._inputs is None
    assert not left._waiting


def test_dropout_drops_the_adapters_inputs_of_each_layer_by_itself() -> None:
    network = _network({"dropout": 0.5})
    attention = network.base_model.model.model.layers[0].self_attn
    inputs = torch.randn(1, 5, 64)
    torch.manual_seed(1)
    found = [attention.q_proj(inputs), attention.k_proj(inputs)]
    torch.manual_seed(1)
    expected = [Linear.forward(layer, inputs) for layer in (attention.q_proj, attention.k_proj)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def _network(changes: dict[str, Any]) -> Any:
    folder = tiny_model.build(tiny_model.Shape(biases=True) if "bias" in changes else tiny_model.TINY)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    network = adapter.add(base, Lora(**{"rank": 4, "dropout": 0.0} | changes), seed=1)
    torch.manual_seed(2)
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return network.train()


def _linear(network: peft.PeftModel) -> list[Any]:
    return [module for module in network.modules() if type(module) is Linear]


def _computed(changes: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    network = _network(changes).double()  # differences of rounding alone are far below the tolerance
    logits = network(input_ids=(torch.arange(40) * 7 % 500).view(2, 20), use_cache=False).logits
    logits.square().mean().backward()
    return logits.detach(), {name: weight.grad for name, weight in network.named_parameters() if weight.requires_grad}
