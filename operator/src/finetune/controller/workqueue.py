"""A work queue of keys: deduplicated, single-flight for each key, with back-off and jitter.

Events only add keys; what has to be done is found out when the key's turn comes. A key that is added while it is being
worked on runs once more afterwards, so nothing that happened during the work is missed.

What somebody wants goes first; then new runs, for a GPU stands idle until they have their Jobs; then ends; then all
else that has happened; then keys whose time has come. Workers are kept for the better ones: a suspension is carried out
at once, however many runs wait for something or call a registry that hangs. No line starves: each has its turn after
some others. While new runs are on their way to their Jobs few others are worked on, for all share one API server and
one registry; what happens to a run until its turn comes is dealt with in one pass.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from typing import NamedTuple

from finetune.clients.kubernetes_errors import KubernetesError
from finetune.logs import described

_log = logging.getLogger(__name__)

BACKOFF_FIRST_SECONDS = 0.2
BACKOFF_MAXIMUM_SECONDS = 60.0
WORKERS = 32
"""Keys that are worked on at once; all that a worker does is to wait for answers."""
BIRTH_WORKERS = 8
"""New runs that are worked on at once, if need be beside those: more of them would only wait for each other."""
WISH_WORKERS = 8
"""The same for wishes alone, beside all of those."""
FEW_WORKERS = 2
"""What is left for all other keys while there are new runs."""
PATIENCE = 8
"""So many keys of better lines in a row go before one that is due; then it has its turn."""


class Key(NamedTuple):
    """A run's namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Line(IntEnum):
    """Why a key is due; lower numbers go first."""

    WISH = 0
    """Somebody has changed the run: it shall rest, say."""
    BIRTH = 1
    """The run was made, and has no Job yet."""
    END = 2
    """Its Job or one of its pods has ended."""
    NEWS = 3
    """Something else has happened to it."""
    ROUTINE = 4
    """Nothing is known to have happened: its time has come."""


class QueueState(NamedTuple):
    """The queue at one moment."""

    urgent: int
    """Keys that are due because of a wish, or because something happened."""
    routine: int
    """Keys that are due to be looked at again."""
    running: int
    """Keys that are worked on."""
    oldest_seconds: float
    """How long the key that waits longest has been due; 0 when none is."""


Work = Callable[[Key], Awaitable[float | None]]
Told = Callable[[float, Exception | None], None]
"""Told of every pass: how long it took, and its error."""


def backoff_seconds(failures: int, spread: float) -> float:
    """Seconds before the next try after `failures` failures in a row; `spread` in 0..1 takes off up to half."""
    full = min(BACKOFF_MAXIMUM_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(failures - 1, 20))
    return full * (1.0 - spread / 2.0)


class Lines:
    """The keys that are due, with since when, and whose turn it is. Each key stands in one line, once.

    Parameters
    ----------
    workers: how many keys are worked on at once; a quarter of them takes no routine, and some more take new runs and
        wishes alone.
    """

    def __init__(self, workers: int = WORKERS, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines: dict[Line, OrderedDict[Key, float]] = {line: OrderedDict() for line in Line}
        self._overtaken: Counter[Line] = Counter()
        self._limits = {
            Line.WISH: workers + BIRTH_WORKERS + WISH_WORKERS,
            Line.BIRTH: workers + BIRTH_WORKERS,
            Line.END: workers,
            Line.NEWS: workers,
            Line.ROUTINE: workers - workers // 4,
        }
        self._clock = clock

    def __contains__(self, key: Key) -> bool:
        return any(key in each for each in self._lines.values())

    def put(self, key: Key, line: Line) -> None:
        """Add a key at the end of its line; one that waits already may only move to a better one."""
        if any(key in self._lines[each] for each in Line if each <= line):
            return
        for each in Line:
            self._lines[each].pop(key, None)
        self._lines[line][key] = self._clock()

    def state(self, running: int) -> QueueState:
        """How many wait, and how long the first of them has."""
        first = [next(iter(line.values())) for line in self._lines.values() if line]
        oldest = max(0.0, self._clock() - min(first)) if first else 0.0
        routine = len(self._lines[Line.ROUTINE])
        return QueueState(sum(map(len, self._lines.values())) - routine, routine, running, oldest)

    def take(self, running: Mapping[Line, int]) -> tuple[Key, Line] | None:
        """The key whose turn it is and its line, beside those that are worked on; None when none may begin now."""
        waiting = [line for line in Line if self._lines[line] and self._has_place(line, running)]
        if not waiting:
            return None
        line = next((each for each in waiting if self._overtaken[each] >= PATIENCE), waiting[0])
        self._overtaken.update(each for each in waiting if each > line)
        self._overtaken[line] = 0
        return self._lines[line].popitem(last=False)[0], line

    def _has_place(self, line: Line, running: Mapping[Line, int]) -> bool:
        """Whether one more key of this line may be worked on."""
        if sum(running.values()) >= self._limits[line]:
            return False
        births = running.get(Line.BIRTH, 0)
        if line is Line.BIRTH:
            return births < BIRTH_WORKERS
        if line is Line.WISH or not (births or self._lines[Line.BIRTH]):
            return True
        return sum(count for each, count in running.items() if each > Line.BIRTH) < FEW_WORKERS


class _Timer(NamedTuple):
    """A key that is due later."""

    handle: asyncio.TimerHandle
    line: Line


class WorkQueue:
    """Runs `work(key)` for every key that was added, each key by one worker at a time.

    Parameters
    ----------
    work: returns seconds until the key is due again, or None. An exception is logged and tried again after a back-off.
    workers: see `Lines`.
    told: for the metrics.
    """

    def __init__(self, *, work: Work, workers: int = WORKERS, told: Told | None = None) -> None:
        self._work = work
        self._told = told
        self._due = Lines(workers)
        self._running: dict[Key, Line] = {}
        self._again: dict[Key, Line] = {}
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, _Timer] = {}
        self._group: asyncio.TaskGroup | None = None

    def add(self, key: Key, line: Line = Line.NEWS) -> None:
        """Make the key due now. Adding it again before its turn changes nothing, except that it may move forward."""
        timer = self._cancel_timer(key)
        line = line if timer is None else min(line, timer.line)
        if key in self._running:
            self._again[key] = min(line, self._again.get(key, line))
        else:
            self._due.put(key, line)
            self._start_due()

    def add_after(self, key: Key, seconds: float, line: Line = Line.ROUTINE) -> None:
        """Make the key due in `seconds`, unless it is due earlier already; then it may move to a better line."""
        if key in self._due or key in self._again:
            self.add(key, line)
            return
        loop = asyncio.get_running_loop()
        when, timer = loop.time() + seconds, self._cancel_timer(key)
        if timer is not None:
            when, line = min(when, timer.handle.when()), min(line, timer.line)
        self._timers[key] = _Timer(loop.call_at(when, lambda: self.add(key, line)), line)

    def state(self) -> QueueState:
        """The queue at this moment."""
        return self._due.state(len(self._running))

    async def run(self) -> None:
        """Work until cancelled; then cancels what is under way."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                try:
                    self._start_due()
                    await asyncio.Event().wait()
                finally:
                    self._group = None  # it takes no more tasks, and timers still fire until all have ended
        finally:
            for key in list(self._timers):
                self._cancel_timer(key)

    def _start_due(self) -> None:
        while self._group is not None and (turn := self._due.take(Counter(self._running.values()))) is not None:
            key, line = turn
            self._running[key] = line
            self._group.create_task(self._serve(key), name=f"work on {key}")

    async def _serve(self, key: Key) -> None:
        delay = await self._attempt(key)
        del self._running[key]
        if key in self._again:
            self.add(key, self._again.pop(key))
        elif delay is not None:  # what goes on at once is in the middle of something
            self.add_after(key, delay, Line.ROUTINE if delay else Line.NEWS)
        self._start_due()

    async def _attempt(self, key: Key) -> float | None:
        started = time.monotonic()
        try:
            delay = await self._work(key)
        except Exception as error:  # noqa: BLE001 - whatever one run does, the others must go on; it is retried
            self._tell(started, error)
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            trace = None if failures > 1 or isinstance(error, KubernetesError) else error
            _log.error(
                "%s: failed %d times in a row, trying again: %s", key, failures, described(error), exc_info=trace
            )
            return backoff_seconds(failures, random.random())  # noqa: S311 - jitter, not cryptography
        self._tell(started, None)
        self._failures.pop(key, None)
        return delay

    def _tell(self, started: float, error: Exception | None) -> None:
        if self._told is not None:
            self._told(time.monotonic() - started, error)

    def _cancel_timer(self, key: Key) -> _Timer | None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.handle.cancel()
        return timer
