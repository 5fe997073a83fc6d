"""A work queue of keys: deduplicated, single-flight for each key, with back-off and jitter.

Events only add keys; what has to be done is found out when the key's turn comes. A key that is added while it is being
worked on runs once more afterwards, so nothing that happened during the work is missed.

What somebody wants goes before what has happened, and that before keys whose time has come; for each some workers are
kept: a suspension is carried out at once, however many runs wait for something or call a registry that hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import NamedTuple

from finetune.clients.kubernetes_errors import KubernetesError
from finetune.logs import described

_log = logging.getLogger(__name__)

BACKOFF_FIRST_SECONDS = 0.2
BACKOFF_MAXIMUM_SECONDS = 60.0
WORKERS = 32
"""Keys that are worked on at once; all that a worker does is to wait for answers."""
WISH_WORKERS = 8
"""The same for wishes alone, beside those."""
PATIENCE = 8
"""So many urgent keys in a row go before a routine one that is due; then it has its turn."""


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
    NEWS = 1
    """The run was made, or something happened to its Job or pods."""
    ROUTINE = 2
    """Nothing is known to have happened: its time has come."""


class QueueState(NamedTuple):
    """The queue at one moment."""

    urgent: int
    """Keys that are due because of a wish, or because something happened to them."""
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
    """The keys that are due, with since when. Each key stands in one line, once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines: dict[Line, OrderedDict[Key, float]] = {line: OrderedDict() for line in Line}
        self._overtaken = 0
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

    def take(self, last: Line = Line.ROUTINE) -> Key | None:
        """The key whose turn it is, of the lines up to the last; or None."""
        waits = last is Line.ROUTINE and bool(self._lines[Line.ROUTINE])
        line = next((each for each in (Line.WISH, Line.NEWS) if each <= last and self._lines[each]), None)
        if line is not None and not (waits and self._overtaken >= PATIENCE):
            self._overtaken += waits
            return self._lines[line].popitem(last=False)[0]
        if not waits:
            return None
        self._overtaken = 0
        return self._lines[Line.ROUTINE].popitem(last=False)[0]


class WorkQueue:
    """Runs `work(key)` for every key that was added, each key by one worker at a time.

    Parameters
    ----------
    work: returns seconds until the key is due again, or None. An exception is logged and tried again after a back-off.
    workers: how many keys are worked on at once; a quarter of them takes no routine, and some more take wishes alone.
    told: for the metrics.
    """

    def __init__(self, *, work: Work, workers: int = WORKERS, told: Told | None = None) -> None:
        self._work = work
        self._told = told
        self._workers = workers
        self._due = Lines()
        self._running: set[Key] = set()
        self._again: dict[Key, Line] = {}
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._group: asyncio.TaskGroup | None = None

    def add(self, key: Key, line: Line = Line.NEWS) -> None:
        """Make the key due now. Adding it again before its turn changes nothing, except that it may move forward."""
        self._cancel_timer(key)
        if key in self._running:
            self._again[key] = min(line, self._again.get(key, line))
        else:
            self._due.put(key, line)
            self._start_due()

    def add_after(self, key: Key, seconds: float, line: Line = Line.ROUTINE) -> None:
        """Make the key due in `seconds`, unless it is due earlier already; the latter may move to a better line."""
        if key in self._due or key in self._again:
            return
        loop = asyncio.get_running_loop()
        when, timer = loop.time() + seconds, self._timers.get(key)
        if timer is not None and timer.when() <= when:
            if line is Line.ROUTINE:
                return
            when = timer.when()
        self._cancel_timer(key)
        self._timers[key] = loop.call_at(when, lambda: self.add(key, line))

    def state(self) -> QueueState:
        """The queue at this moment."""
        return self._due.state(len(self._running))

    async def run(self) -> None:
        """Work until cancelled; then cancels what is under way."""
        try:
            async with asyncio.TaskGroup() as self._group:
                self._start_due()
                await asyncio.Event().wait()
        finally:
            self._group = None
            for key in list(self._timers):
                self._cancel_timer(key)

    def _start_due(self) -> None:
        while self._group is not None and (last := self._last_line()) is not None:
            key = self._due.take(last)
            if key is None:
                return
            self._running.add(key)
            self._group.create_task(self._serve(key), name=f"work on {key}")

    def _last_line(self) -> Line | None:
        """The last line that the next free worker serves; None when all workers are busy."""
        limits = {
            Line.ROUTINE: self._workers - self._workers // 4,
            Line.NEWS: self._workers,
            Line.WISH: self._workers + WISH_WORKERS,
        }
        return next((line for line, limit in limits.items() if len(self._running) < limit), None)

    async def _serve(self, key: Key) -> None:
        delay = await self._attempt(key)
        self._running.discard(key)
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

    def _cancel_timer(self, key: Key) -> None:
        with contextlib.suppress(KeyError):
            self._timers.pop(key).cancel()
