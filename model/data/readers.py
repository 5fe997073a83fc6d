"""From a file's bytes to records: JSON lines, a JSON array, CSV and Parquet, without holding more than a few rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from model.data.records import InvalidRowError, Problem, Record

MAX_LINE_BYTES = 16 << 20
"""A longer row is invalid: it would be held in memory whole, and no model could read it."""


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
    if len(line) > MAX_LINE_BYTES:
        return InvalidRowError([Problem("", f"is longer than {MAX_LINE_BYTES >> 20} MiB")])
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        text = f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1}"
    except json.JSONDecodeError as error:
        text = f"not valid JSON: {error.msg} at character {error.pos + 1}"
    except (ValueError, RecursionError) as error:
        text = f"not usable JSON: {error}"
    return InvalidRowError([Problem("", text)])
