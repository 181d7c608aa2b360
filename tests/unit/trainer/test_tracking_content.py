"""What MLflow is told: names and limits, without a server."""

from pathlib import Path

from finetune_trainer.reporting.metrics import DeviceSample
from finetune_trainer.tracking import content
from tests.trainer_builders import merged, parsed

MLFLOW = {"mlflow": {"trackingUri": "http://mlflow:5000", "experiment": "ml"}}


def test_every_hyperparameter_has_a_name_of_its_own_that_needs_no_quotes(tmp_path: Path) -> None:
    config = parsed(tmp_path, MLFLOW)
    found = content.parameters(config)
    leaves = [
        *content._leaves(config.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=content._OTHER), ())
    ]
    assert len(found) == len(leaves)
    assert all(name.isidentifier() for name in found)
    expected = {"learning_rate", "max_duration", "batch_size_per_device", "lora_rank", "lora_target_modules"}
    assert expected | {"seed", "method_type", "dataset_train_uri", "checkpoint_interval", "task"} <= found.keys()
    assert found["packing"] in ("true", "false")
    assert found["lora_target_modules"] == "all-linear"
    assert not [name for name in found if "mlflow" in name or name.startswith("run")]


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    config = parsed(tmp_path, merged(MLFLOW, {"model": {"uri": "pvc://" + "x" * 7000}}))
    assert len(content.parameters(config)["model_uri"]) == 6000


def test_a_runs_own_tags_win_but_for_its_identity(tmp_path: Path) -> None:
    own = {"mlflow.user": "ann", "finetune.run-uid": "another", "note": "a\x00b"}
    config = parsed(tmp_path, merged(MLFLOW, {"mlflow": {"tags": own}}))
    assert config.mlflow is not None
    found = content.tags(config, config.mlflow)
    assert found["mlflow.user"] == "ann"
    assert found["finetune.run-uid"] == "7f1c"
    assert found["note"] == "a b"
    assert found["mlflow.source.name"] == "FineTuneRun ml/support-bot"
    assert "finetune.queue" not in found


def test_a_line_of_the_history_is_told_with_all_its_numbers() -> None:
    line = {"time": 17, "step": 3, "loss": 1.5, "gradNorm": 2.0, "tokens": 50, "seconds": 0.5, "note": "a", "mfu": None}
    found = {metric.key: (metric.value, metric.timestamp, metric.step) for metric in content.measured(line, now=99)}
    assert found == {
        "loss": (1.5, 17, 3), "grad_norm": (2.0, 17, 3), "tokens": (50, 17, 3), "step_seconds": (0.5, 17, 3),
        "tokens_per_second": (100, 17, 3),
    }  # fmt: skip


def test_an_evaluation_whose_loss_is_no_number_has_no_loss() -> None:
    found = content.evaluated({"step": 6, "epoch": 1, "evalLoss": None, "records": 4, "seconds": 2.0}, now=99)
    assert [(metric.key, metric.value, metric.timestamp) for metric in found] == [("evaluation_seconds", 2.0, 99)]


def test_an_evaluation_says_nothing_that_its_step_has_said() -> None:
    line = {"time": 5, "step": 6, "epoch": 1, "evalLoss": 1.25, "records": 4, "seconds": 2.0}
    found = {metric.key: metric.value for metric in content.evaluated(line, now=99)}
    assert found == {"eval_loss": 1.25, "evaluation_seconds": 2.0}


def test_a_cpus_readings_are_those_of_the_trainer() -> None:
    sample = DeviceSample(device="cpu", utilization=None, cpu_cores=1.5, memory_used=3_000_000, memory_total=6_000_000)
    assert content.system(sample, cores=4) == {
        "system/cpu_utilization_percentage": 37.5,
        "system/system_memory_usage_megabytes": 3.0,
        "system/system_memory_usage_percentage": 50.0,
    }
