"""The data as a whole: which files, what is learned, what is told, what is refused."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.trainer_config import ModelSource
from finetune_trainer import distributed
from finetune_trainer.data import arrays, prepare, statistics, tokenizer
from finetune_trainer.errors import ConfigInvalid, DataInvalid, NotFound, StorageFailed
from finetune_trainer.sources import modelfolder
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
    assert "2 (50.0%) cut at 40 tokens." in summary
    assert "1 duplicate." in summary
    assert "1 left out, as nothing to learn is left after the cut: train.jsonl line 3." in summary
    assert "Keys not used: id." in summary


def test_every_bad_line_is_counted_and_the_first_are_named(tmp_path: Path) -> None:
    rows = [GOOD, {"prompt": "a", "respnse": "b"}, GOOD, {"prompt": 1, "response": "b"}, {}, []]
    with pytest.raises(DataInvalid) as caught:
        _load(tmp_path, rows)
    assert str(caught.value) == (
        "train.jsonl line 2: unknown key 'respnse'; expected 'prompt' and 'response'; "
        "train.jsonl line 4: 'prompt' is a number; expected text; "
        "train.jsonl line 5: key 'prompt' is missing; expected 'prompt' and 'response'; and 1 more of 6 records"
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "is empty (train.jsonl)"),
        ([{"prompt": "long " * 60, "response": "x"}], "none of 1 records has anything to learn"),
    ],
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


FORMATS = {
    "an array": ("train.json", json.dumps([GOOD, GOOD | {"prompt": "Why?"}])),
    "CSV": ("train.csv", "prompt,response\nWhat does open do?,Opens a file.\nWhy?,Opens a file.\n"),
}


@pytest.mark.parametrize(("name", "text"), FORMATS.values(), ids=FORMATS)
def test_every_format_gives_the_same_tokens(tmp_path: Path, name: str, text: str) -> None:
    expected, _ = _load(tmp_path, [GOOD, GOOD | {"prompt": "Why?"}])
    (tmp_path / name).write_text(text)
    found, _ = _load(tmp_path, None, _train(tmp_path / name))
    assert found.digest() == expected.digest()


def test_raw_text_is_learned_and_split_into_windows(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("word " * 200)
    changes = _train(tmp_path / "book.txt") | {"task": "ContinuedPretrain"}
    dataset, summary = _load(tmp_path, None, changes, longest=40)
    assert dataset.learned.all()
    assert {str(place) for place in dataset.places} == {"book.txt line 1"}
    assert "1 text of 1 split into windows of 40 tokens." in summary
    assert "cut" not in summary


def test_plain_text_has_no_answers_to_learn(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("word")
    with pytest.raises(ConfigInvalid, match="is plain text, which task InstructionFineTune can't learn from"):
        _load(tmp_path, None, _train(tmp_path / "book.txt"))


def test_preferences_are_pairs(tmp_path: Path) -> None:
    rows = [{"prompt": "What does open do?", "chosen": "Opens a file.", "rejected": answer} for answer in ("No.", "?")]
    dataset, _ = _load(tmp_path, rows, {"task": "Preference"})
    pair = dataset.pair(1)
    assert dataset.lengths == [len(p.chosen.tokens) + len(p.rejected.tokens) for p in map(dataset.pair, (0, 1))]
    assert len(dataset.places) == 2
    assert _decoded(pair.chosen.tokens[pair.chosen.prompt_length :]) == "Opens a file.<|im_end|>\n"
    assert _decoded(pair.rejected.tokens[pair.rejected.learned]) == "?<|im_end|>"
    shared = pair.chosen.prompt_length
    assert pair.rejected.tokens[:shared].tolist() == pair.chosen.tokens[:shared].tolist()


def test_the_evaluation_data_is_another_source_with_its_own_limit(tmp_path: Path) -> None:
    write_rows(tmp_path / "eval.jsonl", [GOOD, {"prompt": "x", "response": "y"}, {"bad": "not reached"}])
    evaluation = {"uri": "pvc://x/eval.jsonl", "path": str(tmp_path / "eval.jsonl"), "maxSamples": 2}
    train, _ = _load(tmp_path, [GOOD] * 3, {"dataset": {"eval": evaluation}})
    found, summary = _load(tmp_path, None, {"dataset": {"eval": evaluation}}, evaluation=True)
    assert (len(train.places), len(found.places)) == (3, 2)
    assert "in eval.jsonl." in summary
    assert statistics.overlap(train, found) == " 1 evaluation record also in the training data."


def test_the_first_twenty_bad_records_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataInvalid, match="and 47 more of 51 records"):
        _load(tmp_path, [GOOD] + [{"prompt": "a"}] * 50)
    told = [record.message for record in caplog.records if getattr(record, "event", "") == "BAD_RECORD"]
    assert told == [
        f"train.jsonl line {n}: key 'response' is missing; expected 'prompt' and 'response'" for n in range(2, 22)
    ]


def test_other_processes_make_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"{n} {p}", "response": r} for n, (p, r) in enumerate(tiny_model.questions(2500, longest=200))]
    alone, told = _load(tmp_path, rows)
    monkeypatch.setattr(prepare, "PARALLEL_FROM", 0)
    monkeypatch.setattr(distributed, "usable_cpus", lambda: 2)
    together, told_then = _load(tmp_path, None)
    assert together.digest() == alone.digest()
    assert told_then == told
    assert list(together.places) == list(alone.places)


def test_tokens_in_a_file_are_the_same_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    rows = [{"prompt": f"{n}", "response": "b"} for n in range(50)]
    memory, _ = _load(tmp_path, rows)
    streamed, _ = _load(tmp_path, None, {"dataset": {"streaming": True}}, scratch=scratch)
    assert isinstance(streamed.tokens, np.memmap)
    assert streamed.digest() == memory.digest()
    assert list(scratch.iterdir()) == []


GROWTH = """
import sys
from array import array
from pathlib import Path
from finetune_trainer.data import arrays, encoding, prepare, records

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) >> 10

folder = Path(sys.argv[1]) if sys.argv[1] else None
records_of_a_chunk, length = 1000, 1000
tokens = array("i", range(records_of_a_chunk * length))
chunk = encoding.Encoded(
    tokens, bytearray(b"\\1" * len(tokens)), array("q", [length] * records_of_a_chunk),
    [records.Place("a", n) for n in range(records_of_a_chunk)], array("Q", range(records_of_a_chunk)),
)
before = held()
builder = prepare._Builder(folder, paired=False)
for _ in range(40):
    builder.add(chunk)
dataset = builder.finish()
dataset.digest()
assert dataset.record(39_999)[0][-1] == 999_999
print(held() - before, (dataset.tokens.nbytes + dataset.learned.nbytes) >> 20)
"""


def test_streamed_tokens_take_no_memory(tmp_path: Path) -> None:
    grown = {}
    for folder in ("", str(tmp_path)):
        said = subprocess.run([sys.executable, "-c", GROWTH, folder], capture_output=True, text=True, check=True).stdout
        grown[folder], size = map(int, said.split())
        assert size == 190
    assert grown[""] > 180  # MiB
    assert grown[str(tmp_path)] < 10


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(arrays.Growing, "add", full)
    with pytest.raises(StorageFailed, match=r"dataset\.streaming keeps the tokens in .*, which has no room"):
        _load(tmp_path, [GOOD], {"dataset": {"streaming": True}}, scratch=tmp_path)


def test_the_digest_changes_with_the_data(tmp_path: Path) -> None:
    first, _ = _load(tmp_path, [GOOD, {"prompt": "a", "response": "b"}])
    same, _ = _load(tmp_path, [GOOD, {"prompt": "a", "response": "b"}])
    other, _ = _load(tmp_path, [{"prompt": "a", "response": "b"}, GOOD])
    assert first.digest() == same.digest() != other.digest()


def _encoder(chat_template: str | None = tiny_model.CHAT_TEMPLATE) -> tokenizer.TextEncoder:
    path = tiny_model.build(chat_template=chat_template)
    return tokenizer.load(modelfolder.find(ModelSource(uri="pvc://models/tiny", path=str(path))))


def _load(
    folder: Path,
    rows: list[Any] | None = None,
    changes: dict[str, Any] | None = None,
    *,
    chat_template: str | None = tiny_model.CHAT_TEMPLATE,
    longest: int = 512,
    evaluation: bool = False,
    scratch: Path | None = None,
) -> tuple[prepare.Dataset, str]:
    if rows is not None:
        write_rows(folder / "train.jsonl", rows)
    config = parsed(folder, changes)
    source_of = config.dataset.eval if evaluation else None
    encoder = _encoder(chat_template)
    return prepare.load(config.dataset, config.task, encoder, longest=longest, source=source_of, scratch=scratch)


def _train(path: Path) -> dict[str, Any]:
    return {"dataset": {"train": {"path": str(path)}}}


def _decoded(tokens: Any) -> str:
    return _encoder().tokenizer.decode(tokens.tolist(), skip_special_tokens=False)


def _learned(dataset: prepare.Dataset) -> str:
    tokens, learned = dataset.record(0)
    return _encoder().tokenizer.decode(tokens[learned].tolist(), skip_special_tokens=False)
