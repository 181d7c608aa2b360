"""A function in other processes: the order, the memory, the end."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from finetune_trainer.data import parallel
from tests.pool_work import square


def test_results_come_in_order_from_other_processes() -> None:
    found = list(parallel.mapped(square, range(50), workers=2))
    assert [each for each, _ in found] == [n * n for n in range(50)]
    assert os.getpid() not in {process for _, process in found}


def test_one_worker_is_this_process() -> None:
    assert {process for _, process in parallel.mapped(square, range(5), workers=1)} == {os.getpid()}


def test_only_a_few_chunks_are_taken_ahead() -> None:
    taken: list[int] = []

    def chunks() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = parallel.mapped(square, chunks(), workers=2)
    for _ in range(10):
        next(results)
    assert len(taken) <= 10 + 2 * parallel.AHEAD
    results.close()  # type: ignore[attr-defined]


def test_an_error_in_a_worker_is_raised_here() -> None:
    with pytest.raises(ValueError, match="-1 is negative"):
        list(parallel.mapped(square, [1, -1, 2], workers=2))


def test_workers_end_with_the_process_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import time\n"
        "from finetune_trainer.data import parallel\n"
        "from tests.pool_work import nap\n"
        "if __name__ == '__main__':\n"
        "    for _ in parallel.mapped(nap, range(1000), workers=2): print('.', flush=True)\n"
    )
    (tmp_path / "program.py").write_text(program)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout is not None
    process.stdout.readline()
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "workers are still there"
        time.sleep(0.05)
