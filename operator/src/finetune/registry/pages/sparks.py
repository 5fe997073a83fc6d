"""The small curves of lists, made once while their run tells nothing new: a page has fifty of a thousand points."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from .charts import sparkline
from .queries import PageQueries

PARTS = 24
MOST_KEPT = 5000
"""About half a kilobyte each."""


class Sparks:
    """Curves of the training loss by run, remembered until the run tells more."""

    def __init__(self, queries: PageQueries) -> None:
        self._queries = queries
        self._kept: dict[str, tuple[datetime | None, str]] = {}

    async def of(self, told: Mapping[str, datetime | None]) -> dict[str, str]:
        """The curves of runs, by uid; `told` is when each run told something last."""
        found = {uid: kept[1] for uid, time in told.items() if (kept := self._kept.get(uid)) and kept[0] == time}
        stale = [uid for uid in told if uid not in found]
        if stale:
            outlines = await self._queries.outlines(stale, ["loss"], parts=PARTS)
            found |= {uid: sparkline(outlines.get((uid, "loss"), ())) for uid in stale}
            if len(self._kept) + len(stale) > MOST_KEPT:
                self._kept.clear()
            self._kept |= {uid: (told[uid], found[uid]) for uid in stale}
        return found
