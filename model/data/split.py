"""Which rows are held out: decided by each row's content and the seed, never by its position.

A row therefore stays on its side when others are added, and two equal rows are never on different sides.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Mapping
from typing import Any

_HASH_RANGE = 1 << 64
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_SORTED = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)


class RowHash:
    """Hashes rows: to numbers below 2**64 that depend on nothing but the row's content and the seed."""

    def __init__(self, seed: int) -> None:
        self._start = hashlib.sha256(b"%d\n" % seed)

    def __call__(self, content: Mapping[str, Any], encoded: bytes) -> int:
        """Return a row's hash; `encoded` is the content as `encode` gives it.

        The fields of a row come in one order, but those of tools, of calls and of the template's variables come as the
        source has them.
        """
        if b'"tool' in encoded or b'"chat_template_kwargs"' in encoded:
            encoded = _SORTED.encode(content).encode()
        digest = self._start.copy()
        digest.update(encoded)
        return int.from_bytes(digest.digest()[:8], "big")


def encode(content: Mapping[str, Any]) -> bytes:
    """Return a row's content as compact JSON."""
    return _ENCODER.encode(content).encode()


def percent_threshold(percent: int) -> int:
    """Return the bound below which a row's hash puts it among the held-out rows."""
    return _HASH_RANGE * percent // 100


class SmallestHashes:
    """Finds the bound that holds out at most `limit` rows, in memory for `limit` numbers.

    Rows of equal content have equal hashes and stay together, so that fewer than `limit` may be held out.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[int] = []  # the limit + 1 smallest hashes so far, negated: the largest is on top
        self._count = 0

    def add(self, value: int) -> None:
        """Take one row's hash into account."""
        self._count += 1
        if len(self._heap) <= self._limit:
            heapq.heappush(self._heap, -value)
        else:
            heapq.heappushpop(self._heap, -value)

    def threshold(self) -> int:
        """Return the bound; never more than half of the rows are below it."""
        keep = min(self._limit, self._count // 2)
        if keep == 0:
            return 0
        return sorted(-value for value in self._heap)[keep]
