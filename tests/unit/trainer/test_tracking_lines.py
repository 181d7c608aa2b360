"""The history as MLflow is told it: no step missed, however the file was shortened or replaced between two looks."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from finetune_trainer.tracking import lines


def write(path: Path, steps: Iterable[int], *, extra: str = "", torn: str = "") -> Path:
    path.write_text("".join(json.dumps({"step": step, "extra": extra}) + "\n" for step in steps) + torn)
    return path


def rest(reader: lines.Lines, last: int) -> list[int]:
    """All that is beyond a step, in as many blocks as it takes."""
    found: list[int] = []
    while block := reader.after(found[-1] if found else last):
        found += [line["step"] for line in block]
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_a_file_that_is_not_there_yet_has_nothing(file: Path) -> None:
    assert rest(lines.steps(file), 0) == []


def test_a_file_is_read_on_in_blocks(file: Path) -> None:
    reader = lines.steps(write(file, range(1, 2000)))
    assert rest(reader, 0) == [*range(1, 2000)]
    with file.open("a") as more:
        more.write('{"step": 2000}\n')
    assert rest(reader, 1999) == [2000]


def test_a_line_counts_once_it_is_whole(file: Path) -> None:
    reader = lines.steps(write(file, [1, 2], torn='{"step": 3'))
    assert rest(reader, 0) == [1, 2]
    with file.open("a") as more:
        more.write("}\n")
    assert rest(reader, 2) == [3]


@pytest.mark.parametrize("extra", ["", "x", "x" * 7, "x" * 40], ids=["equal", "longer", "odd", "much longer"])
@pytest.mark.parametrize("upto", [4, 5, 8, 12, 30])
@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "shortened in place"])
def test_steps_that_are_done_again_are_told_once_and_none_is_missed(
    extra: str, upto: int, replaced: bool, file: Path
) -> None:
    reader = lines.steps(write(file, range(1, 9), extra="abc"))
    assert rest(reader, 0) == [*range(1, 9)]
    if replaced:
        file.unlink()
    write(file, range(1, upto + 1), extra=extra)
    assert rest(reader, 8) == [*range(9, upto + 1)]
    write(file, range(1, 41), extra=extra)
    assert rest(reader, max(8, upto)) == [*range(max(8, upto) + 1, 41)]


def test_a_new_reader_skips_what_was_told(file: Path) -> None:
    assert rest(lines.steps(write(file, range(1, 5000))), 4990) == [*range(4991, 5000)]


def test_evaluations_have_gaps(file: Path) -> None:
    reader = lines.evaluations(write(file, [6, 12]))
    assert rest(reader, -1) == [6, 12]
    write(file, [6, 12, 18, 24], extra="longer")
    assert rest(reader, 12) == [18, 24]


def test_what_is_no_line_is_passed_over(file: Path) -> None:
    file.write_text('{"step": 1}\n\x00\x00\n[]\n{"step": "2"}\n{"step": 3}\n')
    assert rest(lines.steps(file), 0) == [1, 3]
