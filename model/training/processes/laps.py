"""Where the time before the first step goes."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Laps:
    """Takes the time of one part after the other, the first of which began with the process.

    Parameters
    ----------
    began
        When the process was started.
    """

    def __init__(self, began: datetime) -> None:
        self._last = time.monotonic() - max(0.0, (datetime.now(UTC) - began).total_seconds())
        self.seconds: dict[str, float] = {}
        """What each part took, by its name."""

    def lap(self, name: str) -> None:
        """End a part."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._last, 3)
        self._last = now
