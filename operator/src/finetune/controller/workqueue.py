"""A work queue of keys: deduplicated, single-flight for each key, with back-off and jitter.

Events only add keys; what has to be done is found out when the key's turn comes. A key that is added while it is being
worked on runs once more afterwards, so nothing that happened during the work is missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple

_log = logging.getLogger(__name__)

BACKOFF_FIRST_SECONDS = 0.2
BACKOFF_MAXIMUM_SECONDS = 60.0


class Key(NamedTuple):
    """A run's namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


Work = Callable[[Key], Awaitable[float | None]]


def backoff_seconds(failures: int, spread: float) -> float:
    """Seconds before the next try after `failures` failures in a row; `spread` in 0..1 takes off up to half."""
    full = min(BACKOFF_MAXIMUM_SECONDS, BACKOFF_FIRST_SECONDS * 2.0 ** min(failures - 1, 20))
    return full * (1.0 - spread / 2.0)


class WorkQueue:
    """Runs `work(key)` for every key that was added, each key by one worker at a time.

    Parameters
    ----------
    work: returns seconds until the key is due again, or None. An exception is logged and tried again after a back-off.
    workers: how many keys are worked on at once.
    """

    def __init__(self, *, work: Work, workers: int = 8) -> None:
        self._work = work
        self._workers = workers
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()
        self._running: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}

    def add(self, key: Key) -> None:
        """Make the key due now. Adding it again before its turn changes nothing."""
        self._cancel_timer(key)
        if key in self._running:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Make the key due in `seconds`, unless it is due earlier already."""
        if key in self._waiting or key in self._again:
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= loop.time() + seconds:
            return
        self._cancel_timer(key)
        self._timers[key] = loop.call_later(seconds, self.add, key)

    async def run(self) -> None:
        """Work until cancelled; then cancels what is under way."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._workers):
                    group.create_task(self._serve())
        finally:
            for key in list(self._timers):
                self._cancel_timer(key)

    async def _serve(self) -> None:
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            self._running.add(key)
            delay = await self._attempt(key)
            self._running.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            elif delay is not None:
                self.add_after(key, delay)

    async def _attempt(self, key: Key) -> float | None:
        try:
            delay = await self._work(key)
        except Exception:  # noqa: BLE001 - whatever one run does, the others must go on; it is logged and retried
            self._failures[key] = self._failures.get(key, 0) + 1
            _log.exception("%s: failed %d times in a row, trying again", key, self._failures[key])
            return backoff_seconds(self._failures[key], random.random())  # noqa: S311 - jitter, not cryptography
        self._failures.pop(key, None)
        return delay

    def _cancel_timer(self, key: Key) -> None:
        with contextlib.suppress(KeyError):
            self._timers.pop(key).cancel()
