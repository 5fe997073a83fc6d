"""The work queue: every key's turn comes, one worker a key, failures come again later."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from finetune.controller.workqueue import (
    BACKOFF_MAXIMUM_SECONDS,
    PATIENCE,
    Key,
    Line,
    Lines,
    Work,
    WorkQueue,
    backoff_seconds,
)

A, B = Key("ns", "a"), Key("ns", "b")


@contextlib.asynccontextmanager
async def serving(work: Work, workers: int = 4) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(work=work, workers=workers)
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_key_that_is_added_twice_runs_once() -> None:
    done: list[Key] = []
    finished = asyncio.Event()

    async def work(key: Key) -> None:
        done.append(key)
        if key == B:
            finished.set()

    async with serving(work, workers=1) as queue:
        for key in (A, A, A, B):
            queue.add(key)
        await asyncio.wait_for(finished.wait(), 5)
    assert done == [A, B]


async def test_a_key_that_changes_while_it_is_worked_on_runs_again_and_never_beside_itself() -> None:
    started, release, twice = asyncio.Event(), asyncio.Event(), asyncio.Event()
    active, most, passes = 0, 0, 0

    async def work(key: Key) -> None:
        nonlocal active, most, passes
        assert key == A
        active, passes = active + 1, passes + 1
        most = max(most, active)
        started.set()
        await release.wait()
        active -= 1
        if passes == 2:
            twice.set()

    async with serving(work) as queue:
        queue.add(A)
        await asyncio.wait_for(started.wait(), 5)
        queue.add(A)
        queue.add(A)
        release.set()
        await asyncio.wait_for(twice.wait(), 5)
    assert (most, passes) == (1, 2)


async def test_a_failure_is_tried_again_and_does_not_stop_the_others() -> None:
    tries, other = [0], asyncio.Event()
    recovered = asyncio.Event()

    async def work(key: Key) -> None:
        if key == B:
            other.set()
            return
        tries[0] += 1
        if tries[0] < 3:
            raise RuntimeError("not yet")
        recovered.set()

    async with serving(work, workers=1) as queue:
        queue.add(A)
        queue.add(B)
        await asyncio.wait_for(other.wait(), 5)
        await asyncio.wait_for(recovered.wait(), 5)
    assert tries[0] == 3


async def test_a_returned_delay_brings_the_key_back() -> None:
    passes, again = [0], asyncio.Event()

    async def work(key: Key) -> float | None:
        del key
        passes[0] += 1
        if passes[0] == 2:
            again.set()
            return None
        return 0.01

    async with serving(work) as queue:
        queue.add(A)
        await asyncio.wait_for(again.wait(), 5)


async def test_what_is_due_later_comes_once_at_the_earlier_time_and_may_become_urgent() -> None:
    passes: list[str] = []
    done = asyncio.Event()

    async def work(key: Key) -> None:
        passes.append(key.name)
        if len(passes) == 2:
            done.set()

    async with serving(work, workers=1) as queue:
        queue.add_after(B, 0.02)
        for _ in range(3):
            queue.add_after(A, 0.02, Line.NEWS)
        queue.add_after(A, 600, Line.NEWS)
        queue.add_after(A, 600)
        await asyncio.wait_for(done.wait(), 5)
    assert sorted(passes) == ["a", "b"]
    queue = WorkQueue(work=work)
    queue.add_after(A, 600)
    queue.add_after(A, 900, Line.NEWS)
    timer = queue._timers[A]
    timer._run()
    assert queue.state()[:2] == (1, 0), "urgent, at the earlier time"
    timer.cancel()


@pytest.mark.parametrize(("failures", "full"), [(1, 0.2), (2, 0.4), (5, 3.2), (50, BACKOFF_MAXIMUM_SECONDS)])
def test_backoff_doubles_up_to_a_minute_and_is_spread(failures: int, full: float) -> None:
    assert backoff_seconds(failures, 0.0) == pytest.approx(full)
    assert backoff_seconds(failures, 1.0) == pytest.approx(full / 2)


def test_what_something_happened_to_goes_before_what_only_waits() -> None:
    lines = Lines()
    for name in ("r1", "r2", "r3"):
        lines.put(Key("ns", name), Line.ROUTINE)
    lines.put(A, Line.NEWS)
    lines.put(Key("ns", "r3"), Line.NEWS)
    lines.put(A, Line.ROUTINE)
    taken = [lines.take() for _ in range(5)]
    assert [key and key.name for key in taken] == ["a", "r3", "r1", "r2", None]


def test_a_routine_key_has_its_turn_among_ever_so_many_urgent_ones() -> None:
    lines = Lines()
    lines.put(A, Line.ROUTINE)
    for number in range(3 * PATIENCE):
        lines.put(Key("ns", f"u{number}"), Line.NEWS)
    assert A in [lines.take() for _ in range(PATIENCE + 1)]


def test_a_worker_that_is_kept_for_urgent_keys_takes_no_other() -> None:
    lines = Lines()
    lines.put(A, Line.ROUTINE)
    assert lines.take(Line.NEWS) is None
    lines.put(B, Line.NEWS)
    assert lines.take(Line.NEWS) == B
    assert A in lines


def test_a_wish_goes_before_all_else_and_is_not_taken_back() -> None:
    lines = Lines()
    for key, line in ((A, Line.ROUTINE), (B, Line.NEWS), (A, Line.WISH), (A, Line.NEWS)):
        lines.put(key, line)
    assert lines.state(0)[:2] == (2, 0)
    assert [lines.take(Line.WISH), lines.take(Line.WISH), lines.take(), lines.take()] == [A, None, B, None]


@pytest.mark.parametrize(
    ("busy", "line"), [(Line.ROUTINE, Line.NEWS), (Line.ROUTINE, Line.WISH), (Line.NEWS, Line.WISH)]
)
async def test_a_hundred_runs_that_hang_do_not_hold_up_what_goes_before_them(busy: Line, line: Line) -> None:
    hanging, done = asyncio.Event(), asyncio.Event()

    async def work(key: Key) -> float | None:
        if key == A:
            done.set()
        else:
            await hanging.wait()
        return None

    async with serving(work, workers=8) as queue:
        for number in range(100):
            queue.add(Key("ns", f"waits-{number}"), busy)
        await asyncio.sleep(0)
        queue.add(A, line)
        await asyncio.wait_for(done.wait(), 5)


async def test_keys_that_were_added_before_the_start_are_worked_on() -> None:
    done = asyncio.Event()

    async def work(key: Key) -> None:
        assert key == A
        done.set()

    queue = WorkQueue(work=work)
    queue.add(A)
    task = asyncio.create_task(queue.run())
    await asyncio.wait_for(done.wait(), 5)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
