"""Whole attempts: what they say while they run, how they end, and that what they leave can be used."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import load_file, save_file

from finetune_api.snapshot import EventType, ExitCode, Snapshot
from finetune_api.trainer_config import TrainerConfig
from tests import ports, tiny_model, trainer_process
from tests.cluster.stage import until
from tests.trainer_builders import configuration, merged, write_rows

FULL: dict[str, Any] = {"method": {"type": "Full", "lora": None}}
LONG = {"training": {"maxDuration": "5000ba"}, "checkpoint": {"interval": "100000ba"}}


def test_the_story_of_a_run(tmp_path: Path) -> None:
    attempt = trainer_process.run(configuration(tmp_path))
    assert attempt.process.exitcode == ExitCode.DONE
    word = attempt.last_word()
    assert [milestone.type for milestone in word.milestones] == [
        EventType.DATA_VALIDATED,
        EventType.MODEL_INITIALIZED,
        EventType.TRAIN_FINISHED,
    ]
    assert "LoRA trains 8,192 of 115,008 parameters in FP32 on cpu, records packed" in word.milestones[1].message
    assert word.progress is not None
    assert (word.progress.batch, word.progress.total_batches, word.progress.epoch) == (12, 12, 2)
    assert word.progress.tokens == word.progress.total_tokens > 0
    assert word.progress.loss is not None
    assert word.output is not None
    assert word.output.checkpoint == "ep2-ba12"
    assert word.error is None


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    config = configuration(tmp_path, FULL | {"training": {"maxDuration": "8ep", "learningRate": 0.01}})
    trainer_process.run(config)
    lines = (tmp_path / "run" / "output" / "training_logs" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert sum(losses[-6:]) / 6 < sum(losses[:6]) / 6 - 0.5


def test_progress_and_metrics_are_served_while_it_trains(tmp_path: Path) -> None:
    port = ports.free()
    attempt = trainer_process.start(configuration(tmp_path, LONG | {"checkpoint": {"interval": "2ba"}}), port=port)
    attempt.until("CHECKPOINT_SAVED")
    attempt.until("TRAIN_UPDATED", times=5)
    snapshot = Snapshot.decode(_get(port, "/progress"))
    later = Snapshot.decode(_get(port, "/progress"))
    sampled = "finetune_trainer_cpu_utilization_cores "  # two seconds after the start at the earliest
    served = until(lambda: _get(port, "/metrics").decode(), lambda text: sampled in text, what="/metrics")
    metrics = {family.name: family for family in text_string_to_metric_families(served)}
    assert _get(port, "/healthz") == b"ok\n"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        _get(port, "/config")
    attempt.signal(signal.SIGTERM)
    assert attempt.wait() == ExitCode.STOPPED

    assert (snapshot.run_uid, snapshot.attempt) == ("7f1c", 1)
    assert later.sequence > snapshot.sequence
    assert snapshot.progress is not None
    assert snapshot.progress.eta_seconds is not None
    assert snapshot.progress.total_batches == 5000
    names = {
        "loss", "learning_rate", "grad_norm", "step", "epoch", "progress_ratio", "tokens", "samples",
        "tokens_per_second", "step_duration_seconds", "last_step_timestamp_seconds", "checkpoint_duration_seconds",
        "last_checkpoint_timestamp_seconds", "checkpoint_size_bytes", "device_utilization_ratio",
        "device_memory_used_bytes", "device_memory_total_bytes", "cpu_utilization_cores", "evaluation_duration_seconds",
    }  # fmt: skip
    assert {f"finetune_trainer_{name}" for name in names} <= metrics.keys()
    assert "finetune_trainer_eval_loss" not in metrics, "nothing was evaluated"
    about = metrics["finetune_trainer_info"].samples[0].labels
    assert about == {
        "run": "support-bot", "namespace": "ml", "attempt": "1", "model": "pvc://models/tiny", "method": "LoRA",
        "device": "cpu",
    }  # fmt: skip
    labels = {label for family in metrics.values() for sample in family.samples for label in sample.labels}
    assert labels.isdisjoint({"step", "loss", "epoch"})
    assert metrics["finetune_trainer_step"].samples[0].value >= 5


def test_an_adapter_loads_with_plain_peft_and_generates(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    trainer_process.run(config)
    output = tmp_path / "run" / "output"
    base = transformers.AutoModelForCausalLM.from_pretrained(config["model"]["path"], dtype=torch.float32)
    _generates(peft.PeftModel.from_pretrained(base, str(output)), output)
    params = TrainerConfig.decode((output / "training_logs" / "user_params.json").read_text())
    assert params == TrainerConfig.model_validate(config)
    card = (output / "README.md").read_text()
    assert "LoRA fine-tuning of `pvc://models/tiny` on `pvc://datasets/train.jsonl`" in card
    assert len((output / "training_logs" / "metrics.jsonl").read_text().splitlines()) == 12


def test_full_weights_load_with_plain_transformers_and_generate(tmp_path: Path) -> None:
    trainer_process.run(configuration(tmp_path, FULL))
    for folder in ("output", "checkpoints/ep2-ba12"):
        path = tmp_path / "run" / folder
        _generates(transformers.AutoModelForCausalLM.from_pretrained(path), path)


def test_full_weights_and_adapters_of_an_earlier_run_are_started_from(tmp_path: Path) -> None:
    """Its checkpoints as well as its output; nothing is learned in the second run, so its product is the first's."""
    still = {"training": {"learningRate": 0.0, "maxDuration": "1ba"}}
    for name, method in (("full", FULL), ("lora", {})):
        first = tmp_path / name / "run"
        trainer_process.run(configuration(tmp_path / name, method))
        for number, folder in enumerate((first / "output", first / "checkpoints" / "ep2-ba12")):
            at = {"path": str(folder)} if method else {"adapterPath": str(folder), "adapterUri": "run://first"}
            again = configuration(tmp_path / f"{name}-{number}", method | still | {"model": at})
            attempt = trainer_process.run(again)
            assert attempt.process.exitcode == ExitCode.DONE, attempt.log.read_text()[-3000:]
            before, after = (load_file(next(f.glob("*model.safetensors"))) for f in (folder, _output(again)))
            assert before.keys() == after.keys()
            assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_full_weights_are_stored_as_the_source_stores_them(tmp_path: Path) -> None:
    source = tmp_path / "source"
    network = transformers.AutoModelForCausalLM.from_pretrained(tiny_model.build(), dtype=torch.bfloat16)
    shutil.copytree(tiny_model.build(), source)
    network.save_pretrained(source)
    trainer_process.run(configuration(tmp_path, FULL | {"model": {"path": str(source)}}))
    stored = load_file(tmp_path / "run" / "output" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    kept = load_file(tmp_path / "run" / "checkpoints" / "ep2-ba12" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


def test_conversations_are_learned(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": r}]} for p, r in PAIRS]
    write_rows(tmp_path / "train.jsonl", rows)
    attempt = trainer_process.run(configuration(tmp_path, {"task": "ChatCompletion"}))
    assert attempt.process.exitcode == ExitCode.DONE
    assert attempt.messages("DATA_VALIDATED")[0].startswith("8 records")


def test_minutes_as_interval_and_tokens_as_length(tmp_path: Path) -> None:
    changes = {"training": {"maxDuration": "500tok"}, "checkpoint": {"interval": "5min"}}
    word = trainer_process.run(configuration(tmp_path, changes)).last_word()
    assert word.progress is not None
    assert word.progress.in_tokens
    assert word.progress.tokens == word.progress.total_tokens >= 500
    assert len(word.checkpoints) == 1


ENDS: dict[str, tuple[Any, ExitCode, str, str]] = {
    "a task of its own image": ({"task": "Custom"}, ExitCode.BAD_CONFIG, "ConfigInvalid", "task Custom"),
    "a target that the model has not": (
        {"method": {"lora": {"targetModules": ["q_proj", "query"]}}},
        ExitCode.BAD_CONFIG,
        "ConfigInvalid",
        "method.lora.targetModules query: no module of this model has that name; this model's linear layers are down",
    ),
    "full weights from an adapter": (
        FULL | {"model": {"adapterPath": "/mnt/adapter", "adapterUri": "run://first"}},
        ExitCode.BAD_CONFIG,
        "ConfigInvalid",
        "method.type Full can't go on with the adapter run://first",
    ),
    "an adapter that isn't there": (
        {"model": {"adapterPath": "/nowhere/adapter", "adapterUri": "run://first"}},
        ExitCode.NOT_FOUND,
        "NotFound",
        "adapter run://first is not one: /nowhere/adapter/adapter_config.json can't be read",
    ),
    "CUDA where there is none": ({"device": "CUDA"}, ExitCode.BAD_CONFIG, "ConfigInvalid", "sees no CUDA device"),
    "batch sizes that contradict": (
        {"training": {"batchSize": {"perDevice": 3, "global": 8, "gradientAccumulationSteps": None}}},
        ExitCode.BAD_CONFIG,
        "ConfigInvalid",
        "global 8 is not a multiple of perDevice 3",
    ),
    "a model folder that isn't there": (
        {"model": {"path": "/nowhere/model"}},
        ExitCode.NOT_FOUND,
        "NotFound",
        "the folder /nowhere/model is not there; / holds",
    ),
    "a data file that isn't there": (
        {"dataset": {"train": {"path": "/nowhere/train.jsonl"}}},
        ExitCode.NOT_FOUND,
        "NotFound",
        "pvc://datasets/train.jsonl not found: there is no /nowhere/train.jsonl",
    ),
}


@pytest.mark.parametrize(("changes", "code", "reason", "said"), ENDS.values(), ids=ENDS)
def test_an_end_before_its_time(tmp_path: Path, changes: Any, code: ExitCode, reason: str, said: str) -> None:
    config = configuration(tmp_path, changes)
    _check_end(trainer_process.run(config), code, reason, said)


def test_a_folder_that_can_not_be_written_is_told_first(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    (tmp_path / "run").write_text("a file where the folder should be")
    _check_end(trainer_process.run(config), ExitCode.STORAGE, "StorageFailed", "can't be written: File exists")


def test_bad_data_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [{"prompt": "a", "respnse": "b"}])
    attempt = trainer_process.run(configuration(tmp_path))
    said = "train.jsonl line 1: unknown key 'respnse'; expected 'prompt' and 'response'"
    _check_end(attempt, ExitCode.BAD_DATA, "DataInvalid", said)
    assert attempt.messages("MODEL_INITIALIZED") == []
    assert attempt.messages("BAD_RECORD") == [said]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "FINETUNE_CONFIG is not set"),
        ("{", "can't be used"),
        ('{"run": {"uid": "7f1c", "attempt": 3}}', "can't be used"),
    ],
    ids=["nothing", "no JSON", "half of it"],
)
def test_a_bad_configuration_is_told_and_costs_no_time(tmp_path: Path, given: str, said: str) -> None:
    attempt = trainer_process.start(configuration(tmp_path), environment={"FINETUNE_CONFIG": given})
    attempt.wait()
    _check_end(attempt, ExitCode.BAD_CONFIG, "ConfigInvalid", said)


def test_a_bad_field_is_named(tmp_path: Path) -> None:
    config = configuration(tmp_path, {"training": {"maxDuration": "3 epochs"}})
    attempt = trainer_process.run(config)
    said = "training.maxDuration: must be a whole number followed by"
    _check_end(attempt, ExitCode.BAD_CONFIG, "ConfigInvalid", said)
    assert attempt.last_word().run_uid == "7f1c"


def test_a_loss_that_is_no_number_ends_it_before_the_step(tmp_path: Path) -> None:
    broken = shutil.copytree(tiny_model.build(), tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    attempt = trainer_process.run(configuration(tmp_path, {"model": {"path": str(broken)}}))
    said = "loss is nan at step 1, before the optimizer's step, in records train.jsonl line "
    _check_end(attempt, ExitCode.DIVERGED, "Diverged", said)
    assert attempt.last_word().checkpoints == ()


NOT_A_NUMBER: dict[str, dict[str, Any]] = {
    "accumulated": {"training": {"batchSize": {"perDevice": 1, "gradientAccumulationSteps": 4}}},
    "preferences": {"task": "Preference"},
    "full": FULL,
}


@pytest.mark.parametrize("changes", NOT_A_NUMBER.values(), ids=NOT_A_NUMBER)
def test_one_record_whose_loss_is_no_number_is_among_those_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    rows = [{"prompt": f"What is {n}?", "response": "yes", "chosen": "yes", "rejected": "no"} for n in range(16)]
    rows[7] |= {"response": "it is \u20ac", "rejected": "it is \u20ac"}
    if changes.get("task") == "Preference":
        rows = [{key: value for key, value in row.items() if key != "response"} for row in rows]
    else:
        rows = [{key: row[key] for key in ("prompt", "response")} for row in rows]
    write_rows(tmp_path / "train.jsonl", rows)
    source = {"model": {"path": str(tiny_model.build_without("\u20ac", tmp_path / "model"))}}
    changes = changes | source | {"checkpoint": {"interval": "1ba"}}
    attempt = trainer_process.run(configuration(tmp_path, changes))
    _check_end(attempt, ExitCode.DIVERGED, "Diverged", "train.jsonl line 8")
    word = attempt.last_word()
    done = 0 if word.progress is None else word.progress.batch
    assert word.error is not None
    assert f"loss is nan at step {done + 1}, before the optimizer's step" in word.error.message
    assert done < 4  # the record comes once in an epoch of four steps
    for saved in word.checkpoints:
        for path in (tmp_path / "run" / saved.path).glob("adapter_model.safetensors"):
            assert all(tensor.isfinite().all() for tensor in load_file(path).values())


def test_a_step_that_diverges_leaves_the_earlier_checkpoints(tmp_path: Path) -> None:
    """A decay of 1 at a rate of 10 makes weights nine times as large with each step, until they overflow."""
    training = {"learningRate": 10, "weightDecay": 1, "maxDuration": "200ba", "scheduler": "Constant"}
    changes = FULL | {"training": training, "checkpoint": {"interval": "1ba"}}
    attempt = trainer_process.run(configuration(tmp_path, changes))
    _check_end(attempt, ExitCode.DIVERGED, "Diverged", "lower training.learningRate")
    word = attempt.last_word()
    assert word.progress is not None
    assert word.checkpoints[-1].step == word.progress.batch
    weights = load_file(tmp_path / "run" / word.checkpoints[-1].path / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_full_disk_ends_it_only_at_the_last_save(tmp_path: Path) -> None:
    attempt = trainer_process.start(configuration(tmp_path), largest_file=60_000)
    attempt.wait()
    _check_end(attempt, ExitCode.STORAGE, "StorageFailed", "checkpoint ep2-ba12 could not be saved")
    assert len(attempt.messages("CHECKPOINT_FAILED")) == 6
    assert len(attempt.messages("TRAIN_UPDATED")) == 12
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_a_failed_save_is_a_trouble_until_one_succeeds(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "latest").mkdir(parents=True)  # where a link should be put
    port = ports.free()
    attempt = trainer_process.start(configuration(tmp_path, LONG | {"checkpoint": {"interval": "2ba"}}), port=port)
    attempt.until("CHECKPOINT_FAILED", times=2)
    troubles = Snapshot.decode(_get(port, "/progress")).troubles
    assert [trouble.reason for trouble in troubles] == ["CheckpointFailed"]
    assert "could not be saved" in troubles[0].message
    (tmp_path / "run" / "checkpoints" / "latest").rmdir()
    attempt.until("CHECKPOINT_SAVED")
    attempt.signal(signal.SIGTERM)
    assert attempt.wait() == ExitCode.STOPPED
    assert attempt.last_word().troubles == ()


def test_a_failed_save_leaves_the_earlier_checkpoints(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    first = trainer_process.start(merged(config, {"training": {"maxDuration": "5000ba"}}))
    first.until("CHECKPOINT_SAVED", times=2)
    first.signal(signal.SIGKILL)
    first.wait()
    before = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("ep*"))
    second = trainer_process.start(merged(config, {"training": {"maxDuration": "5000ba"}}), largest_file=60_000)
    second.until("CHECKPOINT_FAILED", times=2)
    second.signal(signal.SIGTERM)
    assert second.wait() == ExitCode.STORAGE
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("ep*")) == before


def test_a_folder_that_holds_another_run_is_left_as_it_is(tmp_path: Path) -> None:
    trainer_process.run(configuration(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    other = trainer_process.run(configuration(tmp_path, {"run": {"uid": "0ther", "name": "sales-bot"}}))
    _check_end(other, ExitCode.BAD_CONFIG, "ConfigInvalid", "holds run ml/support-bot (7f1c); give this run one")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert {path: time for path, time in after.items() if path != tmp_path / "run"} == {
        path: time for path, time in before.items() if path != tmp_path / "run"
    }


def test_a_stop_before_the_training_ends_it_promptly(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {n}", "response": "answer " * 20} for n in range(60_000)]
    write_rows(tmp_path / "train.jsonl", rows)
    attempt = trainer_process.start(configuration(tmp_path))
    while not (tmp_path / "run").exists():
        time.sleep(0.01)
    attempt.signal(signal.SIGTERM)
    assert attempt.wait() == ExitCode.STOPPED
    _check_end(attempt, ExitCode.STOPPED, "Stopped", "stopped on request while there was nothing to save")


def test_a_stop_before_anything_is_imported_ends_it_as_stopped(tmp_path: Path) -> None:
    """The signal is sent at the first moment at which it is taken."""
    process = subprocess.Popen([sys.executable, "-m", "finetune_trainer"], env=_environment(tmp_path))
    caught = 0
    while not caught & 1 << (signal.SIGTERM - 1):
        assert process.poll() is None
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        caught = int(next(line for line in lines if line.startswith("SigCgt")).split()[1], 16)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == ExitCode.STOPPED
    assert not (tmp_path / "run").exists()


def test_help_and_the_first_signal_wait_for_no_import() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "finetune_trainer", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--config FILE" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert imported.isdisjoint({"pydantic", "torch", "tokenizers", "prometheus_client", "finetune_trainer.attempt"})


def test_the_configuration_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(configuration(tmp_path, {"training": {"maxDuration": "3 epochs"}})))
    environment = {key: value for key, value in _environment(tmp_path).items() if key != "FINETUNE_CONFIG"}
    command = [sys.executable, "-m", "finetune_trainer", "--config"]
    done = subprocess.run([*command, str(file)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.BAD_CONFIG
    assert "training.maxDuration: must be a whole number followed by" in done.stdout
    missing = subprocess.run([*command, str(tmp_path / "x")], env=environment, capture_output=True, check=False)
    assert missing.returncode == ExitCode.BAD_CONFIG
    assert b"can't be read" in missing.stderr


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    """Once without the fork server: as in the container, a second time within a finished run."""
    environment = _environment(tmp_path, {"training": {"maxDuration": "2ba"}})
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert "DATA_VALIDATED" in events[:2]
    assert events[-1] == "OUTPUT_SAVED"
    assert Snapshot.decode((tmp_path / "last-word").read_text()).output is not None


PAIRS = tiny_model.questions(8, longest=150)


def _check_end(attempt: trainer_process.Attempt, code: ExitCode, reason: str, said: str) -> None:
    assert attempt.process.exitcode == code, attempt.log.read_text()[-3000:]
    error = attempt.last_word().error
    assert error is not None
    assert (error.reason, error.exit_code) == (reason, code)
    assert said in error.message


def _generates(network: Any, folder: Path) -> None:
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": "What does open do?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = network.generate(**inputs, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert made.shape[1] == inputs["input_ids"].shape[1] + 5


def _output(config: dict[str, Any]) -> Path:
    return Path(config["runPath"]) / "output"


def _environment(folder: Path, changes: dict[str, Any] | None = None) -> dict[str, str]:
    return os.environ | {
        "FINETUNE_CONFIG": json.dumps(configuration(folder, changes)),
        "FINETUNE_PORT": "0",
        "FINETUNE_BIND_ADDRESS": "127.0.0.1",
        "FINETUNE_TERMINATION_LOG": str(folder / "last-word"),
    }


def _get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return bytes(answer.read())
