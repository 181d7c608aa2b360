"""The output folder: what a user finds in it, and what its card says."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.snapshot import EventType, Milestone, Snapshot, TrainProgress
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.saves import card, durable
from finetune_trainer.sources import cards
from finetune_trainer.sources.modelfolder import ModelFolder
from tests import trainer_builders, trainer_process

NOW = "2026-03-01T12:00:00Z"
LAST = Snapshot(
    run_uid="7f1c",
    attempt=1,
    sequence=1,
    time=NOW,  # type: ignore[arg-type]  # pydantic parses it
    milestones=(Milestone(type=EventType.DATA_VALIDATED, time=NOW, message="24 records, 1,000 tokens"),),  # type: ignore[arg-type]
    progress=TrainProgress(epoch=2, total_epochs=2, batch=12, total_batches=12, tokens=3400, loss=1.25, eval_loss=1.5),
)


def written(folder: Path, changes: Any = None, *, readme: str | None = None, **options: Any) -> str:
    config = trainer_builders.parsed(folder, changes)
    model = folder / "model"
    model.mkdir(exist_ok=True)
    if readme is not None:
        (model / "README.md").write_text(readme)
    return card.text(
        config,
        ModelFolder(model, config.model, {}),
        LAST,
        **({"merged": "", "bits": None, "ended_early": ""} | options),
    )


def head(text: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text.partition("\n---\n")[0].removeprefix("---\n"))
    return found


def test_the_card_says_what_it_was_made_of_and_how_it_went(tmp_path: Path) -> None:
    changes = {
        "model": {"uri": "hf://org/base@main"},
        "dataset": {"eval": {"uri": "pvc://datasets/eval.jsonl", "path": str(tmp_path / "train.jsonl")}},
    }
    text = written(tmp_path, changes, ended_early="Ended early: no better.")
    assert head(text) == {
        "library_name": "peft",
        "base_model": "org/base",
        "pipeline_tag": "text-generation",
        "tags": ["finetune-operator"],
    }
    for said in (
        "LoRA fine-tuning of `hf://org/base@main` on `pvc://datasets/train.jsonl` (InstructionFineTune)",
        "- Training: `pvc://datasets/train.jsonl`",
        "- Evaluation: `pvc://datasets/eval.jsonl`",
        "- 24 records, 1,000 tokens",
        "- Steps: 12, epochs: 2, tokens: 3,400",
        "- Loss of the last step: 1.2500",
        "- Loss of the last evaluation: 1.5000",
        "- Ended early: no better.",
        '"learningRate": 0.003',
        '"rank": 4',
        "- torch 2.",
        "- finetune-operator ",
        "- python 3.",
    ):
        assert said in text, said


@pytest.mark.parametrize(
    ("readme", "license_of_it", "said"),
    [
        pytest.param(None, None, "Licence of the base model: unknown.", id="no card"),
        pytest.param("# Just a text", None, "Licence of the base model: unknown.", id="a card without a head"),
        pytest.param("---\n[: not yaml\n---\n", None, "Licence of the base model: unknown.", id="a broken head"),
        pytest.param("---\nlicense: [mit, x]\n---\n", None, "Licence of the base model: unknown.", id="an odd value"),
        pytest.param("---\nlicense: apache-2.0\n---\n# x", "apache-2.0", "by its README.md: apache-2.0.", id="one"),
        pytest.param(
            "---\nlicense: other\nlicense_name: llama3.1\nlicense_link: LICENSE\n---\n",
            "other",
            "by its README.md: llama3.1 (LICENSE).",
            id="one of its own",
        ),
    ],
)
def test_the_licence_is_that_of_the_base_or_unknown(
    tmp_path: Path, readme: str | None, license_of_it: str | None, said: str
) -> None:
    text = written(tmp_path, readme=readme)
    assert said in text
    assert head(text).get("license") == license_of_it


def test_merged_weights_are_told_with_what_they_were_merged_into(tmp_path: Path) -> None:
    assert "merged/" not in written(tmp_path)
    assert "`merged/` is the same with the adapter merged in, in bfloat16" in written(tmp_path, merged="bfloat16")
    text = written(tmp_path, {"method": {"type": "QLoRA"}}, merged="bfloat16", bits=4)
    assert "trained over weights of 4 bits" in text
    assert "- bitsandbytes " in text


def test_a_name_can_put_nothing_into_the_head(tmp_path: Path) -> None:
    assert "evil" not in head(written(tmp_path, readme='---\nlicense: "mit\\n---\\nevil: 1"\n---\n'))


def test_a_run_s_output_is_whole_and_lists_itself(tmp_path: Path) -> None:
    config = trainer_builders.configuration(tmp_path, {"training": {"maxDuration": "1ba"}})
    assert trainer_process.run(config).process.exitcode == 0
    output = tmp_path / "run" / "output"
    names = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert names >= {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "training_logs/user_params.json",
        "training_logs/metrics.jsonl",
        "manifest.json",
    }
    assert set(durable.verify(output)["files"]) == names - {"manifest.json"}
    parameters = json.loads((output / "training_logs" / "user_params.json").read_text())
    assert parameters["training"]["learningRate"] == 0.003
    assert cards.head(output)["library_name"] == "peft"


def test_the_example_for_a_laptop_is_a_configuration_with_its_data() -> None:
    folder = Path(__file__).parents[3] / "examples" / "laptop"
    config = TrainerConfig.decode((folder / "run.json").read_text())
    assert config.run_path == "run"
    assert config.dataset.train.path is not None
    rows = [json.loads(line) for line in (folder / config.dataset.train.path).read_text().splitlines()]
    assert len(rows) == 40
    assert all(row.keys() == {"prompt", "response"} for row in rows)
    saved = TrainerConfig.decode(config.encode())
    assert saved == config
    assert saved.dataset.train.uri == "questions.jsonl", "the path stands for the URI where that is all there is"
