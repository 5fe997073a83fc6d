"""From a file's bytes to records: JSON lines, a JSON array, CSV and Parquet, without holding more than a few rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from model.data.decode import MAX_LINE_BYTES, decode_line
from model.data.records import InvalidRowError, Record


def bounded_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield a file's lines without ever holding more than `MAX_LINE_BYTES` + 1 bytes of one."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE_BYTES + 1)


def json_lines(lines: Iterable[bytes], file: str = "") -> Iterator[Record]:
    """Yield one record a line, numbered from 1; blank lines count but are no records."""
    for number, line in enumerate(lines, start=1):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if content and not content.isspace():
            yield Record(number, _decode(content), file)


def _decode(line: bytes) -> Any:
    try:
        return decode_line(line)
    except InvalidRowError as error:
        return error
