"""CSV with a header: one row a record, whatever line breaks its quoted fields hold."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, BinaryIO

from model import exits
from model.data.decode import MAX_LINE_BYTES, TOO_LONG, UNDECODED, not_utf8
from model.data.readers.base import DataFile, check_columns
from model.data.readers.lines import invalid, joined, skip_line, too_long
from model.data.readers.sniff import SEPARATOR_LINE, delimiter
from model.data.records import InvalidRowError, Record
from model.exits import FailureError

_RETURNS = r"ends a line with a carriage return alone: convert the file with `tr '\r' '\n'`, or quote the field"
_MARKS = defaultdict(lambda: "the separator", {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"})

_RULE = re.compile(r"\s*:?-{3,}:?\s*|")
"""A cell of the line below the header in a table of Markdown."""


class _TooLongError(Exception):
    """A record has passed the limit; the reader goes on with the next line."""


def csv_table(stream: BinaryIO, file: DataFile) -> Iterator[Record]:
    """Yield one record a row, as a mapping from column to text; the first row after the header has number 1.

    Raises
    ------
    FailureError
        Code 3, when the header names a column twice or cannot be read.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _Lines(stream)
    rows = csv.reader(lines, delimiter=lines.delimiter, strict=True)
    header = _header(rows, lines, file)
    number = 0
    while True:
        number += 1
        lines.begin_record()
        try:
            value = _row(next(rows), header, _MARKS[lines.delimiter])
        except StopIteration:
            return
        except _TooLongError:
            value = too_long(": is a quote left open?")
        except csv.Error as error:
            remedy = "close each quote, and double those within a field"
            value = invalid(_RETURNS if _is_about_returns(error) else f"not valid CSV: {error}: {remedy}")
        if value is None:
            number -= 1  # a blank line
            continue
        if value == {}:
            continue  # an empty row of a spreadsheet
        if lines.undecoded is not None:
            value = InvalidRowError([not_utf8(lines.undecoded, _where(value))])
        yield Record(number, value, file.label)


class _Lines:
    """The file's lines as text, counted so that no record grows without bound."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._bytes = 0
        self.undecoded: int | None = None
        """The byte that keeps the current record from being read as text."""
        self._first: bytes | None = stream.readline(MAX_LINE_BYTES + 1).removeprefix(b"\xef\xbb\xbf")
        first = self._first.decode("utf-8", "replace")
        self.delimiter = delimiter(first)
        if SEPARATOR_LINE.fullmatch(first):
            self._first = None

    def begin_record(self) -> None:
        self._bytes = 0
        self.undecoded = None

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(MAX_LINE_BYTES + 1) if self._first is None else self._first
        self._first = None
        if not line:
            raise StopIteration
        self._bytes += len(line)
        if self._bytes > MAX_LINE_BYTES:
            if not line.endswith(b"\n"):
                skip_line(self._stream)
            raise _TooLongError
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            self.undecoded = line[error.start]
            return line.decode("utf-8", "surrogateescape")


def _header(rows: Any, lines: _Lines, file: DataFile) -> list[str]:
    try:
        header: list[str] = next((row for row in rows if row), [])
    except (csv.Error, _TooLongError) as error:
        if _is_about_returns(error):
            raise _refusal(file, _RETURNS) from error
        raise _refusal(file, f"has a header that cannot be read: {str(error) or TOO_LONG}") from error
    if lines.undecoded is not None:
        raise _refusal(file, f"has a header that is {not_utf8(lines.undecoded, 'in it')}")
    names = [name.strip() for name in header]
    while len(names) > 1 and not names[-1]:
        names.pop()  # columns to the right of the table
    check_columns(file, names)
    return names


def _is_about_returns(error: Exception) -> bool:
    """Whether a carriage return stands outside of quotes and before no line feed; Python's advice is for programs."""
    return "new-line" in str(error)


def _row(cells: list[str], header: list[str], marks: str) -> Any:
    """Return a row by the header's names; None for a blank line, nothing in it for a row of empty cells."""
    if not cells:
        return None
    if cells[0].startswith("\ufeff"):
        return joined()
    if len(cells) > 1 and (not any(cells) or all(_RULE.fullmatch(cell) for cell in cells)):
        return {}
    while len(cells) > len(header) and not cells[-1].strip():
        cells.pop()
    if len(cells) != len(header):
        remedy = f"quote fields that hold {marks}" if len(cells) > len(header) else "write empty ones, too"
        return invalid(f"has {_fields(len(cells))}, but the header names {len(header)}: {remedy}")
    return dict(zip(header, cells, strict=True))


def _fields(number: int) -> str:
    return "1 field" if number == 1 else f"{number} fields"


def _where(value: Any) -> str:
    """Say in which column the first character stands that could not be decoded."""
    cells = value.items() if isinstance(value, dict) else ()
    return next((f"in {name}" for name, cell in cells if UNDECODED.search(cell)), "in it")


def _refusal(file: DataFile, text: str) -> FailureError:
    return FailureError(exits.DATASET_INVALID, "DatasetInvalid", f"{file.name} {text}")
