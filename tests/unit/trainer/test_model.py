"""The model: its loss is transformers' own, packed records don't see each other, and what doesn't fit is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from finetune_api.method import Precision
from finetune_api.trainer_config import ModelSource
from finetune_trainer import preflight
from finetune_trainer.data import batch
from finetune_trainer.data.dataset import Dataset
from finetune_trainer.distributed import Device
from finetune_trainer.errors import ConfigInvalid, NotFound
from finetune_trainer.learning import loss, model, outputlayer
from finetune_trainer.sources import modelfolder
from tests import tiny_model
from tests.trainer_builders import parsed

CPU = Device("cpu", "cpu", 1)
NO_DROPOUT = {"method": {"type": "LoRA", "lora": {"rank": 4, "dropout": 0.0}}}
FULL = {"method": {"type": "Full", "lora": None}}


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_the_loss_is_that_of_transformers(tmp_path: Path, *, packing: bool) -> None:
    learner, data = _load(tmp_path, FULL | {"training": {"packing": packing}})
    assert learner.packed == packing
    records = range(6)
    ours = learner.loss(batch.build(data, records, packed=packing, device=learner.device)).detach()
    targets = batch.targets_in(data, records)
    assert float(ours / targets) == pytest.approx(_reference_loss(data, list(records)), abs=1e-5)


@pytest.mark.parametrize("method", [NO_DROPOUT, FULL], ids=["LoRA", "full"])
def test_the_loss_is_computed_in_the_output_layer_with_the_gradients_of_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: dict[str, Any]
) -> None:
    monkeypatch.setitem(loss.PIECE, "cpu", 3_000)  # six rows
    learner, data = _load(tmp_path, method)
    tensors = batch.build(data, range(4), packed=learner.packed, device=learner.device)
    gradients = []
    for takes_losses in (True, False):
        assert learner.head.takes_losses
        monkeypatch.setattr(learner.head, "takes_losses", takes_losses)
        for compute in (learner.loss, lambda given: learner.scores(given).square().sum()):
            compute(tensors).backward()  # type: ignore[no-untyped-call]
        gradients.append([weight.grad.clone() for weight in learner.trained.values() if weight.grad is not None])
        learner.network.zero_grad()
        monkeypatch.setattr(learner.head, "takes_losses", True)
    assert gradients[0]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_a_model_that_changes_its_logits_computes_the_loss_of_them(tmp_path: Path) -> None:
    learner, _ = _load(tmp_path, NO_DROPOUT)
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_model.build(), dtype=torch.float32)
    plain = network.forward

    def capped(**inputs: Any) -> Any:
        found = plain(**inputs)
        found.logits = 0.1 * torch.tanh(found.logits / 0.1)
        return found

    network.forward = capped
    assert learner.head.takes_losses
    assert not outputlayer.TargetsOnly(network).takes_losses


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("recomputes", ["Enabled", "Disabled"])
def test_the_last_mlp_leaves_out_what_is_not_learned_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, packing: bool, recomputes: str
) -> None:
    training = {"training": {"packing": packing, "gradientCheckpointing": recomputes}}
    learner, data = _load(tmp_path, FULL | training)
    tensors = batch.build(data, range(4), packed=packing, device=learner.device)
    rows: list[int] = []
    mlp = learner.network.model.layers[-1].mlp.gate_proj
    mlp.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0][..., 0].numel()))
    found = []
    for worth in (outputlayer.WORTH_PICKING, 0.0):
        monkeypatch.setattr(outputlayer, "WORTH_PICKING", worth)
        summed = learner.loss(tensors)
        summed.backward()  # type: ignore[no-untyped-call]
        gradients = {name: weight.grad for name, weight in learner.trained.items() if weight.grad is not None}
        found.append((float(summed.detach()), gradients))
        learner.network.zero_grad(set_to_none=True)
    times = 2 if recomputes == "Enabled" else 1
    assert rows == [len(tensors.targets)] * times + [tensors.inputs["input_ids"].numel()] * times
    (one, picked), (whole, expected) = found
    assert one == pytest.approx(whole, rel=1e-6)
    assert picked.keys() == expected.keys() == learner.trained.keys()
    for name, gradient in picked.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5 * float(expected[name].abs().max()))


def test_a_last_layer_that_looks_at_other_tokens_is_given_all(tmp_path: Path) -> None:
    learner, _ = _load(tmp_path, NO_DROPOUT)
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_model.build(), dtype=torch.float32)
    own = network.model.norm.forward
    network.model.norm.forward = lambda hidden: own(hidden.cumsum(1))
    assert not outputlayer.TargetsOnly(network).picks_in_last_layer
    assert learner.head.picks_in_last_layer


def test_packed_logits_are_those_of_each_record_alone(tmp_path: Path) -> None:
    learner, data = _load(tmp_path, NO_DROPOUT)
    together = _logits(learner, data, range(5))
    alone = [_logits(learner, data, [record]) for record in range(5)]
    assert torch.equal(together, torch.cat(alone)) or (together - torch.cat(alone)).abs().max() < 1e-5


def test_padded_logits_are_those_of_each_record_alone(tmp_path: Path) -> None:
    learner, data = _load(tmp_path, NO_DROPOUT | {"training": {"packing": False}})
    together = _logits(learner, data, range(5))
    alone = [_logits(learner, data, [record]) for record in range(5)]
    assert (together - torch.cat(alone)).abs().max() < 1e-5


def test_a_model_that_mixes_packed_records_is_padded_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.learning import attention

    def one_for_all(module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **_: Any) -> Any:
        mixed = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return mixed.transpose(1, 2), None

    monkeypatch.setattr(attention, "attend", one_for_all)
    learner, _ = _load(tmp_path, NO_DROPOUT)
    assert not learner.packed
    monkeypatch.undo()
    attention.register()


def test_a_sliding_window_is_kept_within_each_record() -> None:
    from finetune_trainer.learning import attention

    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 12, 8) for _ in range(3))
    layer = torch.nn.Module()
    found, _ = attention.attend(layer, query, key, value, None, segments=(5, 7), sliding_window=3)
    for start, stop in ((0, 5), (5, 12)):
        distance = torch.arange(stop - start)[:, None] - torch.arange(stop - start)[None]
        q, k, v = (tensor[:, :, start:stop] for tensor in (query, key, value))
        seen = (distance >= 0) & (distance < 3)
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        assert torch.allclose(found[:, start:stop], expected.transpose(1, 2), atol=1e-6)


def test_attention_that_can_not_be_packed_is_refused() -> None:
    from finetune_trainer.learning import attention

    zeros = torch.zeros(1, 1, 2, 4)
    with pytest.raises(attention.PackingUnsupported, match="softcap"):
        attention.attend(torch.nn.Module(), zeros, zeros, zeros, None, segments=(2,), softcap=30.0)


def test_in_bf16_an_adapter_is_fp32_over_bf16_weights(tmp_path: Path) -> None:
    learner, data = _load(tmp_path, NO_DROPOUT | {"training": {"precision": "BF16"}})
    assert {weight.dtype for weight in learner.trained.values()} == {torch.float32}
    assert {w.dtype for w in learner.network.parameters() if not w.requires_grad} == {torch.bfloat16}
    tensors = batch.build(data, range(6), packed=True, device=learner.device)
    found = learner.loss(tensors).detach() / len(tensors.targets)
    assert learner.head.takes_losses
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(_reference_loss(data, list(range(6))), abs=0.02)


def test_in_bf16_full_weights_stay_fp32(tmp_path: Path) -> None:
    learner, _ = _load(tmp_path, FULL | {"training": {"precision": "BF16"}})
    assert {weight.dtype for weight in learner.trained.values()} == {torch.float32}


def test_gradients_are_the_same_with_gradient_checkpointing(tmp_path: Path) -> None:
    gradients = []
    for wanted in ("Disabled", "Enabled"):
        learner, data = _load(tmp_path, NO_DROPOUT | {"training": {"gradientCheckpointing": wanted}})
        learner.loss(batch.build(data, range(4), packed=True, device=learner.device)).backward()  # type: ignore[no-untyped-call]
        gradients.append([weight.grad.clone() for weight in learner.trained.values() if weight.grad is not None])
    assert gradients[0]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_targets_that_the_model_has_not_are_refused_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        _load(tmp_path, {"method": {"lora": {"targetModules": ["query"]}}})
    assert "targetModules query" in str(caught.value)
    assert "down_proj, gate_proj" in str(caught.value)


def test_only_the_named_targets_get_an_adapter(tmp_path: Path) -> None:
    learner, _ = _load(tmp_path, {"method": {"lora": {"targetModules": ["q_proj", "v_proj"]}}})
    assert {name.split(".")[-4] for name in learner.trained} == {"q_proj", "v_proj"}


BROKEN = {
    "a weight is missing": (lambda tensors: tensors.pop("model.norm.weight"), "weights are missing"),
    "a weight has another size": (
        lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}),
        "weights have other sizes",
    ),
}


@pytest.mark.parametrize(("damage", "said"), BROKEN.values(), ids=BROKEN)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, damage: Any, said: str) -> None:
    broken = shutil.copytree(tiny_model.build(), tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    damage(tensors)
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotFound, match=said):
        _load(tmp_path, {"model": {"path": str(broken)}})


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_model.build(), tmp_path / "broken")
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(NotFound, match="can't be loaded"):
        _load(tmp_path, {"model": {"path": str(broken)}})


@pytest.mark.parametrize(
    ("wanted", "device", "expected"),
    [(Precision.FP32, CPU, Precision.FP32), (Precision.BF16, CPU, Precision.BF16)],
    ids=["fp32", "bf16"],
)
def test_a_precision_that_is_named_is_taken(wanted: Precision, device: Device, expected: Precision) -> None:
    assert model.choose_precision(wanted, device) == expected


def _load(folder: Path, changes: dict[str, Any]) -> tuple[model.Learner, Dataset]:
    config = parsed(folder, changes)
    prepared = preflight.check(config)
    found = modelfolder.find(ModelSource(uri=config.model.uri, path=config.model.path))
    return model.load(found, config, CPU, most_tokens=prepared.plan.most_tokens), prepared.data


def _logits(learner: model.Learner, data: Dataset, records: Any) -> torch.Tensor:
    tensors = batch.build(data, list(records), packed=learner.packed, device=learner.device)
    learner.head.positions = tensors.positions
    with torch.no_grad():
        logits = learner.network(**tensors.inputs, use_cache=False).logits
    return learner.head.picked(logits)


def _reference_loss(data: Dataset, records: list[int]) -> float:
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_model.build(), dtype=torch.float32)
    width = max(len(data.record(record)[0]) for record in records)
    ids = torch.zeros(len(records), width, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, record in enumerate(records):
        tokens, learned = (torch.from_numpy(array.copy()) for array in data.record(record))
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens.long(), 1
        labels[row, : len(tokens)] = torch.where(learned, tokens.long(), -100)
    with torch.no_grad():
        return float(network(input_ids=ids, attention_mask=mask, labels=labels).loss)
