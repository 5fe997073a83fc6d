"""A small cache for answers that stay good for some seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

T = TypeVar("T")


class ShortCache:
    """Remembers what a loader returned or raised.

    Callers that ask for the same key at once wait for one load and share what comes of it, a failure too: a storm of
    requests is one question. A caller that gives up leaves the load to the others.

    Parameters
    ----------
    seconds: how long an answer is good, unless `get` says otherwise.
    refused_seconds: how long a `refusal` is; other failures are not remembered at all.
    refusals: the exceptions that are answers: a negative one.
    entries: how many answers and how many refusals are kept.
    """

    def __init__(
        self,
        *,
        seconds: float = 10.0,
        refused_seconds: float = 2.0,
        refusals: tuple[type[Exception], ...] = (),
        entries: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._refused_seconds = refused_seconds
        self._refusals = refusals
        self._clock = clock
        self._known = _Entries(entries)
        self._refused = _Entries(entries)
        self._loading: dict[Hashable, asyncio.Future[object]] = {}

    async def get(self, key: Hashable, load: Callable[[], Awaitable[T]], *, seconds: float | None = None) -> T:
        """The remembered value of `key`, or what `load` returns now; raises what it raised."""
        now = self._clock()
        found = self._known.get(key, now)
        if found is not None:
            return found[0]  # type: ignore[return-value]  # one key has one type
        refusal = self._refused.get(key, now)
        if refusal is not None and isinstance(refusal[0], Exception):
            raise refusal[0].with_traceback(None)
        loading = self._loading.get(key)
        if loading is None:
            loading = asyncio.ensure_future(self._load(key, load, self._seconds if seconds is None else seconds))
            self._loading[key] = loading
            loading.add_done_callback(lambda done: self._loaded(key, done))
        value: object = await asyncio.shield(loading)
        return value  # type: ignore[return-value]  # as above

    async def _load(self, key: Hashable, load: Callable[[], Awaitable[object]], seconds: float) -> object:
        try:
            value = await load()
        except self._refusals as error:
            self._refused.put(key, error, self._clock(), self._refused_seconds)
            raise
        self._known.put(key, value, self._clock(), seconds)
        return value

    def _loaded(self, key: Hashable, done: asyncio.Future[object]) -> None:
        del self._loading[key]
        if not done.cancelled():
            done.exception()  # seen, also where every caller has given up


class _Entries:
    """Values with a time until which they are good, the oldest forgotten first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: dict[Hashable, tuple[float, object]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, now: float) -> tuple[object] | None:
        found = self._entries.get(key)
        return (found[1],) if found is not None and found[0] > now else None

    def put(self, key: Hashable, value: object, now: float, seconds: float) -> None:
        self._entries.pop(key, None)
        if len(self._entries) >= self._size:
            self._entries = {old: entry for old, entry in self._entries.items() if entry[0] > now}
        if len(self._entries) >= self._size:
            self._entries.pop(next(iter(self._entries)))
        self._entries[key] = (now + seconds, value)
