"""The work queue: every key's turn comes, one worker a key, failures come again later."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

import pytest

from finetune.controller.workqueue import (
    BACKOFF_MAXIMUM_SECONDS,
    BIRTH_WORKERS,
    FEW_WORKERS,
    PATIENCE,
    WORKERS,
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
    timer.handle._run()
    assert queue.state()[:2] == (1, 0), "urgent, at the earlier time"
    timer.handle.cancel()


@pytest.mark.parametrize("second", [Line.NEWS, Line.ROUTINE])
async def test_a_key_that_waits_to_settle_keeps_its_line_whatever_comes_then(second: Line) -> None:
    async def work(key: Key) -> None:
        del key

    queue = WorkQueue(work=work)
    queue.add_after(A, 600, Line.END)
    queue.add_after(A, 900, second)
    queue.add(A, second)
    queue.add(B, Line.NEWS)
    assert [queue._due.take({}), queue._due.take({})] == [(A, Line.END), (B, Line.NEWS)]


async def test_an_end_brings_forward_what_stands_in_a_worse_line_already() -> None:
    async def work(key: Key) -> None:
        del key

    queue = WorkQueue(work=work)
    for key in (B, A):
        queue.add(key, Line.ROUTINE)
    queue.add_after(A, 600, Line.END)
    queue.add_after(A, 600, Line.NEWS)
    assert [queue._due.take({}), queue._due.take({})] == [(A, Line.END), (B, Line.ROUTINE)]


@pytest.mark.parametrize(("failures", "full"), [(1, 0.2), (2, 0.4), (5, 3.2), (50, BACKOFF_MAXIMUM_SECONDS)])
def test_backoff_doubles_up_to_a_minute_and_is_spread(failures: int, full: float) -> None:
    assert backoff_seconds(failures, 0.0) == pytest.approx(full)
    assert backoff_seconds(failures, 1.0) == pytest.approx(full / 2)


def taken(lines: Lines, running: Mapping[Line, int] | None = None) -> str:
    """The names of the keys in the order of their turns, until none may begin."""
    found = []
    while (turn := lines.take(running or {})) is not None:
        found.append(turn[0].name)
    return " ".join(found)


def lines_of(**waiting: int) -> Lines:
    """So many keys in each line."""
    lines = Lines()
    for line, count in waiting.items():
        for number in range(count):
            lines.put(Key("ns", f"{line}{number}"), Line[line.upper()])
    return lines


def test_wishes_come_first_then_new_runs_then_ends_then_news_then_routine() -> None:
    assert taken(lines_of(routine=2, news=1, end=1, birth=1, wish=1)) == "wish0 birth0 end0 news0 routine0 routine1"


def test_a_key_moves_to_a_better_line_and_never_to_a_worse_one() -> None:
    lines = lines_of(routine=3)
    lines.put(A, Line.NEWS)
    lines.put(Key("ns", "routine2"), Line.NEWS)
    lines.put(A, Line.ROUTINE)
    lines.put(Key("ns", "routine1"), Line.WISH)
    assert lines.state(0)[:2] == (3, 1)
    assert taken(lines) == "routine1 a routine2 routine0"


def test_every_line_has_its_turn_among_ever_so_many_better_keys() -> None:
    turns = taken(lines_of(wish=9 * PATIENCE, birth=1, end=1, news=1, routine=1)).split()
    assert set(turns[: PATIENCE + 4]) > {"birth0", "end0", "news0", "routine0"}


@pytest.mark.parametrize(
    ("running", "waiting", "begin"),
    [
        ({Line.NEWS: WORKERS - WORKERS // 4}, {"news": 1, "routine": 1}, "news0"),
        ({Line.NEWS: WORKERS}, {"news": 1, "birth": 1}, "birth0"),
        ({Line.NEWS: WORKERS}, {"news": 1, "wish": 1}, "wish0"),
        ({Line.NEWS: WORKERS, Line.BIRTH: BIRTH_WORKERS}, {"birth": 1, "wish": 1}, "wish0"),
        ({Line.BIRTH: BIRTH_WORKERS}, {"birth": 1, "end": 1}, "end0"),
        ({Line.BIRTH: 1, Line.END: FEW_WORKERS - 1}, {"news": 1}, "news0"),
        ({Line.BIRTH: 1, Line.ROUTINE: FEW_WORKERS}, {"end": 1, "news": 1}, ""),
        ({Line.NEWS: FEW_WORKERS}, {"birth": 1, "news": 1}, "birth0 news0"),
        ({Line.NEWS: FEW_WORKERS}, {"news": 1}, "news0"),
    ],
)
def test_who_may_begin_beside_what_is_worked_on(running: dict[Line, int], waiting: dict[str, int], begin: str) -> None:
    assert taken(lines_of(**waiting), running) == begin


class Simulation:
    """A queue whose keys share a server that does `rate` passes a second, however many are worked on at once.

    Each run comes as a new one, and each of its passes but the last leads to another one, a second later.
    """

    def __init__(self, rate: float, passes: Sequence[Line]) -> None:
        self.now = 0.0
        self.waited: dict[Line, list[float]] = {line: [] for line in Line}
        """From when a key was due until its pass was over."""
        self._lines = Lines(clock=lambda: self.now)
        self._share, self._passes = rate, passes
        self._left: dict[tuple[Key, Line], float] = {}
        self._since: dict[Key, float] = {}
        self._due: list[tuple[float, Key]] = []

    def run(self, arrivals: Iterable[float]) -> float:
        """Serve all runs; returns the time of the last pass."""
        self._due = [(time, Key("ns", f"{number}/0")) for number, time in enumerate(arrivals)]
        while self._due or self._since:
            for time, key in [each for each in self._due if each[0] <= self.now]:
                self._due.remove((time, key))
                self._since[key] = time
                self._lines.put(key, self._passes[self._number(key)])
            while (turn := self._lines.take(Counter(line for _, line in self._left))) is not None:
                self._left[turn] = 1.0
            self.now = round(self.now + STEP, 3)
            for turn in list(self._left):
                self._left[turn] -= STEP * self._share / len(self._left)
            for turn in [turn for turn, left in self._left.items() if left <= 0]:
                del self._left[turn]
                self._over(*turn)
        return self.now

    def _over(self, key: Key, line: Line) -> None:
        self.waited[line].append(self.now - self._since.pop(key))
        following = self._number(key) + 1
        if following < len(self._passes):
            self._due.append((self.now + 1, Key("ns", f"{key.name.partition('/')[0]}/{following}")))

    @staticmethod
    def _number(key: Key) -> int:
        return int(key.name.partition("/")[2])


STEP = 0.02
LIFE = (Line.BIRTH, Line.NEWS, Line.NEWS, Line.END)


def test_new_runs_do_not_wait_for_what_follows_and_nothing_is_done_later_than_without_an_order() -> None:
    """Ten runs a second come for ten seconds; all of their passes would need 20 s of them."""
    arrivals = [number / 10 for number in range(100)]
    ordered, in_turn = Simulation(20, LIFE), Simulation(20, (Line.NEWS, *LIFE[1:]))
    ended, before = ordered.run(arrivals), in_turn.run(arrivals)
    births, first = sorted(ordered.waited[Line.BIRTH]), sorted(in_turn.waited[Line.NEWS])
    assert births[-1] < 0.3
    assert first[len(first) // 2] > 1, "without an order half of all passes wait longer"
    assert ended == pytest.approx(before, abs=1.0)
    assert max(ordered.waited[Line.NEWS]) < ended / 3, "what follows goes on, too"


def test_what_follows_goes_on_while_new_runs_come_faster_than_they_are_served() -> None:
    simulation = Simulation(10, (Line.BIRTH, Line.NEWS))
    simulation.run(number / 20 for number in range(200))
    assert min(simulation.waited[Line.NEWS]) < 1
    assert len(simulation.waited[Line.NEWS]) == 200


@pytest.mark.parametrize(
    ("busy", "line"),
    [
        (Line.ROUTINE, Line.NEWS),
        (Line.ROUTINE, Line.WISH),
        (Line.NEWS, Line.BIRTH),
        (Line.NEWS, Line.WISH),
        (Line.BIRTH, Line.NEWS),
        (Line.BIRTH, Line.WISH),
    ],
)
async def test_a_hundred_runs_that_hang_do_not_hold_up_what_goes_before_them(busy: Line, line: Line) -> None:
    hanging, done = asyncio.Event(), asyncio.Event()

    async def work(key: Key) -> float | None:
        if key == A:
            done.set()
        else:
            await hanging.wait()
        return None

    async with serving(work, workers=BIRTH_WORKERS + 4) as queue:
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


async def test_what_becomes_due_while_the_queue_ends_is_left_alone() -> None:
    begun = asyncio.Event()

    async def work(key: Key) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            queue.add(B if key == A else A)

    async with serving(work) as queue:
        queue.add(A)
        await asyncio.wait_for(begun.wait(), 5)
    assert B in queue._due
