"""JSON lines: one row a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from model.data.records import InvalidRowError, Problem, Record

MAX_LINE_BYTES = 16 << 20
"""A longer row is invalid: it would be held in memory whole, and no model could read it."""

TOO_LONG = f"is longer than {MAX_LINE_BYTES >> 20} MiB"


class LineReader(Protocol):
    """What can be read line by line: a file, an HTTP response."""

    def readline(self, limit: int = -1, /) -> bytes:
        """Return the next line, or its next `limit` bytes; nothing at the end."""


def bounded_lines(file: LineReader) -> Iterator[bytes]:
    """Yield a file's lines; of one that is too long only the first `MAX_LINE_BYTES` + 1 bytes, without its rest."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        yield line
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            skip_line(file)


def skip_line(file: LineReader) -> None:
    """Read up to the end of the line."""
    while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
        pass


def json_lines(lines: Iterable[bytes], file: str = "") -> Iterator[Record]:
    """Yield one record a line, numbered from 1; blank lines count but are no records."""
    for number, line in enumerate(lines, start=1):
        content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if content and not content.isspace():
            yield Record(number, _decode(content), file)


def invalid(text: str, field: str = "") -> InvalidRowError:
    """Return what stands for a row that cannot be decoded."""
    return InvalidRowError([Problem(field, text)])


def _decode(line: bytes) -> Any:
    if len(line) > MAX_LINE_BYTES:
        return invalid(TOO_LONG)
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return invalid(f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1}")
    except json.JSONDecodeError as error:
        return invalid(f"not valid JSON: {error.msg} at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:
        return invalid(f"not usable JSON: {error}")
