"""Collects what is wrong with a dataset: every problem counted, the first ones shown, each with its row."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from model import exits
from model.data.records import InvalidRowError, Record, printable
from model.exits import FailureError

SHOWN_PROBLEMS = 20


@dataclass
class Problems:
    """The invalid rows of one dataset.

    Parameters
    ----------
    source
        What the dataset is called in messages.
    """

    source: str
    invalid_rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    first_row: int | None = None
    shown: list[str] = field(default_factory=list)

    def add(self, record: Record, error: InvalidRowError) -> None:
        """Record the problems of an invalid row."""
        self.invalid_rows += 1
        if self.first_row is None:
            self.first_row = record.number
        for problem in error.problems:
            self.kinds[problem.kind] += 1
            if len(self.shown) < SHOWN_PROBLEMS:
                self.shown.append(f"{place(record)}: {problem}")

    @property
    def count(self) -> int:
        """The number of problems, of which a row may have several."""
        return self.kinds.total()

    def failure(self) -> FailureError:
        """Return the failure that names the problems."""
        if self.count == 1:
            message = f"{self.source} {self.shown[0]}"
        else:
            rows = "1 row" if self.invalid_rows == 1 else f"{self.invalid_rows} rows"
            message = f"{self.source} has {self.count} problems in {rows}: " + "; ".join(self.shown)
            if (hidden := self.count - len(self.shown)) > 0:
                message += f"; and {hidden} more"
        return FailureError(exits.DATASET_INVALID, "DatasetInvalid", message, row=self.first_row)


def place(record: Record) -> str:
    """Return where a row stands: its number, with its file when there are several."""
    return printable(f"{record.file} row {record.number}" if record.file else f"row {record.number}")


def empty_failure(problems: Problems) -> FailureError:
    """Return the failure of a dataset without a usable row."""
    message = f"{problems.source} has no rows"
    if problems.invalid_rows:
        message = f"{problems.source} has no usable row, {problems.invalid_rows} are invalid: "
        message += "; ".join(problems.shown[:3]) + ("; ..." if problems.count > 3 else "")
    return FailureError(exits.DATASET_INVALID, "DatasetInvalid", message, row=problems.first_row)
