"""The data as a whole: which files, what is learned, what is told, what is refused."""

from pathlib import Path
from typing import Any

import pytest

from finetune_api.trainer_config import ModelSource
from finetune_trainer import data, source, tokenizer
from finetune_trainer.errors import ConfigInvalid, DataInvalid, NotFound
from tests import tiny_model
from tests.trainer_builders import parsed, write_rows

GOOD = {"prompt": "What does open do?", "response": "Opens a file."}


def test_what_is_learned_is_the_answer_and_the_token_that_ends_it(tmp_path: Path) -> None:
    dataset, _ = _load(tmp_path, [GOOD])
    assert _learned(dataset) == "Opens a file.<|im_end|>"


def test_without_a_chat_template_the_answer_gets_an_end(tmp_path: Path) -> None:
    dataset, _ = _load(tmp_path, [GOOD], chat_template=None)
    tokens, _ = dataset.record(0)
    text = _encoder(None).tokenizer.decode(tokens.tolist(), skip_special_tokens=False)
    assert text == "What does open do?\nOpens a file.<|im_end|>"
    assert _learned(dataset) == "Opens a file.<|im_end|>"


def test_a_template_that_ends_no_answer_gets_an_end(tmp_path: Path) -> None:
    dataset, _ = _load(tmp_path, [GOOD], chat_template="{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}")
    assert _learned(dataset) == "Opens a file. <|im_end|>"


def test_every_answer_of_a_conversation_is_learned_with_its_end(tmp_path: Path) -> None:
    turns = ("user", "Hi."), ("assistant", "Hello."), ("user", "Bye."), ("assistant", "See you.")
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    dataset, _ = _load(tmp_path, [row], {"task": "ChatCompletion"})
    assert _learned(dataset) == "Hello.<|im_end|>See you.<|im_end|>"


def test_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    import transformers

    theirs: Any = transformers.AutoTokenizer.from_pretrained(tiny_model.build())
    messages = [{"role": "user", "content": GOOD["prompt"]}, {"role": "assistant", "content": GOOD["response"]}]
    expected = theirs.apply_chat_template(messages, return_dict=True)["input_ids"]
    dataset, _ = _load(tmp_path, [GOOD])
    assert dataset.record(0)[0].tolist() == expected


def test_bom_blank_lines_and_carriage_returns_are_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "response": "b"}\r\n\r\n  \n{"prompt": "c", "response": "d"}')
    dataset, summary = _load(tmp_path)
    assert [str(place) for place in dataset.places] == ["train.jsonl line 1", "train.jsonl line 4"]
    assert summary.startswith("2 records, ")


def test_a_folder_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    for name in ("b.jsonl", "a.jsonl"):
        write_rows(folder / name, [GOOD])
    (folder / "notes.txt").write_text("not data")
    dataset, summary = _load(tmp_path, None, {"dataset": {"train": {"path": str(folder)}}})
    assert [place.file for place in dataset.places] == ["a.jsonl", "b.jsonl"]
    assert "1 duplicate." in summary


def test_the_summary_tells_what_was_cut_left_out_and_not_used(tmp_path: Path) -> None:
    rows = [
        GOOD,
        GOOD | {"id": 3},
        {"prompt": "long " * 60, "response": "x"},
        {"prompt": "a", "response": "word " * 60},
    ]
    dataset, summary = _load(tmp_path, rows, longest=40)
    assert len(dataset.places) == 3
    assert "2 cut at 40 tokens." in summary
    assert "1 duplicate." in summary
    assert "1 left out, as no answer is left after the cut: train.jsonl line 3." in summary
    assert "Keys not used: id." in summary


def test_every_bad_line_is_counted_and_the_first_are_named(tmp_path: Path) -> None:
    rows = [GOOD, {"prompt": "a", "respnse": "b"}, GOOD, {"prompt": 1, "response": "b"}, {}, []]
    with pytest.raises(DataInvalid) as caught:
        _load(tmp_path, rows)
    assert str(caught.value) == (
        "train.jsonl line 2: unknown key 'respnse'; expected 'prompt' and 'response'; "
        "train.jsonl line 4: 'prompt' is a number; expected text; "
        "train.jsonl line 5: key 'prompt' is missing; expected 'prompt' and 'response'; and 1 more of 6 lines"
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [([], "is empty (train.jsonl)"), ([{"prompt": "long " * 60, "response": "x"}], "none of 1 records has an answer")],
    ids=["an empty file", "nothing to learn after the cut"],
)
def test_nothing_to_learn_is_an_error(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(DataInvalid) as caught:
        _load(tmp_path, rows, longest=40)
    assert said in str(caught.value)


def test_a_missing_file_is_named_with_what_is_beside_it(tmp_path: Path) -> None:
    write_rows(tmp_path / "trian.jsonl", [GOOD])
    with pytest.raises(NotFound) as caught:
        _load(tmp_path, None, {"dataset": {"train": {"path": str(tmp_path / "sub" / "train.jsonl")}}})
    assert "pvc://datasets/train.jsonl not found: there is no" in str(caught.value)
    assert "trian.jsonl" in str(caught.value)


def test_chats_need_a_chat_template(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="no"):
        _load(tmp_path, [GOOD], {"task": "ChatCompletion"}, chat_template=None)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ConfigInvalid, match="Parquet"):
        _load(tmp_path, None, {"dataset": {"train": {"path": str(path)}}})


def test_the_digest_changes_with_the_data(tmp_path: Path) -> None:
    first, _ = _load(tmp_path, [GOOD, {"prompt": "a", "response": "b"}])
    same, _ = _load(tmp_path, [GOOD, {"prompt": "a", "response": "b"}])
    other, _ = _load(tmp_path, [{"prompt": "a", "response": "b"}, GOOD])
    assert first.digest() == same.digest() != other.digest()


def _encoder(chat_template: str | None = tiny_model.CHAT_TEMPLATE) -> tokenizer.TextEncoder:
    path = tiny_model.build(chat_template=chat_template)
    return tokenizer.load(source.find(ModelSource(uri="pvc://models/tiny", path=str(path))))


def _load(
    folder: Path,
    rows: list[Any] | None = None,
    changes: dict[str, Any] | None = None,
    *,
    chat_template: str | None = tiny_model.CHAT_TEMPLATE,
    longest: int = 512,
) -> tuple[data.Dataset, str]:
    if rows is not None:
        write_rows(folder / "train.jsonl", rows)
    config = parsed(folder, changes)
    return data.load(config.dataset, config.task, _encoder(chat_template), longest=longest)


def _learned(dataset: data.Dataset) -> str:
    tokens, learned = dataset.record(0)
    return _encoder().tokenizer.decode(tokens[learned].tolist(), skip_special_tokens=False)
