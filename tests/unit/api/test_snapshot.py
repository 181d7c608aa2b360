"""The run protocol's snapshot: always within its limits, and read only if it is one."""

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.snapshot import (
    LAST_WORD_LIMIT,
    SNAPSHOT_LIMIT,
    LastError,
    Milestone,
    SavedCheckpoint,
    SavedOutput,
    Snapshot,
)
from finetune_api.trainer_config import TrainerConfig

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def snapshot(**more: object) -> Snapshot:
    least = {"run_uid": "u", "attempt": 1, "sequence": 1, "time": NOW}
    return Snapshot.model_validate(least | more)


def checkpoint(step: int) -> SavedCheckpoint:
    return SavedCheckpoint(
        name=f"ep1-ba{step}", step=step, time=NOW, size_bytes=10**9, path=f"checkpoints/ep1-ba{step}", sha256="0" * 64
    )


def test_encoding_and_decoding_gives_the_same() -> None:
    said = snapshot(checkpoints=[checkpoint(5)], output=SavedOutput(path="output"))
    assert Snapshot.decode(said.encode()) == said


def test_the_last_word_keeps_the_newest_checkpoint_and_the_error() -> None:
    error = LastError(reason="DataInvalid", message="line 17: unknown key 'respnse'", exit_code=65)
    said = snapshot(checkpoints=[checkpoint(step) for step in range(100)], error=error)
    heard = Snapshot.decode(said.last_word(), limit=LAST_WORD_LIMIT)
    assert heard.checkpoints[-1].step == 99
    assert heard.error == error


ANYTHING = st.text(max_size=1024)


@given(
    messages=st.lists(st.one_of(ANYTHING, st.just("\N{SNOWMAN}" * 1024), st.just("\x01" * 1024)), max_size=4),
    checkpoints=st.integers(min_value=0, max_value=100),
)
def test_the_last_word_always_fits(messages: list[str], checkpoints: int) -> None:
    kinds = ("RESUMED", "DATA_VALIDATED", "MODEL_INITIALIZED", "TRAIN_FINISHED")
    said = snapshot(
        run_uid="u" * 64,
        milestones=[{"type": kind, "time": NOW, "message": text} for kind, text in zip(kinds, messages, strict=False)],
        checkpoints=[checkpoint(step) for step in range(checkpoints)],
        output={"path": "p" * 512, "checkpoint": "c" * 64},
        error={"reason": "R" * 128, "message": messages[0] if messages else "", "exitCode": 1},
    )
    assert len(said.last_word().encode()) <= LAST_WORD_LIMIT
    assert len(said.encode().encode()) <= SNAPSHOT_LIMIT
    Snapshot.decode(said.last_word(), limit=LAST_WORD_LIMIT)


def test_the_limit_is_in_bytes() -> None:
    text = snapshot(
        milestones=[Milestone.model_validate({"type": "RESUMED", "time": NOW, "message": "ä" * 1000})]
    ).encode()
    assert len(text) < 1500 < len(text.encode())
    with pytest.raises(ValueError, match="is over the limit of 1500"):
        Snapshot.decode(text, limit=1500)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", "not json", '{"version": 2}', b"\xff"], ids=repr)
def test_what_is_no_snapshot_is_refused_in_a_short_line(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="not a snapshot") as caught:
        Snapshot.decode(text)
    assert len(str(caught.value)) <= 300


@pytest.mark.parametrize("path", ["/etc/passwd", "../other", "a/../../b", "a\nb", "ä", ""], ids=repr)
def test_a_path_stays_in_the_run_s_folder(path: str) -> None:
    said = json.loads(snapshot(output={"path": "output"}).encode()) | {"output": {"path": path}}
    with pytest.raises(ValueError, match="pattern"):
        Snapshot.decode(json.dumps(said))


def test_a_newer_trainer_may_say_more() -> None:
    text = snapshot().encode().replace('"attempt":1', '"attempt":1,"colour":"blue"')
    assert Snapshot.decode(text) == snapshot()


def test_the_configuration_reads_as_it_was_written() -> None:
    config = TrainerConfig.model_validate(
        {
            "run": {"namespace": "ml", "name": "x", "uid": "u", "attempt": 1},
            "model": {"uri": "hf://org/name"},
            "task": "InstructionFineTune",
            "dataset": {"train": {"uri": "pvc://a/b", "path": "/mnt/data/b"}},
            "training": {"batchSize": {"perDevice": 4, "global": 64}},
        }
    )
    assert TrainerConfig.decode(config.encode()) == config
