"""A data file as all readers get it, and how they refuse one as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from model import exits
from model.exits import FailureError


@dataclass(frozen=True)
class DataFile:
    """A file to read rows from.

    Parameters
    ----------
    name
        What to call it in messages; its end tells the format.
    open
        Gives the bytes from the start on, unbuffered or not; a Parquet file's must be seekable.
    label
        The records' `file`: empty when the source has but this one.
    buffer_bytes
        How much to ask for at once, where each request costs time.
    """

    name: str
    open: Callable[[], BinaryIO]
    label: str = ""
    buffer_bytes: int = 1 << 20


def damaged(name: str, number: int, text: str) -> FailureError:
    """Return the failure of a file that breaks off after some rows."""
    after = f" after row {number}" if number else ""
    return FailureError(exits.DATASET_INVALID, "DatasetInvalid", f"{name} {text}{after}; copy it again")


def check_columns(file: DataFile, columns: Sequence[str]) -> None:
    """Refuse a table in which two columns have one name.

    Raises
    ------
    FailureError
        Code 3, with the name.
    """
    if repeated := sorted({column for column in columns if columns.count(column) > 1}):
        raise refusal(file.name, f"has the column {repeated[0]!r} more than once", "name each column once")


def refusal(name: str, what: str, remedy: str) -> FailureError:
    """Return the failure of a file that cannot be read as what it should be, with what to do."""
    return FailureError(exits.DATASET_INVALID, "DatasetInvalid", f"{name} {what}: {remedy}")
