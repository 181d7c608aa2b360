"""What is read from each kind of file, and what is said of a file that breaks off."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from finetune_api.data import Columns, DataFormat, Task
from finetune_trainer.data import jsonarray, readers
from finetune_trainer.data.messages import Problem
from finetune_trainer.data.records import Document
from finetune_trainer.sources import formats

ROWS = [{"prompt": "a", "response": "b"}, {"prompt": "c\n", "response": "d, é"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
CSV = 'prompt,response\na,b\n"c\n","d, é"\n'


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.jsonl", LINES, [1, 2]),
        ("a.json", json.dumps(ROWS), [1, 1]),
        ("a.json", json.dumps(ROWS, indent=1), [2, 6]),
        ("a.json", LINES, [1, 2]),
        ("a.csv", CSV, [2, 3]),
        ("a.tsv", CSV.replace("t,r", "t\tr").replace("a,b", "a\tb").replace('",', '"\t'), [2, 3]),
    ],
    ids=["JSON lines", "an array in a line", "an array", "JSON lines with the other ending", "CSV", "tabs"],
)
def test_rows_are_read_with_their_lines(tmp_path: Path, name: str, text: str, lines: list[int]) -> None:
    assert _rows(tmp_path, name, text.encode()) == list(zip(lines, ROWS, strict=True))
    assert _rows(tmp_path, name, b"\xef\xbb\xbf" + text.encode()) == list(zip(lines, ROWS, strict=True))


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_compressed_files_are_read(tmp_path: Path, suffix: str, name: str) -> None:
    text = CSV if name == "a.csv" else LINES
    assert [row for _, row in _rows(tmp_path, name + suffix, COMPRESSORS[suffix](text.encode()))] == ROWS


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_a_compressed_file_that_breaks_off_is_told_where(tmp_path: Path, suffix: str) -> None:
    many = "".join(json.dumps({"prompt": str(n * 7919), "response": "b"}) + "\n" for n in range(20_000))
    whole = COMPRESSORS[suffix](many.encode())
    found = _read(tmp_path, "a.jsonl" + suffix, whole[: len(whole) // 2])
    place, problem = found[-1].place, found[-1].value
    assert isinstance(problem, Problem)
    assert str(problem).startswith("the file can't be read after this: ")
    assert place.line == max(raw.place.line for raw in found)
    assert _said(_read(tmp_path, "b.jsonl" + suffix, b"not compressed")) == ["b.jsonl" + suffix + " line 1: the file"]


BAD = {
    "an object where an array belongs": ("a.json", '{\n"a": 1}', "line 1: not an array [...] of objects"),
    "nothing": ("a.json", " ", "line 1: not an array"),
    "an array that breaks off": ("a.json", '[\n{"a": 1},\n{"b"', "line 3: not JSON: Expecting ':' delimiter"),
    "an array without its end": ("a.json", '[{"a": 1}\n', "line 2: not JSON: the end of the file where ',' or ']'"),
    "a comma too many": ("a.json", '[{"a": 1},\n]', "line 2: not JSON: Expecting value"),
    "no comma": ("a.json", '[{"a": 1}\n{}]', "line 2: not JSON: '{' where ',' or ']' is expected"),
    "something after the array": ("a.json", "[]\n[]", "line 2: not JSON: '[' after the end of the array"),
    "an array in another encoding": (
        "a.json",
        b'["\xff"]',
        "line 1: the file can't be read after this: not UTF-8: byte 0xff",
    ),
    "a row too short": ("a.csv", "prompt,response\na,b\nc\n", "line 3: 1 cells where the first line has 2 names"),
    "a quote that isn't closed": ("a.csv", 'prompt,response\na,"b\n', "line 2: not CSV: unexpected end of data"),
    "text after a quote": ("a.csv", 'prompt,response\n"a"x,b\nc,d\n', "line 2: not CSV: ',' expected after '\"'"),
    "a name twice": ("a.csv", "prompt,prompt\n", "line 1: the name 'prompt' stands twice in the first line"),
    "semicolons": ("a.csv", "prompt;response\n", "line 1: the first line is separated by ';'; expected commas"),
    "a misspelt name": ("a.csv", "prompt,respnse\na,b\n", "line 1: unknown key 'respnse'; expected 'prompt' and"),
    "a table in another encoding": (
        "a.csv",
        b"prompt,response\na,\xe9\n",
        "line 1: the file can't be read after this: not UTF-8",
    ),
}


@pytest.mark.parametrize(("name", "content", "said"), BAD.values(), ids=BAD)
def test_a_bad_file_is_described(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    found = _read(tmp_path, name, content.encode() if isinstance(content, str) else content)
    problems = [f"{raw.place}: {raw.value}" for raw in found if isinstance(raw.value, Problem)]
    assert len(problems) == 1
    assert problems[0].startswith(f"{name} {said}")


def test_reading_goes_on_after_a_bad_row_and_a_bad_file(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    (folder / "a.csv").write_text("prompt,response\na\nb,c\n")
    (folder / "b.csv").write_bytes(b"prompt,response\n\xff,b\n")
    (folder / "c.csv").write_text("prompt,response\nd,e\n")
    found = list(_all(formats.find(folder, DataFormat.AUTO, uri="pvc://x/y")))
    assert [(raw.place.file, isinstance(raw.value, Problem)) for raw in found] == [
        ("a.csv", True),
        ("a.csv", False),
        ("b.csv", True),
        ("c.csv", False),
    ]


def test_a_line_without_end_is_one_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LONGEST", 1 << 20)
    found = _read(tmp_path, "a.jsonl", b"x" * (3 << 20) + b"\n" + LINES.encode())
    assert [(raw.place.line, type(raw.value)) for raw in found] == [(1, Problem), (2, bytes), (3, bytes)]
    assert str(found[0].value) == "longer than 1 MiB; each line must be one record"


def test_lists_in_a_table_may_be_written_as_json(tmp_path: Path) -> None:
    text = 'prompt,response,history\na,b,"[[""c"", ""d""]]"\ne,f,\n[1],g,[x]\n'
    assert [row for _, row in _rows(tmp_path, "a.csv", text.encode())] == [
        {"prompt": "a", "response": "b", "history": [["c", "d"]]},
        {"prompt": "e", "response": "f", "history": None},
        {"prompt": "[1]", "response": "g", "history": "[x]"},
    ]


def test_an_array_is_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"text": 'é"\\' * n, "n": n * 10**9, "deep": [{"x": None}, True]} for n in range(300)]
    for block in (1, 7, 100):
        monkeypatch.setattr(jsonarray, "BLOCK", block)
        assert [row for _, row in _rows(tmp_path, "a.json", json.dumps(rows).encode())] == rows


def test_a_text_is_one_record_in_parts_of_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(f"line {n}\n" for n in range(1, 100))
    [whole] = _read(tmp_path, "a.txt", text.encode(), task=Task.CONTINUED_PRETRAIN)
    assert whole.value == Document(text)
    monkeypatch.setattr(readers, "PART", 200)
    parts = _read(tmp_path, "a.txt", text.replace("\n", "\r\n").encode(), task=Task.CONTINUED_PRETRAIN)
    documents = [part.value for part in parts if isinstance(part.value, Document)]
    assert "".join(document.text for document in documents) == text
    assert [document.begins for document in documents] == [True] + [False] * (len(documents) - 1)
    assert [document.ends for document in documents] == [False] * (len(documents) - 1) + [True]
    assert all(
        document.text.startswith(f"line {part.place.line}\n") for document, part in zip(documents, parts, strict=True)
    )


def _read(folder: Path, name: str, content: bytes, task: Task = Task.INSTRUCTION_FINE_TUNE) -> list[readers.Raw]:
    (folder / name).write_bytes(content)
    return list(_all(formats.find(folder / name, DataFormat.AUTO, uri="pvc://x/y"), task))


def _all(files: formats.Files, task: Task = Task.INSTRUCTION_FINE_TUNE) -> Any:
    return readers.read(files, task=task, columns=Columns())


def _rows(folder: Path, name: str, content: bytes) -> list[tuple[int, Any]]:
    found = _read(folder, name, content)
    return [(raw.place.line, json.loads(raw.value) if isinstance(raw.value, bytes) else raw.value) for raw in found]


def _said(found: list[readers.Raw]) -> list[str]:
    return [f"{raw.place}: {raw.value!s}".partition(" can't")[0] for raw in found if isinstance(raw.value, Problem)]
