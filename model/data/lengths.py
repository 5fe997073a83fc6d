"""Percentiles of lengths without keeping them all."""

from __future__ import annotations

import math
from collections import Counter

_EXACT = 1024
_SHARES = (50, 90, 99)


class Lengths:
    """Counts lengths: exactly up to 1,024, above that to three digits; the largest is exact."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._largest = 0

    def add(self, length: int) -> None:
        """Take one length, a whole number that is not negative."""
        if length >= _EXACT:
            self._largest = max(self._largest, length)
            unit = 10 ** (len(str(length)) - 3)
            length -= length % unit
        self._counts[length] += 1

    def summary(self) -> dict[str, int]:
        """Return p50, p90, p99 and max; a percentile is the smallest length that this share of rows does not exceed."""
        if not self._counts:
            return {}
        total = self._counts.total()
        ordered = sorted(self._counts)
        result: dict[str, int] = {}
        seen = 0
        shares = iter(_SHARES)
        share: int | None = next(shares)
        for length in ordered:
            seen += self._counts[length]
            while share is not None and seen >= math.ceil(total * share / 100):
                result[f"p{share}"] = length
                share = next(shares, None)
        return {**result, "max": max(self._largest, ordered[-1])}
