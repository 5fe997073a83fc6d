"""JSON lines: one row a line."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from model.data.decode import MAX_LINE_BYTES, SHORTEN, TOO_LONG, decode_line, is_too_long
from model.data.records import InvalidRowError, Problem, Record


class LineReader(Protocol):
    """What can be read line by line: a file, an HTTP response."""

    def readline(self, limit: int = -1, /) -> bytes:
        """Return the next line, or its next `limit` bytes; nothing at the end."""


def bounded_lines(file: LineReader) -> Iterator[bytes]:
    """Yield a file's lines; of one that is too long only the first `MAX_LINE_BYTES` + 1 bytes, without its rest."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        if is_too_long(line) and not line.endswith(b"\n"):
            skip_line(file)


def skip_line(file: LineReader) -> None:
    """Read up to the end of the line."""
    while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
        pass


def json_lines(lines: Iterable[bytes], file: str = "") -> Iterator[Record]:
    """Yield one record a line, numbered from 1; blank lines count but are no records."""
    for number, line in enumerate(lines, start=1):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 and not is_too_long(line) else line
        if number > 1 and content.startswith(codecs.BOM_UTF8):
            yield Record(number, joined(), file)
        elif content and not content.isspace():
            yield Record(number, _decode(content), file)


def invalid(text: str, kind: str = "unreadable", *, field: str = "") -> InvalidRowError:
    """Return what stands for a row that cannot be decoded."""
    return InvalidRowError([Problem(field, text, kind)])


def too_long(remark: str = SHORTEN) -> InvalidRowError:
    """Return what stands for a row that is longer than `MAX_LINE_BYTES`."""
    return invalid(f"{TOO_LONG}{remark}", "tooLong")


_JOINED = (
    "begins with a byte order mark, as if two files had been joined: remove it, as `sed -i 's/^\\xef\\xbb\\xbf//'` does"
)


def joined() -> InvalidRowError:
    """Return what stands for a row with a byte order mark in the middle of a file."""
    return invalid(_JOINED, "notUtf8")


def _decode(line: bytes) -> Any:
    try:
        return decode_line(line)
    except InvalidRowError as error:
        return error
