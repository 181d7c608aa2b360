"""Configurations and data files for tests of the trainer."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finetune_api.trainer_config import ModelSource, TrainerConfig
from finetune_trainer.sources import modelfolder
from tests import tiny_model


def configuration(folder: Path, changes: Mapping[str, Any] | None = None, *, records: int = 24) -> dict[str, Any]:
    """A run of a second: LoRA on a tiny model, 12 steps of 2 x 2 records in two epochs; `changes` are merged in."""
    data = folder / "train.jsonl"
    if not data.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if (changes or {}).get("task") == "Preference":
            write_preferences(data, records)
        else:
            tiny_model.write_questions(data, records, longest=200)
    config: dict[str, Any] = {
        "run": {"namespace": "ml", "name": "support-bot", "uid": "7f1c", "attempt": 1},
        "model": {"uri": "pvc://models/tiny", "path": str(tiny_model.build())},
        "task": "InstructionFineTune",
        "dataset": {"train": {"uri": "pvc://datasets/train.jsonl", "path": str(data)}},
        "method": {"type": "LoRA", "lora": {"rank": 4, "alpha": 8, "dropout": 0.1}},
        "training": {
            "maxDuration": "2ep",
            "learningRate": 0.003,
            "maxSequenceLength": 64,
            "precision": "FP32",
            "batchSize": {"perDevice": 2, "gradientAccumulationSteps": 2},
        },
        "checkpoint": {"interval": "2ba", "keep": 2},
        "runPath": str(folder / "run"),
    }
    return merged(config, changes or {})


def parsed(folder: Path, changes: Mapping[str, Any] | None = None, **options: Any) -> TrainerConfig:
    """The same, as the trainer sees it."""
    return TrainerConfig.model_validate(configuration(folder, changes, **options))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, object by object; None removes a key."""
    result = dict(base)
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(value, Mapping) and isinstance(inner, Mapping) else value
    return {key: value for key, value in result.items() if value is not None}


def write_preferences(target: Path, count: int, *, seed: int = 0) -> Path:
    """Questions about the standard library: the answer is preferred to that of another question."""
    pairs = tiny_model.questions(count + 1, longest=200, seed=seed)
    rows = ({"prompt": p, "chosen": r, "rejected": pairs[n + 1][1]} for n, (p, r) in enumerate(pairs[:count]))
    return write_rows(target, rows)


def write_rows(target: Path, rows: Iterable[object]) -> Path:
    """Rows as JSONL."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return target


def found_model(folder: Path) -> modelfolder.ModelFolder:
    """A model's folder, as the trainer finds it."""
    return modelfolder.find(ModelSource(uri="pvc://models/tiny", path=str(folder)))


def change_json(file: Path, changes: Mapping[str, Any]) -> None:
    """Set some keys of a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
