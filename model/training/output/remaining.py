"""How long a training will still take."""

from __future__ import annotations

import time
from collections.abc import Callable


class RemainingTime:
    """Estimates the time left from the steps of this process alone, so that a resume does not distort it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start: tuple[float, int] | None = None

    def seconds(self, step: int, total_steps: int) -> int | None:
        """Return the seconds left after `step`; None after the first step seen, which is mostly warm-up."""
        if self._start is None:
            self._start = (self._clock(), step)
            return None
        began, first = self._start
        return round((self._clock() - began) / (step - first) * (total_steps - step)) if step > first else None
