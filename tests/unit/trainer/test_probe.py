"""How many records go into a forward pass: the gradient doesn't depend on it, and memory decides when it may."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.snapshot import EventType, ExitCode
from finetune_trainer import loop, memory, preflight
from finetune_trainer.data import batch
from finetune_trainer.data.plan import Plan
from finetune_trainer.distributed import Device, Place
from finetune_trainer.errors import OutOfMemory
from finetune_trainer.learning import model, probe
from finetune_trainer.learning.objective import NextToken, Objective
from finetune_trainer.learning.preference import Pairs, WithoutAdapter
from finetune_trainer.ranks import Ranks
from tests import trainer_process
from tests.trainer_builders import configuration, merged, parsed, write_preferences

CPU = Device("cpu", "cpu", 1)
NO_DROPOUT: dict[str, Any] = {"method": {"type": "LoRA", "lora": {"rank": 4, "dropout": 0.0}}}
EIGHT = {"training": {"batchSize": {"perDevice": 8, "gradientAccumulationSteps": 1}}}
AUTO = {"training": {"batchSize": {"perDevice": "Auto", "gradientAccumulationSteps": 1}}}

OBJECTIVES: dict[str, dict[str, Any]] = {
    "packed": {},
    "padded": {"training": {"packing": False}},
    "preferences": {"task": "Preference"},
}


@pytest.mark.parametrize("changes", OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_gradient_is_the_same_however_a_step_is_split(tmp_path: Path, changes: dict[str, Any]) -> None:
    objective, plan = _load(tmp_path, changes)
    learned = objective.learner.trained
    torch.manual_seed(0)
    for weight in learned.values():
        weight.data += torch.randn_like(weight) * 0.05
    found = []
    for per_device in (8, 4, 2, 1):
        drawn = probe.split(plan, per_device).batch(0)
        assert [len(micro) for micro in drawn] == [per_device] * (8 // per_device)
        loss_and_norm = loop.gradient(objective, drawn, 0.0)
        assert loss_and_norm is not None
        found.append((*loss_and_norm, [weight.grad.clone() for weight in learned.values() if weight.grad is not None]))
        for weight in learned.values():
            weight.grad = None
    for loss, norm, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        assert norm == pytest.approx(found[0][1], rel=1e-5)
        assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(gradient, found[0][2], strict=True))


@pytest.mark.parametrize(
    ("per_device", "accumulation", "wanted", "expected"),
    [(8, 1, 4, (4, 2)), (8, 3, 4, (4, 6)), (6, 1, 4, (3, 2)), (3, 1, 1, (1, 3)), (2, 4, 8, (8, 1)), (4, 1, 99, (4, 1))],
)
def test_a_split_keeps_the_records_of_a_step_and_their_order(
    tmp_path: Path, per_device: int, accumulation: int, wanted: int, expected: tuple[int, int]
) -> None:
    size = {"perDevice": per_device, "gradientAccumulationSteps": accumulation}
    plan = Plan.of(parsed(tmp_path, {"training": {"batchSize": size}}).training, range(5, 65))
    smaller = probe.split(plan, wanted)
    assert (smaller.per_device, smaller.accumulation) == expected
    assert smaller.steps == plan.steps
    for step in range(plan.steps):
        one, other = ([record for micro in p.batch(step) for record in micro] for p in (plan, smaller))
        assert one == other


def test_with_enough_memory_all_stays_as_it_is(tmp_path: Path) -> None:
    objective, plan = _load(tmp_path, AUTO)
    fitted = probe.fit(objective, plan, free=lambda: 2**33)
    assert (fitted.per_device, fitted.accumulation) == (plan.per_device, plan.accumulation) == (8, 1)


def test_with_little_memory_a_forward_pass_holds_less(tmp_path: Path) -> None:
    objective, plan = _load(tmp_path, AUTO)
    free = _free_for(objective, plan)
    sizes = [probe.fit(objective, plan, free=partial(int, size)).per_device for size in free]
    assert sizes == [8, 4, 2, 1]


def test_where_not_even_one_record_fits_it_is_said_what_to_do(tmp_path: Path) -> None:
    objective, plan = _load(tmp_path, AUTO)
    with pytest.raises(OutOfMemory, match=r"not even one record .* lower training\.maxSequenceLength"):
        probe.fit(objective, plan, free=lambda: 1000)


def test_what_is_reckoned_for_a_pass_is_what_it_keeps(tmp_path: Path) -> None:
    """Counted over the large pass itself instead of reckoned from small ones."""
    objective, plan = _load(tmp_path, {"training": {"maxSequenceLength": 200}})
    largest = probe.largest_micro_batch(plan, objective)
    reckoned = probe._Reckoning(objective, plan, lambda: 0).activations(largest)
    assert reckoned == pytest.approx(probe.kept_bytes(objective, largest), rel=0.1)


@pytest.mark.parametrize(("full", "tried"), [(False, True), (True, False)], ids=["an adapter", "spread weights"])
def test_on_cuda_it_is_tried_unless_others_would_be_left_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool, tried: bool
) -> None:
    """No device here: what a trial and the device say is made up."""
    objective, plan = _load(tmp_path, AUTO)
    learner = replace(objective.learner, device=torch.device("cuda"), ranks=OneOfTwo(), full=full)
    tries: list[int] = []

    def needed(_: object, records: Sequence[int]) -> int:
        tries.append(len(records))
        return 0

    monkeypatch.setattr(probe._Trial, "needed", needed)
    monkeypatch.setattr(probe, "kept_bytes", lambda _, records: 100 * len(records))
    monkeypatch.setattr(probe, "_free_on_cuda", lambda _: 2**33)
    fitted = probe.fit(NextToken(learner, objective.data), plan, free=lambda: 0)
    assert bool(tries) == tried
    assert fitted.per_device == 8


class OneOfTwo(Ranks):
    """The other one always agrees."""

    place = Place(0, 2, 0, 2)


def test_the_largest_pass_is_the_one_with_most_tokens_of_those_planned(tmp_path: Path) -> None:
    objective, plan = _load(tmp_path, {})
    plan = probe.split(plan, 2)
    every = [micro for step in range(plan.steps) for micro in plan.batch(step)]
    largest = probe.largest_micro_batch(plan, objective)
    assert largest in every
    assert batch.cost(objective.data, largest, packed=True) == max(
        batch.cost(objective.data, micro, packed=True) for micro in every
    )


def test_the_container_decides_what_is_free(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\nactive_file 100000\ninactive_file 300000\n")
    assert memory.free_bytes(tmp_path) == 500_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(tmp_path) > 1_000_000
    assert memory.free_bytes(tmp_path / "missing") > 1_000_000


def test_what_auto_has_found_is_said(tmp_path: Path) -> None:
    attempt = trainer_process.run(configuration(tmp_path, AUTO))
    assert attempt.messages("MEMORY_PROBED")[0].startswith("8 records in a forward pass, ")
    assert attempt.messages("MODEL_INITIALIZED")[0].endswith(", 1 x 8 records a step.")


def test_out_of_memory_in_the_middle_goes_back_to_the_checkpoint_with_half_of_it(tmp_path: Path) -> None:
    """No device's memory is filled here: given many targets at once, the loss raises what CUDA would."""
    changes = merged(NO_DROPOUT, EIGHT) | {"checkpoint": {"interval": "1ba"}}
    changes = merged(changes, {"training": {"maxDuration": "6ba"}})
    whole = trainer_process.run(configuration(tmp_path / "whole", changes))
    counts = _targets(tmp_path / "whole", changes)
    full_at = next(step for step in range(1, 6) if counts[step] == max(counts[: step + 1]) and counts[step] > counts[0])
    fits = max(counts[:full_at])
    config = configuration(tmp_path / "full", changes)
    attempt = trainer_process.run(config, targets_that_fit=fits)
    assert attempt.process.exitcode == ExitCode.DONE, attempt.log.read_text()[-3000:]

    told = f"Memory ran out at step {full_at + 1} with 8 records in a forward pass"
    word = attempt.last_word()
    resumed = next(milestone.message for milestone in word.milestones if milestone.type == EventType.RESUMED)
    assert resumed.startswith(told)
    assert f"Resumed from ep1-ba{full_at} (step {full_at} of 6)" in resumed
    assert attempt.messages("MEMORY_FULL")[0].startswith(told)
    assert word.troubles == ()  # a checkpoint holds the change
    assert attempt.messages("MODEL_INITIALIZED")[1].endswith(", 2 x 4 records a step.")
    expected, losses = ([e["loss"] for e in a.events() if e["event"] == "TRAIN_UPDATED"] for a in (whole, attempt))
    assert losses[:full_at] == expected[:full_at]
    assert losses == pytest.approx(expected, abs=1e-5)

    shutil.rmtree(tmp_path / "full" / "run" / "output")
    again = trainer_process.run(merged(config, {"run": {"attempt": 2}}))
    assert again.messages("MODEL_INITIALIZED")[0].endswith(", 2 x 4 records a step.")


def test_where_one_record_is_too_much_the_attempt_ends(tmp_path: Path) -> None:
    attempt = trainer_process.run(configuration(tmp_path, EIGHT), targets_that_fit=1)
    assert attempt.process.exitcode == ExitCode.KILLED
    error = attempt.last_word().error
    assert error is not None
    assert error.reason == "OutOfMemory"
    assert len(attempt.messages("MEMORY_FULL")) == 3  # 8, 4, 2


def _targets(folder: Path, changes: dict[str, Any]) -> list[int]:
    prepared = preflight.check(parsed(folder, changes))
    return [batch.targets_in(prepared.data, prepared.plan.batch(step)[0]) for step in range(6)]


def _free_for(objective: Objective, plan: Plan) -> list[int]:
    """Memory that is just enough for forward passes of 8, 4, 2 records, and 1."""
    reckoning = probe._Reckoning(objective, plan, lambda: 0)
    largest = [probe.largest_micro_batch(probe.split(plan, size), objective) for size in (8, 4, 2, 1)]
    return [int((reckoning.needed(records) or 0) / probe.SPARE) + 1 for records in largest]


def _load(folder: Path, changes: dict[str, Any]) -> tuple[Objective, Plan]:
    if changes.get("task") == "Preference":
        write_preferences(folder / "train.jsonl", 24)
    config = parsed(folder, merged(merged(NO_DROPOUT, EIGHT), changes))
    prepared = preflight.check(config)
    learner = model.load(prepared.model, config, CPU, most_tokens=prepared.plan.most_tokens)
    if prepared.data.paired:
        return Pairs(learner, prepared.data, 0.1, WithoutAdapter(learner)), prepared.plan
    return NextToken(learner, prepared.data), prepared.plan
