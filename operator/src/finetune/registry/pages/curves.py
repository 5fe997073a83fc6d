"""Shapes of curves, read once while their run tells nothing new: a page has up to fifty of a thousand points each.

Every answer is kept with the moment at which the run told something last; a run that has told more is read again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from .charts import sparkline
from .queries import PageQueries, Part

SPARK_PARTS = 24
MOST_KEPT = 60_000
"""Parts of curves that are remembered, about 200 bytes each; a small curve counts as three."""
SPARK_WEIGHT = 3

Told = Mapping[str, datetime | None]
"""When each run told something last, by uid; those that never did have no points."""
Key = tuple[str, Hashable]
"""A run's uid and what of it."""


class Curves:
    """Curves of runs for lists, charts and comparisons."""

    def __init__(self, queries: PageQueries) -> None:
        self._queries = queries
        self._kept: dict[Key, tuple[datetime | None, Any, int]] = {}
        self._weight = 0

    async def sparks(self, told: Told) -> dict[str, str]:
        """The small curves of the training loss, by uid; empty where there is nothing to see."""

        async def read(stale: Sequence[str]) -> Mapping[Key, str]:
            outlines = await self._queries.outlines(stale, ["loss"], parts=SPARK_PARTS)
            return {(uid, "spark"): sparkline(outlines.get((uid, "loss"), ())) for uid in stale}

        found = await self._of(told, ["spark"], read, lambda _: SPARK_WEIGHT, nothing="")
        return {uid: points for (uid, _), points in found.items()}

    async def outlines(self, told: Told, names: Sequence[str], *, parts: int) -> dict[tuple[str, str], list[Part]]:
        """As `PageQueries.outlines`."""

        async def read(stale: Sequence[str]) -> Mapping[Key, list[Part]]:
            found = await self._queries.outlines(stale, names, parts=parts)
            return {(uid, (name, parts)): outline for (uid, name), outline in found.items()}

        found = await self._of(told, [(name, parts) for name in names], read, len, nothing=[])
        return {(uid, name): outline for (uid, (name, _)), outline in found.items() if outline}

    async def best(self, told: Told, metric: str) -> dict[str, tuple[float, int]]:
        """As `PageQueries.best`."""

        async def read(stale: Sequence[str]) -> Mapping[Key, tuple[float, int]]:
            found = await self._queries.best(stale, metric)
            return {(uid, ("best", metric)): value for uid, value in found.items()}

        found = await self._of(told, [("best", metric)], read, lambda _: 1, nothing=None)
        return {uid: value for (uid, _), value in found.items() if value is not None}

    async def _of(
        self,
        told: Told,
        kinds: Iterable[Hashable],
        read: Callable[[Sequence[str]], Awaitable[Mapping[Any, Any]]],
        weight: Callable[[Any], int],
        *,
        nothing: Any,
    ) -> dict[Any, Any]:
        """What is known of each run; what is missing or old is read by one question, and kept."""
        keys = [(uid, kind) for uid in told for kind in kinds]
        kept = {key: each for key in keys if (each := self._kept.get(key)) and each[0] == told[key[0]]}
        stale = list(dict.fromkeys(uid for uid, kind in keys if (uid, kind) not in kept))
        found = {key: value for key, (_, value, _) in kept.items()}
        if not stale:
            return found
        new = await read(stale)
        for key in keys:
            if key[0] in stale:
                found[key] = value = new.get(key, nothing)
                self._keep(key, told[key[0]], value, 1 + weight(value if value is not None else ()))
        return found

    def _keep(self, key: Key, time: datetime | None, value: Any, weight: int) -> None:
        self._drop(key)
        self._kept[key] = (time, value, weight)
        self._weight += weight
        while self._weight > MOST_KEPT:  # the oldest goes first
            self._drop(next(iter(self._kept)))

    def _drop(self, key: Key) -> None:
        before = self._kept.pop(key, None)
        self._weight -= before[2] if before else 0
