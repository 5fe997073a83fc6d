"""A work queue of keys: deduplicated, single-flight for each key, with back-off and jitter.

Events only add keys; what has to be done is found out when the key's turn comes. A key that is added while it is being
worked on runs once more afterwards, so nothing that happened during the work is missed.

Keys that something happened to go before keys whose time has come, and some workers are kept for them: a suspension is
carried out at once, however many runs wait for something and are looked at again and again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from finetune.clients.kubernetes_errors import KubernetesError
from finetune.logs import described

_log = logging.getLogger(__name__)

BACKOFF_FIRST_SECONDS = 0.2
BACKOFF_MAXIMUM_SECONDS = 60.0
WORKERS = 32
"""Keys that are worked on at once; all that a worker does is to wait for answers."""
PATIENCE = 8
"""So many urgent keys in a row go before a routine one that is due; then it has its turn."""


class Key(NamedTuple):
    """A run's namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class QueueState(NamedTuple):
    """The queue at one moment."""

    urgent: int
    """Keys that are due because something happened to them."""
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
    """The keys that are due, in two lines, with since when. Each key stands in one of them, once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._urgent: OrderedDict[Key, float] = OrderedDict()
        self._routine: OrderedDict[Key, float] = OrderedDict()
        self._overtaken = 0
        self._clock = clock

    def __contains__(self, key: Key) -> bool:
        return key in self._urgent or key in self._routine

    def put(self, key: Key, *, urgent: bool) -> None:
        """Add a key at the end of its line; one that waits already only moves to the urgent line."""
        if urgent:
            self._routine.pop(key, None)
            self._urgent.setdefault(key, self._clock())
        elif key not in self._urgent:
            self._routine.setdefault(key, self._clock())

    def state(self, running: int) -> QueueState:
        """How many wait, and how long the first of them has."""
        first = [next(iter(line.values())) for line in (self._urgent, self._routine) if line]
        oldest = max(0.0, self._clock() - min(first)) if first else 0.0
        return QueueState(len(self._urgent), len(self._routine), running, oldest)

    def take(self, *, only_urgent: bool) -> Key | None:
        """The key whose turn it is, or None."""
        waits = bool(self._routine) and not only_urgent
        if self._urgent and not (waits and self._overtaken >= PATIENCE):
            self._overtaken += waits
            return self._urgent.popitem(last=False)[0]
        if not waits:
            return None
        self._overtaken = 0
        return self._routine.popitem(last=False)[0]


class WorkQueue:
    """Runs `work(key)` for every key that was added, each key by one worker at a time.

    Parameters
    ----------
    work: returns seconds until the key is due again, or None. An exception is logged and tried again after a back-off.
    workers: how many keys are worked on at once; a quarter of them takes urgent keys only.
    told: for the metrics.
    """

    def __init__(self, *, work: Work, workers: int = WORKERS, told: Told | None = None) -> None:
        self._work = work
        self._told = told
        self._workers = workers
        self._reserved = workers // 4
        self._due = Lines()
        self._running: set[Key] = set()
        self._again: dict[Key, bool] = {}
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._group: asyncio.TaskGroup | None = None

    def add(self, key: Key, *, urgent: bool = True) -> None:
        """Make the key due now; not `urgent` where nothing is known to have happened to it.

        Adding it again before its turn changes nothing, except that it may become urgent.
        """
        self._cancel_timer(key)
        if key in self._running:
            self._again[key] = urgent or self._again.get(key, False)
        else:
            self._due.put(key, urgent=urgent)
            self._start_due()

    def add_after(self, key: Key, seconds: float, *, urgent: bool = False) -> None:
        """Make the key due in `seconds`, unless it is due earlier already; the latter may become urgent, too."""
        if key in self._due or key in self._again:
            return
        loop = asyncio.get_running_loop()
        when, timer = loop.time() + seconds, self._timers.get(key)
        if timer is not None and timer.when() <= when:
            if not urgent:
                return
            when = timer.when()
        self._cancel_timer(key)
        self._timers[key] = loop.call_at(when, lambda: self.add(key, urgent=urgent))

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
        while self._group is not None and len(self._running) < self._workers:
            key = self._due.take(only_urgent=len(self._running) >= self._workers - self._reserved)
            if key is None:
                return
            self._running.add(key)
            self._group.create_task(self._serve(key), name=f"work on {key}")

    async def _serve(self, key: Key) -> None:
        delay = await self._attempt(key)
        self._running.discard(key)
        if key in self._again:
            self.add(key, urgent=self._again.pop(key))
        elif delay is not None:
            self.add_after(key, delay)
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
