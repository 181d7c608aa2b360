"""Records as tokens: raw text in windows, pairs of answers, and what is counted."""

from typing import Any

import pytest

from finetune_api.data import Columns, Task, Template
from finetune_api.trainer_config import ModelSource
from finetune_trainer.data import encoding, tokenizer
from finetune_trainer.data.messages import Problem
from finetune_trainer.data.readers import Raw
from finetune_trainer.data.records import Document, Place
from finetune_trainer.sources import modelfolder
from tests import tiny_model

END = 2
"""The tiny model's last token."""


@pytest.mark.parametrize("length", [1, 2, 30, 31, 32, 33, 61, 62, 63, 100])
def test_of_a_raw_text_every_token_is_learned_once(length: int) -> None:
    encoder = _settings(Task.CONTINUED_PRETRAIN).encoder
    text = encoder.tokenizer.decode([300] * (length - 1)) if length > 1 else "x"
    ids = [*encoder.tokenizer.encode(text).ids, END]
    made = _encode(Task.CONTINUED_PRETRAIN, [{"text": text}], longest=32)
    windows = _sequences(made)
    assert all(2 <= len(window) <= 32 for window in windows)
    targets = [token for window in windows for token in window[1:]]
    assert [windows[0][0], *targets] == ids
    assert made.tally.split == (len(ids) > 32)
    assert made.tally.cut == 0


def test_the_parts_of_a_text_end_once() -> None:
    parts = [
        Document("one\n", ends=False),
        Document("two\n", begins=False, ends=False),
        Document("three", begins=False),
    ]
    made = _encode(Task.CONTINUED_PRETRAIN, parts)
    assert [window.count(END) for window in _sequences(made)] == [0, 0, 1]


def test_a_text_that_ends_itself_gets_no_second_end() -> None:
    made = _encode(Task.CONTINUED_PRETRAIN, [{"text": "one<|im_end|>"}])
    assert _sequences(made)[0].count(END) == 1


def test_a_preference_is_two_sequences_with_one_prompt() -> None:
    row = {"prompt": "What does open do?", "chosen": "Opens a file.", "rejected": "Nothing."}
    made = _encode(Task.PREFERENCE, [row])
    chosen, rejected = _sequences(made)
    assert len(made.places) == 1
    assert _learned(made) == ["Opens a file.<|im_end|>", "Nothing.<|im_end|>"]
    start = "<|im_start|>user\nWhat does open do?<|im_end|>\n<|im_start|>assistant\n"
    assert _text(chosen).startswith(start)
    assert _text(rejected).startswith(start)


def test_a_preference_works_without_a_chat_template() -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    made = _encode(Task.PREFERENCE, [row], chat_template=None)
    assert [_text(ids) for ids in _sequences(made)] == ["a\nb<|im_end|>", "a\nc<|im_end|>"]


def test_a_preference_that_is_equal_after_the_cut_is_left_out() -> None:
    rows = [{"prompt": "a", "chosen": "word " * 60 + "x", "rejected": "word " * 60 + "y"}]
    made = _encode(Task.PREFERENCE, rows, longest=40)
    assert (made.tally.cut, made.tally.unlearnable_count, len(made.places)) == (1, 1, 0)


def test_problems_are_counted_and_the_first_twenty_kept() -> None:
    rows: list[Any] = [{"prompt": "a"}, Problem("the file can't be read after this")] * 15
    made = _encode(Task.INSTRUCTION_FINE_TUNE, rows)
    assert (made.tally.problem_count, len(made.tally.problems), made.tally.records) == (30, 20, 30)
    first, second = made.tally.problems[:2]
    assert (str(first[0]), first[1]) == ("a line 1", "key 'response' is missing; expected 'prompt' and 'response'")
    assert second[1] == "the file can't be read after this"


def test_equal_records_have_equal_keys() -> None:
    good = {"prompt": "a", "response": "b"}
    made = _encode(Task.INSTRUCTION_FINE_TUNE, [good, good, {"prompt": "a", "response": "c"}])
    assert made.keys[0] == made.keys[1] != made.keys[2]


def test_where_spans_lie_is_found_in_one_pass() -> None:
    offsets = [(0, 0), (0, 3), (3, 5), (5, 5), (5, 9), (9, 12), (12, 13), (0, 0)]
    assert encoding._inside(offsets, [(3, 9), (12, 20)]) == [[2, 4], [6]]
    assert encoding._inside(offsets, [(4, 5), (5, 5)]) == [[], []]
    assert encoding._inside(offsets, []) == []


def _settings(
    task: Task, *, longest: int = 512, chat_template: str | None = tiny_model.CHAT_TEMPLATE
) -> encoding.Settings:
    model = modelfolder.find(ModelSource(uri="pvc://x/y", path=str(tiny_model.build(chat_template=chat_template))))
    return encoding.Settings(task, Columns(), Template(), tokenizer.load(model), longest)


def _encode(task: Task, rows: list[Any], **options: Any) -> encoding.Encoded:
    raw = [Raw(Place("a", number), row) for number, row in enumerate(rows, start=1)]
    return encoding.encode(raw, _settings(task, **options))


def _sequences(made: encoding.Encoded) -> list[list[int]]:
    ends = [sum(made.lengths[: n + 1]) for n in range(len(made.lengths))]
    return [made.tokens[end - length : end].tolist() for end, length in zip(ends, made.lengths, strict=True)]


def _learned(made: encoding.Encoded) -> list[str]:
    found, start = [], 0
    for length in made.lengths:
        picked = zip(made.tokens[start : start + length], made.learned[start : start + length], strict=True)
        found.append(_text([token for token, learned in picked if learned]))
        start += length
    return found


def _text(ids: list[int]) -> str:
    return _settings(Task.CONTINUED_PRETRAIN).encoder.tokenizer.decode(ids, skip_special_tokens=False)
