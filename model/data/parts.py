"""A dataset's sources, of which a mix has several: where each row of them stands, and how many rows each gives."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from model import exits
from model.data.records import Record, printable
from model.data.shapes import Shaper, family
from model.data.sources import RegistrySource, Source, SourceInterruptedError
from model.exits import FailureError

_LABEL_CHARACTERS = 60
"""Of a source's name: each row of a mix bears it."""


@dataclass
class Part:
    """One source of a dataset: the only one, or one of a mix.

    Parameters
    ----------
    source
        Where the rows come from.
    shaper
        Turns them into content; one that has read no rows yet.
    index
        Its place in the mix, from 0; None for the only source.
    given_name
        What people call it.
    weight, max_rows
        How many of its rows are taken; all of them when both are None.
    """

    source: Source
    shaper: Shaper
    index: int | None = None
    given_name: str | None = None
    weight: int | None = None
    max_rows: int | None = None
    found: int = 0
    """Rows that can be used."""
    invalid: int = 0

    @cached_property
    def name(self) -> str:
        """What people call the source, or else what it reads; a registry is asked for that."""
        if self.given_name is not None:
            return self.given_name
        if isinstance(self.source, RegistrySource):
            return f"{self.source.metadata['name']}/{self.source.version}"
        name = printable(self.source.name)
        return name if len(name) <= _LABEL_CHARACTERS else f"{name[: _LABEL_CHARACTERS - 3]}..."

    @property
    def label(self) -> str:
        """The source's place in the mix and its name, as in `mix[1] (tickets/3)`; empty for the only source."""
        return "" if self.index is None else f"mix[{self.index}] ({self.name})"

    @property
    def is_bounded(self) -> bool:
        """Whether perhaps not all of its rows are taken."""
        return self.weight is not None or self.max_rows is not None

    def records(self) -> Iterator[Record]:
        """Yield the source's rows; those of a mix, and what is wrong with its sources, say of which source they are.

        Raises
        ------
        SourceInterruptedError, FailureError
            As the source does.
        """
        if self.index is None:
            yield from self.source.records()
            return
        where = f"mix[{self.index}]"
        try:
            where = self.label
            for record in self.source.records():
                file = f"{where} {record.file}" if record.file else where
                yield Record(record.number, record.value, file)
        except SourceInterruptedError as error:
            raise SourceInterruptedError(f"{where}: {error}") from error
        except FailureError as error:
            raise FailureError(error.code, error.reason, f"{where}: {error.message}", row=error.row) from error

    def document(self, rows: int, evaluation_rows: int) -> dict[str, Any]:
        """Return what the manifest says of one source of a mix, of which so many rows are taken."""
        version = {} if self.source.version is None else {"version": self.source.version}
        counts = {"rows": rows, "evaluationRows": evaluation_rows, "found": self.found, "dropped": self.invalid}
        return {"name": self.name, **version, **counts}


def check_shapes(parts: Sequence[Part], record: Record) -> None:
    """Refuse a mix of rows that are learned in different ways; `record` is the first row of the last part.

    Raises
    ------
    FailureError
        With both sources.
    """
    *others, part = (part for part in parts if part.shaper.shape is not None)
    for other in others:
        if family(other.shaper.shape) != family(part.shaper.shape):
            raise FailureError(
                exits.DATASET_INVALID,
                "DatasetInvalid",
                f"{part.label} row {record.number} has {part.shaper.shape} rows, but {other.label} has "
                f"{other.shaper.shape} rows: mix sources of one kind, or map their columns",
                row=record.number,
            )


def taken(parts: Sequence[Part]) -> list[int]:
    """Return how many rows of each source are taken, once it is known how many there are.

    Weights stand to each other as the rows that are taken do: the source that has too few for its weight gives all it
    has, and the others as many as fit to that. No row is taken twice. Each number is rounded to the nearest.
    """
    weighted = [part for part in parts if part.weight is not None]
    scarce = min(weighted, key=lambda part: Fraction(part.found, part.weight or 1), default=None)
    numbers = []
    for part in parts:
        number = part.found if part.max_rows is None else min(part.found, part.max_rows)
        if part.weight is not None and scarce is not None and scarce.weight is not None:
            number = (2 * part.weight * scarce.found + scarce.weight) // (2 * scarce.weight)
        numbers.append(number)
    return numbers


_BIN_BITS = 12


def smallest(numbers: array[int], count: int) -> tuple[int, int]:
    """Return a bound below which the smallest numbers are, and how many of those that are equal to it belong to them.

    Parameters
    ----------
    numbers
        Numbers below 2**64.
    count
        How many of them are wanted; all when there are not more.
    """
    if count >= len(numbers):
        return 1 << 64, 0
    shift = 64 - _BIN_BITS
    bins = [0] * (1 << _BIN_BITS)
    for number in numbers:
        bins[number >> shift] += 1
    below, chosen = 0, 0
    while below + bins[chosen] <= count:
        below += bins[chosen]
        chosen += 1
    rest = sorted(number for number in numbers if number >> shift == chosen)
    bound = rest[count - below]
    return bound, count - below - rest.index(bound)
