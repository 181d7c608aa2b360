"""DPO: loss and gradient are those of the paper's formula, on plain transformers; the reference is where it started."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel

from finetune_trainer import preflight
from finetune_trainer.data.dataset import Dataset
from finetune_trainer.distributed import Device
from finetune_trainer.learning import model, preference
from finetune_trainer.learning.preference import Pairs, Remembered, WithoutAdapter
from finetune_trainer.saves import weights
from tests import tiny_model, trainer_process
from tests.trainer_builders import configuration, merged, parsed, write_preferences

CPU = Device("cpu", "cpu", 1)
PREFERENCE: dict[str, Any] = {
    "task": "Preference",
    "method": {"type": "LoRA", "lora": {"rank": 4, "dropout": 0.0}},
    "training": {"maxSequenceLength": 200, "preference": {"beta": 0.3}},
}
FULL = PREFERENCE | {"method": {"type": "Full", "lora": None}}
PADDED = {"training": {"packing": False}}
FORMS = {"LoRA, packed": PREFERENCE, "LoRA, padded": merged(PREFERENCE, PADDED), "full, packed": FULL}
RECORDS = tuple(range(6))


@pytest.mark.parametrize("changes", FORMS.values(), ids=FORMS)
def test_loss_and_gradient_are_those_of_the_formula(tmp_path: Path, changes: dict[str, Any]) -> None:
    learner, data = _load(tmp_path, changes)
    objective = _objective(learner, data)
    _move(learner)
    loss = objective.loss(RECORDS) / objective.units(RECORDS)
    loss.backward()  # type: ignore[no-untyped-call]

    policy, reference = _plain(tmp_path, learner), _base()
    expected = _formula(policy, reference, data, beta=0.3)
    expected.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    assert abs(float(loss.detach()) - 0.6931) > 1e-3  # the policy is no longer the reference
    theirs = {name: weight.grad for name, weight in policy.named_parameters() if weight.requires_grad}
    assert theirs.keys() == learner.trained.keys()
    for name, weight in learner.trained.items():
        assert weight.grad is not None
        assert torch.allclose(weight.grad, theirs[name], atol=1e-5), name


def test_before_the_first_step_the_loss_is_ln_2(tmp_path: Path) -> None:
    learner, data = _load(tmp_path, PREFERENCE)
    loss = Pairs(learner, data, 0.1, WithoutAdapter(learner)).loss(RECORDS)
    assert float(loss.detach()) == pytest.approx(6 * 0.693147, abs=1e-4)


def test_the_reference_has_no_dropout_and_draws_no_random_number(tmp_path: Path) -> None:
    learner, data = _load(tmp_path, merged(PREFERENCE, {"method": {"lora": {"dropout": 0.9}}}))
    before = torch.get_rng_state()
    table = preference.compute(learner, data, RECORDS, at_once=2)
    again = preference.compute(learner, data, RECORDS, at_once=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(table[list(RECORDS)], again[list(RECORDS)])
    assert learner.network.training


def test_without_the_adapter_it_is_what_was_computed_before(tmp_path: Path) -> None:
    learner, data = _load(tmp_path, PREFERENCE)
    table = preference.compute(learner, data, RECORDS, at_once=6)
    _move(learner)
    other = Pairs(learner, data, 0.3, WithoutAdapter(learner)).loss(RECORDS)
    assert float(Pairs(learner, data, 0.3, Remembered(table)).loss(RECORDS)) == pytest.approx(float(other), abs=1e-4)


def test_records_that_were_not_planned_are_no_numbers(tmp_path: Path) -> None:
    learner, data = _load(tmp_path, PREFERENCE)
    table = preference.compute(learner, data, {1, 3}, at_once=1)
    assert table.isfinite().all(1).nonzero().flatten().tolist() == [1, 3]


STARTS = {
    "a new adapter": ({}, True),
    "full": ({"method": {"type": "Full", "lora": None}}, False),
    "an adapter of an earlier run": ({"model": {"adapterPath": "/somewhere"}}, False),
    "an adapter whose biases are trained": ({"method": {"type": "LoRA", "lora": {"bias": "All"}}}, False),
}


@pytest.mark.parametrize(("changes", "under"), STARTS.values(), ids=STARTS)
def test_where_the_reference_is(tmp_path: Path, changes: dict[str, Any], *, under: bool) -> None:
    assert preference.start_is_under_the_adapter(parsed(tmp_path, PREFERENCE | changes)) == under


def test_an_answer_that_was_preferred_becomes_likelier(tmp_path: Path) -> None:
    write_preferences(tmp_path / "train.jsonl", 16)
    changes = merged(PREFERENCE, {"training": {"maxDuration": "6ep", "learningRate": 0.01}})
    attempt = trainer_process.run(configuration(tmp_path, changes))
    losses = [line["loss"] for line in attempt.events() if line["event"] == "TRAIN_UPDATED"]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert sum(losses[-4:]) / 4 < 0.6


def test_an_adapter_of_an_earlier_run_is_its_own_reference(tmp_path: Path) -> None:
    """Its first loss is ln 2, as nothing has been learned yet: the model under the adapter would give another."""
    trainer_process.run(configuration(tmp_path / "first", {"training": {"learningRate": 0.05, "maxDuration": "4ep"}}))
    (tmp_path / "second").mkdir()
    write_preferences(tmp_path / "second" / "train.jsonl", 16)
    adapter = str(tmp_path / "first" / "run" / "output")
    changes = {"model": {"adapterPath": adapter, "adapterUri": "run://first"}, "method": {"lora": {"alpha": 8}}}
    attempt = trainer_process.run(configuration(tmp_path / "second", merged(PREFERENCE, changes)))
    assert attempt.messages("REFERENCE_COMPUTED") == ["what the model says of 16 pairs before it learns is computed"]
    losses = [line["loss"] for line in attempt.events() if line["event"] == "TRAIN_UPDATED"]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)


def _load(folder: Path, changes: dict[str, Any]) -> tuple[model.Learner, Dataset]:
    write_preferences(folder / "train.jsonl", 8)
    prepared = preflight.check(parsed(folder, changes))
    learner = model.load(prepared.model, parsed(folder, changes), CPU, most_tokens=prepared.plan.most_tokens)
    assert prepared.data.paired
    return learner, prepared.data


def _objective(learner: model.Learner, data: Dataset) -> Pairs:
    if not learner.full:
        return Pairs(learner, data, 0.3, WithoutAdapter(learner))
    return Pairs(learner, data, 0.3, Remembered(preference.compute(learner, data, RECORDS, at_once=4)))


def _move(learner: model.Learner) -> None:
    """As if something had been learned."""
    torch.manual_seed(3)
    for weight in learner.trained.values():
        weight.data += torch.randn_like(weight) * 0.02


def _base() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_model.build(), dtype=torch.float32)


def _plain(folder: Path, learner: model.Learner) -> Any:
    """The same policy, as plain transformers and peft load it."""
    saved = folder / "policy"
    saved.mkdir()
    source = preflight.check(parsed(folder, PREFERENCE)).model
    weights.write(learner, source, saved)
    if learner.full:
        return transformers.AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    return PeftModel.from_pretrained(_base(), str(saved), is_trainable=True)


def _formula(policy: Any, reference: Any, data: Dataset, *, beta: float) -> torch.Tensor:
    """Equation 7 of arXiv 2305.18290, one sequence at a time."""
    losses = []
    for record in RECORDS:
        pair = data.pair(record)
        with torch.no_grad():
            before = [_log_probability(reference, s.tokens, s.learned) for s in (pair.chosen, pair.rejected)]
        now = [_log_probability(policy, s.tokens, s.learned) for s in (pair.chosen, pair.rejected)]
        losses.append(-torch.log(torch.sigmoid(beta * ((now[0] - before[0]) - (now[1] - before[1])))))
    return torch.stack(losses).mean()


def _log_probability(network: Any, tokens: Any, learned: Any) -> torch.Tensor:
    ids = torch.tensor(tokens.tolist())
    probabilities = torch.log_softmax(network(input_ids=ids[None]).logits[0], -1)
    each = probabilities[:-1].gather(1, ids[1:, None]).flatten()
    return each[torch.tensor(learned[1:].tolist())].sum()
