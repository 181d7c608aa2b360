"""A function over chunks of data, in other processes: results come in order, and only a few chunks are held at once.

The processes are started afresh, as a fork of one with threads may hang, and end when this one does, however it ends.
"""

import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")

AHEAD = 2
"""Chunks for each process that wait or are done."""

_function: Callable[[Any], Any]


def mapped(function: Callable[[Chunk], Result], chunks: Iterable[Chunk], *, workers: int) -> Iterator[Result]:
    """`function` of each chunk, in order; in this process if there is but one worker."""
    if workers < 2:
        yield from map(function, chunks)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(function,))
    left = iter(chunks)
    waiting: deque[Future[Result]] = deque()
    try:
        while True:
            for chunk in itertools.islice(left, workers * AHEAD - len(waiting)):
                waiting.append(pool.submit(_call, chunk))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(function: Callable[[Any], Any]) -> None:
    global _function  # noqa: PLW0603 - what a process of the pool is for, sent once instead of with each chunk
    _function = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _call(chunk: Any) -> Any:
    return _function(chunk)
