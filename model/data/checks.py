"""Collects what is wrong with a dataset: every problem counted, the first ones shown, each with its row."""

from __future__ import annotations

from dataclasses import dataclass, field

from model import exits
from model.data.records import InvalidRowError
from model.exits import FailureError

SHOWN_PROBLEMS = 20


@dataclass
class Report:
    """The invalid rows of one dataset.

    Parameters
    ----------
    source
        What the dataset is called in messages.
    """

    source: str
    invalid_rows: int = 0
    problems: int = 0
    first_row: int | None = None
    shown: list[str] = field(default_factory=list)

    def add(self, row: int, error: InvalidRowError) -> None:
        """Record the problems of an invalid row, which is 1-based."""
        self.invalid_rows += 1
        if self.first_row is None:
            self.first_row = row
        for problem in error.problems:
            self.problems += 1
            if len(self.shown) < SHOWN_PROBLEMS:
                self.shown.append(f"row {row}: {problem}")

    def failure(self) -> FailureError:
        """Return the failure that names the problems."""
        message = f"{self.source} " + "; ".join(self.shown)
        if (hidden := self.problems - len(self.shown)) > 0:
            message += f"; and {hidden} more"
        if self.problems > 1:
            message += f" ({self.problems} problems in {self.invalid_rows} rows)"
        return FailureError(exits.DATASET_INVALID, "DatasetInvalid", message, row=self.first_row)


def empty_failure(source: str, dropped: int) -> FailureError:
    """Return the failure of a dataset without a usable row."""
    why = f": all of its {dropped} are invalid" if dropped else ""
    return FailureError(exits.DATASET_INVALID, "DatasetInvalid", f"{source} has no rows{why}")
