"""What a run's folder remembers of its steps, on a volume that is full for a while."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from finetune_trainer.reporting.history import History
from finetune_trainer.reporting.progress import Step
from tests.trainer_builders import parsed


def test_what_a_full_volume_takes_is_missing_and_what_comes_after_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    history = _history(tmp_path)
    file, _ = history.files
    history.add(_step(1))
    kept = file.with_name("kept")
    file.rename(kept)
    file.symlink_to("/dev/full")
    for number in (2, 3, 4):
        history.add(_step(number))
    file.unlink()
    kept.rename(file)
    history.add(_step(5))
    assert _steps(file) == [1, 5]
    assert [record.message for record in caplog.records] == [
        "the history of steps can't be written, the training goes on without: [Errno 28] No space left on device",
        "the history of steps can be written again; 3 records were lost",
    ]


def test_of_a_line_that_fits_in_part_nothing_stays(tmp_path: Path) -> None:
    history = _history(tmp_path)
    file, _ = history.files
    history.add(_step(1))
    with _files_no_larger_than(file.stat().st_size + 20):
        history.add(_step(2))
        assert file.stat().st_size > len(file.read_text().splitlines(keepends=True)[0]), "a part is there"
    history.add(_step(3))
    assert _steps(file) == [1, 3]


@pytest.mark.parametrize("torn", [b'{"step": 4, "lo', b'{"step": 4}', b"\x00\x00\x00"])
def test_an_attempt_goes_on_after_its_checkpoint_even_on_a_full_volume(tmp_path: Path, torn: bytes) -> None:
    history = _history(tmp_path)
    file, _ = history.files
    for number in (1, 2, 3):
        history.add(_step(number))
    with file.open("ab") as end:
        end.write(torn)
    with _files_no_larger_than(0):
        _history(tmp_path, steps_done=2)
    assert _steps(file) == [1, 2]


def test_torn_lines_in_the_middle_go_too(tmp_path: Path) -> None:
    history = _history(tmp_path)
    file, _ = history.files
    history.add(_step(1))
    with file.open("ab") as end:
        end.write(b"\x00\x00\n")
    history.add(_step(2))
    again = _history(tmp_path, steps_done=2)
    again.add(_step(3))
    assert _steps(file) == [1, 2, 3]


def _history(folder: Path, *, steps_done: int = 0) -> History:
    return History(parsed(folder), steps_done=steps_done)


def _step(number: int) -> Step:
    return Step(number=number, epoch=1, loss=1.5, grad_norm=0.1, learning_rate=0.01, tokens=9, records=4, seconds=1)


def _steps(file: Path) -> list[int]:
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


@contextmanager
def _files_no_larger_than(size: int) -> Iterator[None]:
    """A write beyond it fails after what fits, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
