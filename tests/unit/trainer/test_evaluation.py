"""Evaluation leaves no trace in the training, is what plain transformers computes, and ends a training in time."""

import hashlib
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from finetune_api.snapshot import ExitCode
from finetune_trainer import preflight
from finetune_trainer.distributed import Device
from finetune_trainer.learning import evaluation
from finetune_trainer.learning.evaluation import Watch
from finetune_trainer.learning.model import load
from finetune_trainer.learning.objective import NextToken
from tests import tiny_model, trainer_process
from tests.trainer_builders import configuration, merged, parsed, write_preferences, write_rows

NAN = float("nan")
EVERY_STEP = {"training": {"evaluationInterval": "1ba", "maxDuration": "8ba"}}
NEVER_BETTER = {"training": {"earlyStopping": {"patience": 3, "minDelta": 1000}}}

KINDS: dict[str, dict[str, Any]] = {
    "LoRA with dropout": {},
    "full, padded": {"method": {"type": "Full", "lora": None}, "training": {"packing": False}},
    "DoRA": {"method": {"lora": {"dora": True}}},
    "preferences": {"task": "Preference"},
    "full on preferences": {"task": "Preference", "method": {"type": "Full", "lora": None}},
}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_it_leaves_no_trace_in_the_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    ends = []
    if changes.get("task") == "Preference":
        write_preferences(tmp_path / "eval.jsonl", 6, seed=9)
    for name, more in (("with", _evaluating(tmp_path)), ("without", {})):
        folder = tmp_path / name
        attempt = trainer_process.run(configuration(folder, _both(changes, more, EVERY_STEP)))
        assert attempt.process.exitcode == ExitCode.DONE, attempt.log.read_text()
        ends.append((_weights(folder), [e["loss"] for e in attempt.events() if e["event"] == "TRAIN_UPDATED"]))
        assert len(attempt.messages("EVALUATED")) == (8 if more else 0)
    assert ends[0] == ends[1]


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_the_loss_is_the_mean_over_all_targets_of_plain_transformers(tmp_path: Path, *, packing: bool) -> None:
    config = parsed(tmp_path, {"training": {"packing": packing}})
    prepared = preflight.check(config)
    learner = load(prepared.model, config, Device("cpu", "cpu", 1), most_tokens=100)
    found = evaluation.mean_loss(NextToken(learner, prepared.data), at_once=5, stop_requested=lambda: False)
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_model.build(), dtype=torch.float32)
    total, targets = 0.0, 0
    for index in range(len(prepared.data.lengths)):
        tokens, learned = (torch.tensor(part.tolist()) for part in prepared.data.record(index))
        labels = torch.where(learned, tokens, -100)
        count = int((labels[1:] != -100).sum())
        with torch.no_grad():
            total += float(network(input_ids=tokens[None], labels=labels[None]).loss) * count
        targets += count
    assert found == pytest.approx(total / targets, abs=1e-5)


def test_it_is_told_and_kept(tmp_path: Path) -> None:
    changes = merged(_evaluating(tmp_path), {"training": {"evaluationInterval": "5ba"}})
    attempt = trainer_process.run(configuration(tmp_path, changes))
    output = tmp_path / "run" / "output"
    lines = [json.loads(line) for line in (output / "training_logs" / "evaluations.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"], line["records"]) for line in lines] == [(5, 1, 6), (10, 2, 6), (12, 2, 6)]
    progress = attempt.last_word().progress
    assert progress is not None
    assert progress.eval_loss == lines[-1]["evalLoss"]
    assert f"- Loss of the last evaluation: {progress.eval_loss:.4f}" in (output / "README.md").read_text()
    updates = [event for event in attempt.events() if event["event"] == "TRAIN_UPDATED"]
    assert "evalLoss" not in updates[4]
    assert [event["evalLoss"] for event in updates[5:]] == [lines[0]["evalLoss"]] * 5 + [lines[1]["evalLoss"]] * 2


def test_a_training_that_gets_no_better_ends_early_and_says_so(tmp_path: Path) -> None:
    attempt = trainer_process.run(configuration(tmp_path, _both(_evaluating(tmp_path), EVERY_STEP, NEVER_BETTER)))
    assert attempt.process.exitcode == ExitCode.DONE
    said = "Ended early after batch 4 of 8: eval_loss did not improve by more than 1000 in 3 evaluations. Best: "
    assert said in attempt.messages("TRAIN_FINISHED")[0]
    word = attempt.last_word()
    assert word.output is not None
    assert word.output.checkpoint == "ep1-ba4"
    card = (tmp_path / "run" / "output" / "README.md").read_text()
    assert said in card
    assert "Steps: 4, epochs: 1" in card


@pytest.mark.parametrize("call", [23, 36, 49, 62, 71])
def test_killed_at_any_instant_it_ends_early_at_the_same_step(tmp_path: Path, ended_early: Path, call: int) -> None:
    changes = _both(_evaluating(ended_early), EVERY_STEP, NEVER_BETTER, {"checkpoint": {"interval": "1ba"}})
    config = configuration(tmp_path / "killed", changes)
    first = trainer_process.run(config, die_at_call=call)
    assert first.process.exitcode == -signal.SIGKILL
    second = trainer_process.run(merged(config, {"run": {"attempt": 2}}))
    assert second.process.exitcode == ExitCode.DONE
    assert "Ended early after batch 4 of 8" in second.messages("TRAIN_FINISHED")[0]
    assert _weights(tmp_path / "killed") == _weights(ended_early)
    assert _history(tmp_path / "killed") == _history(ended_early)


def test_a_stop_in_the_middle_is_answered_at_once_and_the_evaluation_done_later(tmp_path: Path) -> None:
    changes = _both(_evaluating(tmp_path, records=1500), {"training": {"maxDuration": "2ba"}})
    changes = merged(changes, {"training": {"evaluationInterval": "1ba"}})
    config = configuration(tmp_path, changes)
    first = trainer_process.start(config)
    first.until("TRAIN_UPDATED")
    first.signal(signal.SIGTERM)
    asked = time.monotonic()
    assert first.wait() == ExitCode.STOPPED
    stopped_in = time.monotonic() - asked
    assert first.messages("EVALUATED") == []
    word = first.last_word()
    assert [saved.name for saved in word.checkpoints] == ["ep1-ba1"]
    second = trainer_process.run(merged(config, {"run": {"attempt": 2}}))
    events = [line["event"] for line in second.events()]
    assert events.index("EVALUATED") < events.index("TRAIN_UPDATED")
    seconds = [line["seconds"] for line in second.events() if line["event"] == "EVALUATED"]
    assert len(seconds) == 2
    assert stopped_in < max(seconds)


def test_a_loss_that_is_no_number_is_told_and_not_the_end(tmp_path: Path) -> None:
    write_rows(tmp_path / "eval.jsonl", [{"prompt": "What is it?", "response": "\u20ac"}])
    source = {"uri": "pvc://eval.jsonl", "path": str(tmp_path / "eval.jsonl")}
    model = {"path": str(tiny_model.build_without("\u20ac", tmp_path / "model"))}
    attempt = trainer_process.run(configuration(tmp_path, {"dataset": {"eval": source}, "model": model}))
    assert attempt.process.exitcode == ExitCode.DONE
    word = attempt.last_word()
    assert [trouble.reason for trouble in word.troubles] == ["EvaluationNotFinite"]
    assert "the loss on dataset.eval is nan after step 12; the training goes on" in word.troubles[0].message
    assert word.progress is not None
    assert word.progress.eval_loss is None
    assert [line["evalLoss"] for line in _lines(tmp_path)] == [None, None]


def test_early_stopping_without_data_to_evaluate_on_is_refused(tmp_path: Path) -> None:
    attempt = trainer_process.run(configuration(tmp_path, NEVER_BETTER))
    assert attempt.process.exitcode == ExitCode.BAD_CONFIG
    error = attempt.last_word().error
    assert error is not None
    assert error.message.startswith("training.earlyStopping needs dataset.eval")


@pytest.fixture(scope="module")
def ended_early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    changes = _both(_evaluating(folder), EVERY_STEP, NEVER_BETTER, {"checkpoint": {"interval": "1ba"}})
    assert trainer_process.run(configuration(folder, changes)).process.exitcode == ExitCode.DONE
    return folder


WATCHES: dict[str, tuple[list[float], float, tuple[float | None, int, int]]] = {
    "each one better": ([3.0, 2.0, 1.0], 0.0, (1.0, 3, 0)),
    "none better than the first": ([1.0, 2.0, 1.0], 0.0, (1.0, 1, 2)),
    "better by too little": ([3.0, 2.95, 2.9], 0.2, (3.0, 1, 2)),
    "by too little, until the sum is enough": ([3.0, 2.9, 2.7], 0.2, (2.7, 3, 0)),
    "no number is never better": ([NAN, 3.0, NAN], 0.0, (3.0, 2, 1)),
    "never a number": ([NAN, NAN, float("inf")], 0.0, (None, 0, 3)),
}


@pytest.mark.parametrize(("losses", "delta", "expected"), WATCHES.values(), ids=WATCHES)
def test_what_counts_as_better(losses: list[float], delta: float, expected: tuple[float | None, int, int]) -> None:
    watch = Watch()
    for step, loss in enumerate(losses, start=1):
        watch = watch.after(loss, step=step, min_delta=delta)
    assert (watch.best, watch.best_step, watch.without_improvement) == expected
    assert Watch.model_validate(watch.to_wire()) == watch


def _evaluating(folder: Path, *, records: int = 6) -> dict[str, Any]:
    path = folder / "eval.jsonl"
    if not path.exists():
        tiny_model.write_questions(path, records, seed=9, longest=200)
    return {"dataset": {"eval": {"uri": "pvc://datasets/eval.jsonl", "path": str(path)}}}


def _both(*changes: dict[str, Any]) -> dict[str, Any]:
    """Merged, with what is to be removed still in it."""
    result: dict[str, Any] = {}
    for change in changes:
        for key, value in change.items():
            result[key] = result.get(key, {}) | value if isinstance(value, dict) else value
    return result


def _weights(folder: Path) -> str:
    output = folder / "run" / "output"
    return " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("*.safetensors")))


def _lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "run" / "output" / "training_logs" / "evaluations.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def _history(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["evalLoss"]) for line in _lines(folder)]
