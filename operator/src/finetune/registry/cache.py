"""A small cache for answers that stay good for some seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

T = TypeVar("T")


class ShortCache:
    """Remembers what a loader returned, for `seconds`; what it raised is not remembered.

    Callers that ask for the same key at once wait for one load: a storm of requests is one question.
    """

    def __init__(
        self, *, seconds: float = 10.0, entries: int = 4096, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._entries = entries
        self._clock = clock
        self._known: dict[Hashable, tuple[float, object]] = {}
        self._loading: dict[Hashable, asyncio.Lock] = {}

    async def get(self, key: Hashable, load: Callable[[], Awaitable[T]]) -> T:
        """The remembered value of `key`, or what `load` returns now."""
        lock = self._loading.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                found = self._known.get(key)
                if found is not None and found[0] > self._clock():
                    return found[1]  # type: ignore[return-value]  # one key has one type
                value = await load()
                self._remember(key, value)
                return value
        finally:
            if not lock.locked():
                self._loading.pop(key, None)

    def _remember(self, key: Hashable, value: object) -> None:
        now = self._clock()
        self._known.pop(key, None)
        if len(self._known) >= self._entries:
            self._known = {old: entry for old, entry in self._known.items() if entry[0] > now}
        if len(self._known) >= self._entries:
            self._known.pop(next(iter(self._known)))  # the oldest
        self._known[key] = (now + self._seconds, value)
