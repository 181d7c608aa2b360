"""The work queue: each run once, one worker a run, and whatever fails is tried again."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator import workqueue
from finetune_operator.errors import ConflictError, TransientError
from finetune_operator.names import Key
from finetune_operator.workqueue import WorkQueue

A, B, C = (Key("ml", name) for name in "abc")


class Work:
    """Looks at runs as it is told to, and remembers which."""

    def __init__(self, look: Callable[[Key], Awaitable[float | None]] | None = None) -> None:
        self.seen: list[Key] = []
        self._look = look
        self._change = asyncio.Condition()

    async def __call__(self, key: Key) -> float | None:
        self.seen.append(key)
        async with self._change:
            self._change.notify_all()
        return await self._look(key) if self._look else None

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5), self._change:
            await self._change.wait_for(lambda: len(self.seen) >= count)


@asynccontextmanager
async def working(work: Work, *, workers: int = 4) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(work, workers=workers, jitter=lambda: 0.0)
    task = asyncio.create_task(queue.run())
    yield queue
    task.cancel()
    await asyncio.wait([task])


async def idle(queue: WorkQueue) -> None:
    """Until nothing waits and nothing is being worked on."""
    async with asyncio.timeout(5):
        while queue.depth or queue.longest():  # noqa: ASYNC110 - the queue tells nobody when it is empty
            await asyncio.sleep(0.001)


async def test_a_run_named_many_times_is_looked_at_once() -> None:
    work = Work()
    queue = WorkQueue(work, workers=2)
    for key in (A, B, A, A):
        queue.add(key)
    assert queue.depth == 2
    task = asyncio.create_task(queue.run())
    await work.until(2)
    await idle(queue)
    task.cancel()
    assert work.seen == [A, B]


async def test_a_run_named_while_it_is_looked_at_gets_one_more_look_and_never_two_at_a_time() -> None:
    release, busy, most = asyncio.Event(), 0, 0

    async def look(_: Key) -> None:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await release.wait()
        busy -= 1

    work = Work(look)
    async with working(work) as queue:
        queue.add(A)
        await work.until(1)
        queue.add(A)
        queue.add(A)
        await asyncio.sleep(0.01)
        assert work.seen == [A]
        release.set()
        await work.until(2)
        await idle(queue)
    assert (work.seen, most) == ([A, A], 1)


async def test_many_runs_are_looked_at_at_once_and_no_more_than_there_are_workers() -> None:
    release = asyncio.Event()

    async def look(_: Key) -> None:
        await release.wait()

    work = Work(look)
    async with working(work, workers=2) as queue:
        for key in (A, B, C):
            queue.add(key)
        await work.until(2)
        await asyncio.sleep(0.01)
        assert (work.seen, queue.depth) == ([A, B], 1)
        assert queue.longest() > 0
        release.set()
        await work.until(3)


async def test_runs_of_one_namespace_keep_no_other_s_waiting() -> None:
    work = Work()
    queue = WorkQueue(work, workers=1)
    flood = [Key("flood", str(number)) for number in range(100)]
    for key in (*flood[:99], A, B, Key("other", "x"), flood[99]):
        queue.add(key)
    task = asyncio.create_task(queue.run())
    await work.until(103)
    task.cancel()
    assert work.seen[:6] == [flood[0], A, Key("other", "x"), flood[1], B, flood[2]]
    assert [key for key in work.seen if key.namespace == "flood"] == flood
    assert queue.depth == 0


async def test_of_several_times_to_look_the_earliest_counts() -> None:
    work = Work()
    async with working(work) as queue:
        queue.add_after(A, 60)
        queue.add_after(A, 0.01)
        queue.add_after(A, 60)
        await work.until(1)
        await asyncio.sleep(0.03)
    assert work.seen == [A]


async def test_a_look_now_replaces_the_look_later() -> None:
    work = Work()
    async with working(work) as queue:
        queue.add_after(A, 0.02)
        queue.add(A)
        await work.until(1)
        await asyncio.sleep(0.05)
    assert work.seen == [A]


async def test_a_look_may_ask_for_the_next() -> None:
    pauses = iter([0.0, 0.01, None])

    async def look(_: Key) -> float | None:
        return next(pauses)

    work = Work(look)
    async with working(work) as queue:
        queue.add(A)
        await work.until(3)
        await asyncio.sleep(0.03)
    assert work.seen == [A, A, A]


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (ConflictError("changed"), logging.DEBUG),
        (TransientError("no answer"), logging.WARNING),
        (ZeroDivisionError("a bug"), logging.ERROR),
    ],
    ids=["a conflict is routine", "trouble outside is a warning", "a bug is an error"],
)
async def test_what_fails_is_tried_again_and_the_others_go_on(
    error: Exception, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([error, error])

    async def look(key: Key) -> None:
        if key == A and (trouble := next(failures, None)):
            raise trouble

    work = Work(look)
    with caplog.at_level(logging.DEBUG, logger="finetune_operator"):
        async with working(work, workers=1) as queue:
            queue.add(A)
            queue.add(B)
            await work.until(4)
    assert work.seen == [A, B, A, A]
    assert [record.levelno for record in caplog.records] == [level, level]


async def test_a_server_that_asks_for_patience_gets_it() -> None:
    async def look(_: Key) -> None:
        raise TransientError("too many requests", retry_after=30)

    work = Work(look)
    async with working(work) as queue:
        queue.add(A)
        await work.until(1)
        await asyncio.sleep(0.2)
    assert work.seen == [A], "without the wish it would have been tried again by now"


@given(st.integers(1, 1000), st.floats(0, 1))
def test_pauses_grow_and_are_bounded(failures: int, jitter: float) -> None:
    pause = workqueue.pause(failures, jitter=jitter)
    assert 0.05 <= pause <= 60
    assert workqueue.pause(failures + 1, jitter=jitter) >= pause


def test_runs_that_fail_together_are_not_tried_again_together() -> None:
    assert workqueue.pause(3, jitter=0) < workqueue.pause(3, jitter=0.5) < workqueue.pause(3, jitter=1)
