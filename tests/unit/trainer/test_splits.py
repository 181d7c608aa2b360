"""Which files of a hub's dataset are read."""

from typing import Any

import pytest

from finetune_trainer.sources import splits

CARD = {
    "configs": [
        {
            "config_name": "main",
            "data_files": [{"split": "train", "path": "main/train-*"}, {"split": "test", "path": ["main/test-*"]}],
        },
        {"config_name": "socratic", "data_files": [{"split": "train", "path": "socratic/*.parquet"}]},
    ]
}
FILES = [
    "README.md",
    "main/test-00000-of-00001.parquet",
    "main/train-00000-of-00002.parquet",
    "main/train-00001-of-00002.parquet",
    "socratic/train-00000-of-00001.parquet",
]
CHOSEN = {
    "a split of the only configuration": (["train.jsonl", "test.jsonl"], {}, None, ["train.jsonl"]),
    "the split that is asked for": (["train.jsonl", "test.jsonl"], {}, "test", ["test.jsonl"]),
    "one file, whatever its name": (["alpaca.json", "README.md"], {}, None, ["alpaca.json"]),
    "several files of one kind": (["b.parquet", "a.parquet"], {}, None, ["a.parquet", "b.parquet"]),
    "numbered files of any split": (["data/train_sft-00000-of-00001.parquet"], {}, "train_sft", None),
    "a folder per split": (["train/a.csv", "validation/a.csv"], {}, None, ["train/a.csv"]),
    "a configuration": (FILES, CARD, "socratic", ["socratic/train-00000-of-00001.parquet"]),
    "a split of a configuration": (FILES, CARD, "main.test", ["main/test-00000-of-00001.parquet"]),
    "the default configuration": (FILES, CARD, "test", ["main/test-00000-of-00001.parquet"]),
    "pickles and scripts beside it": (["train.pkl", "train.py", "train.csv"], {}, None, ["train.csv"]),
    "a card that isn't understood": (["train.csv"], {"configs": [3, {"data_files": None}]}, None, ["train.csv"]),
}


@pytest.mark.parametrize(("files", "card", "asked", "expected"), CHOSEN.values(), ids=CHOSEN)
def test_a_split_is_found(
    files: list[str], card: dict[str, Any], asked: str | None, expected: list[str] | None
) -> None:
    found = splits.choose(splits.find(files, card), asked, main="main" if card else None, wanted=("train",))
    assert found == (expected or files)


MISSING = {
    "no such split": (["train.jsonl"], {}, "dev", "it has no split dev: there is train"),
    "nothing to evaluate on": (["train.jsonl"], {}, None, "it has no split validation or test: there is train"),
    "nothing at all": (["README.md"], {}, None, "it has no split validation or test: there is none"),
    "configurations without a default": (FILES, CARD, None, "none is the default: add :main|socratic"),
}


@pytest.mark.parametrize(("files", "card", "asked", "said"), MISSING.values(), ids=MISSING)
def test_what_is_missing_is_told(files: list[str], card: dict[str, Any], asked: str | None, said: str) -> None:
    with pytest.raises(LookupError) as caught:
        splits.choose(splits.find(files, card), asked, main=None, wanted=("validation", "test"))
    assert said in str(caught.value)


def test_the_hubs_own_conversion_is_understood() -> None:
    found = splits.converted(["default/train/0001.parquet", "default/train/0000.parquet", "default/test/0000.parquet"])
    assert found == {
        "default": {
            "train": ["default/train/0000.parquet", "default/train/0001.parquet"],
            "test": ["default/test/0000.parquet"],
        }
    }
