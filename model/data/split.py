"""Which rows are held out: decided by each row's content and the seed, never by its position.

A row therefore stays on its side when others are moved, and two equal rows are never on different sides. Of many rows
each one's hash decides alone; of few, where that would be luck, those with the smallest hashes are held out.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_HASH_RANGE = 1 << 64
_TWO_NUMBERS = struct.Struct(">QQ")
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_SORTED = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)


class RowHash:
    """Hashes rows: to numbers below 2**64 that depend on nothing but the row's content and the seed."""

    def __init__(self, seed: int) -> None:
        self._start = hashlib.sha256(b"%d\n" % seed)

    def __call__(self, content: Mapping[str, Any], encoded: bytes) -> tuple[int, int]:
        """Return two hashes of a row that say nothing of each other; `encoded` is the content as `encode` gives it.

        The first decides whether the row is held out, the second whether it is drawn, where not all are taken.
        The fields of a row come in one order, but those of tools, of calls and of the template's variables come as the
        source has them.
        """
        if b'"tool' in encoded or b'"chat_template_kwargs"' in encoded:
            encoded = _SORTED.encode(content).encode()
        digest = self._start.copy()
        digest.update(encoded)
        return _TWO_NUMBERS.unpack_from(digest.digest())


def encode(content: Mapping[str, Any]) -> bytes:
    """Return a row's content as compact JSON."""
    return _ENCODER.encode(content).encode()


@dataclass(frozen=True)
class Share:
    """How many rows to hold out: a share of them, a number, or the smaller of both; never more than half.

    Parameters
    ----------
    percent
        Share of the rows, None for no bound.
    max_rows
        Number of rows, None for no bound.
    """

    percent: int | None = None
    max_rows: int | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether no row is held out, however many there are."""
        return self.percent == 0 or self.max_rows == 0

    @property
    def largest(self) -> int:
        """How many hashes decide which rows are held out, as far as that is known beforehand."""
        return SMALL_ROWS if self.max_rows is None else self.max_rows

    def of(self, rows: int) -> int:
        """Return how many of so many rows are held out; a share is rounded to the nearest number."""
        bounds = [rows // 2]
        if self.percent is not None:
            bounds.append((rows * self.percent + 50) // 100)
        if self.max_rows is not None:
            bounds.append(self.max_rows)
        return min(bounds)


SMALL_ROWS = 2000
"""Up to how many rows a share of them is held out exactly."""


def percent_threshold(percent: int) -> int:
    """Return the bound below which a row's hash puts it among the held-out rows, where there are many."""
    return _HASH_RANGE * percent // 100


class SmallestHashes:
    """Finds the bound that holds out at most `limit` rows, in memory for `limit` numbers.

    Rows of equal content have equal hashes and stay together, so that fewer may be held out.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[int] = []  # the limit + 1 smallest hashes so far, negated: the largest is on top

    def add(self, value: int) -> None:
        """Take one row's hash into account."""
        if len(self._heap) <= self._limit:
            heapq.heappush(self._heap, -value)
        else:
            heapq.heappushpop(self._heap, -value)

    def threshold(self, keep: int) -> int:
        """Return the bound below which `keep` rows are, of which there are more; at most `limit`."""
        return sorted(-value for value in self._heap)[keep] if keep else 0
