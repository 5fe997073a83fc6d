"""Counts rows of equal content in little memory, and finds some of them."""

from __future__ import annotations

from array import array
from functools import cached_property

from model.data.checks import place
from model.data.records import Record

MAX_ROWS = 4_000_000
"""Rows that are compared, at 16 bytes each; of a larger dataset the number found is a lower bound."""

SHOWN_DUPLICATES = 5
_PARTS = 64
_ROW_BITS = 40


class Duplicates:
    """Takes one 8-byte hash a row, and compares them when all are there.

    The hashes lie in flat arrays by their highest bits, so that only one part at a time is unpacked into a set.
    """

    def __init__(self) -> None:
        self._hashes = [array("Q") for _ in range(_PARTS)]
        self._places = [array("Q") for _ in range(_PARTS)]
        self._files: dict[str, int] = {}
        self.rows = 0

    def add(self, value: int, record: Record) -> None:
        """Take a row's hash, a number below 2**64 that depends on the content alone."""
        self.rows += 1
        if self.rows > MAX_ROWS:
            return
        file = self._files.setdefault(record.file, len(self._files))
        part = value >> 58
        self._hashes[part].append(value)
        self._places[part].append(file << _ROW_BITS | record.number)

    @property
    def is_lower_bound(self) -> bool:
        """Whether there were more rows than are compared."""
        return self.rows > MAX_ROWS

    @cached_property
    def count(self) -> int:
        """How many rows repeat an earlier one; asked for when all rows are there."""
        return sum(len(hashes) - len(set(hashes)) for hashes in self._hashes)

    def all_equal(self) -> bool:
        """Whether there are several rows and all of them are the same."""
        return self.rows > 1 and not self.is_lower_bound and self.count == self.rows - 1

    def examples(self) -> list[str]:
        """Return the first repetitions, each with the row that it repeats."""
        found: list[tuple[int, int]] = []
        for hashes, places in zip(self._hashes, self._places, strict=True):
            if len(hashes) != len(set(hashes)):
                first: dict[int, int] = {}
                for value, where in zip(hashes, places, strict=True):
                    if (earlier := first.setdefault(value, where)) != where:
                        found.append((where, earlier))
                found = sorted(found)[:SHOWN_DUPLICATES]
        return [f"{self._place(where)} repeats {self._place(earlier)}" for where, earlier in found]

    def _place(self, where: int) -> str:
        file = next(name for name, index in self._files.items() if index == where >> _ROW_BITS)
        return place(Record(where & (1 << _ROW_BITS) - 1, None, file))
