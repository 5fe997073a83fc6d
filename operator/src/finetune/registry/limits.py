"""How often a run's trainer may post: a bucket of tokens for each run."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from .errors import TooManyRequests

POSTS_A_SECOND = 1.0
BURST = 20
MAX_RUNS = 4096
"""Runs whose buckets are kept; one that is forgotten starts with a full one."""


class PostLimits:
    """Takes a token for each post; a bucket fills again by `POSTS_A_SECOND` up to `BURST`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, uid: str) -> None:
        """Raises `TooManyRequests` when the run's bucket is empty."""
        now = self._clock()
        tokens, since = self._buckets.pop(uid, (float(BURST), now))
        tokens = min(float(BURST), tokens + (now - since) * POSTS_A_SECOND)
        self._buckets[uid] = (max(tokens - 1, 0.0) if tokens >= 1 else tokens, now)
        if len(self._buckets) > MAX_RUNS:
            self._buckets.popitem(last=False)
        if tokens < 1:
            raise TooManyRequests(
                f"run {uid} has posted more than {BURST} times in a row",
                hint=f"post at most {POSTS_A_SECOND:g} time a second, with all steps since the last one",
                retry_seconds=math.ceil((1 - tokens) / POSTS_A_SECOND),
            )
