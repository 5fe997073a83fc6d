"""Collects what is wrong with a dataset: every problem counted, the first ones shown, each with its row."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from model import exits
from model.data.records import InvalidRowError, Record, printable
from model.exits import FailureError

SHOWN_PROBLEMS = 20
SHOWN_REPETITIONS = 9

_OF_THE_FILE = frozenset({"beside", "missing", "mixedShapes", "notUtf8", "unknownShape", "wrongType"})
"""Kinds that all rows of a file often share, as when its columns are not mapped: told once, with the other rows."""


@dataclass
class _Told:
    """A problem as it is shown, and further rows of the file that have the same."""

    text: str
    count: int = 1
    others: list[int] = field(default_factory=list)

    def again(self, row: int) -> None:
        self.count += 1
        if len(self.others) < SHOWN_REPETITIONS:
            self.others.append(row)

    def __str__(self) -> str:
        if not self.others:
            return self.text
        rows = "rows " + ", ".join(map(str, self.others)) if self.count > 2 else f"row {self.others[0]}"
        more = self.count - 1 - len(self.others)
        return f"{self.text} (also {rows}{f' and {more} more' if more else ''})"


@dataclass
class Problems:
    """The invalid rows of one dataset.

    Parameters
    ----------
    source
        What the dataset is called in messages.
    placed
        Whether the rows' places say already of which dataset they are.
    """

    source: str
    placed: bool = False
    invalid_rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    first_row: int | None = None
    _told: dict[tuple[str, str, int], _Told] = field(default_factory=dict)

    def add(self, record: Record, error: InvalidRowError) -> None:
        """Record the problems of an invalid row."""
        self.invalid_rows += 1
        if self.first_row is None:
            self.first_row = record.number
        for problem in error.problems:
            self.kinds[problem.kind] += 1
            what = problem.kind if problem.kind == "notUtf8" else str(problem)  # the byte differs from row to row
            key = (record.file, what, 0 if problem.kind in _OF_THE_FILE else self.count)
            if (told := self._told.get(key)) is not None:
                told.again(record.number)
            elif len(self._told) < SHOWN_PROBLEMS:
                self._told[key] = _Told(f"{place(record)}: {problem}")

    @property
    def count(self) -> int:
        """The number of problems, of which a row may have several."""
        return self.kinds.total()

    @property
    def shown(self) -> list[str]:
        """The first problems, each with its row."""
        return [str(told) for told in self._told.values()]

    def first(self, number: int) -> str:
        """Return the first problems in one line, with dots when there are others."""
        told = list(self._told.values())[:number]
        return "; ".join(map(str, told)) + ("; ..." if sum(problem.count for problem in told) < self.count else "")

    def failure(self) -> FailureError:
        """Return the failure that names the problems."""
        if len(self._told) == 1:
            message = self.shown[0] if self.placed else f"{self.source} {self.shown[0]}"
        else:
            rows = "1 row" if self.invalid_rows == 1 else f"{self.invalid_rows} rows"
            message = f"{self.source} has {self.count} problems in {rows}: " + "; ".join(self.shown)
            if hidden := self.count - sum(told.count for told in self._told.values()):
                message += f"; and {hidden} more"
        return FailureError(exits.DATASET_INVALID, "DatasetInvalid", message, row=self.first_row)


def place(record: Record) -> str:
    """Return where a row stands: its number, with its file when there are several."""
    return printable(f"{record.file} row {record.number}" if record.file else f"row {record.number}")


def empty_failure(problems: Problems) -> FailureError:
    """Return the failure of a dataset without a usable row."""
    message = f"{problems.source} has no rows: check that it is the right one"
    if problems.invalid_rows:
        message = f"{problems.source} has no usable row, {problems.invalid_rows} invalid: "
        message += problems.first(3)
    return FailureError(exits.DATASET_INVALID, "DatasetInvalid", message, row=problems.first_row)
