"""From the bytes of one JSON line to a value, more strictly than the standard library does it.

Refused are numbers that are too large, a key that stands twice in one object, and nesting that would exhaust the
stack of whoever reads the value next: no reader of the written rows agrees with another on what these mean. NaN and
Infinity, which pandas writes, are read: they spoil a row only where they stand in something that is used.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from model.data.records import InvalidRowError, Problem

MAX_LINE_BYTES = 16 << 20
"""A longer line, without its line break, is an invalid row: memory would hold it whole, and no model could read it."""

TOO_LONG = f"is longer than {MAX_LINE_BYTES >> 20} MiB"
SHORTEN = ": shorten it, or write several rows"

MAX_DEPTH = 100
"""Lists and objects within each other; Python's and other parsers give up at different depths beyond."""

_TOO_DEEP = Problem("", f"nests lists and objects more than {MAX_DEPTH} deep", "tooDeep")


class RefusedError(ValueError):
    """JSON that the standard library accepts and that is refused all the same; `problem` says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def decode_line(line: bytes) -> Any:
    """Return the JSON value of one line, with or without its line break.

    Raises
    ------
    InvalidRowError
        When the line is too long, is not UTF-8, or is not one JSON value.
    """
    if is_too_long(line):
        raise InvalidRowError([Problem("", TOO_LONG + SHORTEN, "tooLong")])
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRowError([not_utf8(line[error.start], f"at byte {error.start + 1}")]) from error
    return decode_text(text, is_row=True)


def is_too_long(line: bytes) -> bool:
    """Whether a line has more than `MAX_LINE_BYTES` before its line break, as the registry counts them."""
    return len(line) - line.endswith(b"\n") > MAX_LINE_BYTES


def decode_text(text: str, *, is_row: bool = False) -> Any:
    """Return the JSON value of a text, which is a whole row or stands in a field of one.

    Raises
    ------
    InvalidRowError
        When it is not one JSON value.
    """
    try:
        check_depth(text)
        return DECODER.decode(text)
    except ValueError as error:
        raise explain(error, text, is_row=is_row) from error


def explain(error: ValueError | RecursionError, text: str, start: int = 0, *, is_row: bool = False) -> InvalidRowError:
    """Say what an error of `DECODER` means for the row that begins at `start` of a text and ends with the text."""
    if isinstance(error, RefusedError):
        problem = error.problem
    elif isinstance(error, json.JSONDecodeError):
        where = f"{error.msg.removesuffix(' at')} at character {error.pos - start + 1}"
        problem = Problem("", f"not valid JSON: {where}{_remedy(error, start, is_row=is_row)}", "notJson")
    elif isinstance(error, RecursionError):
        problem = _TOO_DEEP
    else:
        digits = max(map(len, _DIGITS_OR_STRING.findall(text, start)), default=0)
        problem = Problem("", f"holds a number of {digits} digits", "number")
    return InvalidRowError([problem])


def check_depth(text: str) -> None:
    """Refuse JSON that is nested too deep, before a decoder exhausts the stack over it.

    Raises
    ------
    RefusedError
        When it is nested deeper than `MAX_DEPTH`.
    """
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _BRACKET_OR_STRING.finditer(text):
        bracket = match[0]
        if bracket in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise RefusedError(_TOO_DEEP)
        elif bracket in "]}":
            depth -= 1


_BRACKET_OR_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
_DIGITS_OR_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?|(\d+)', re.DOTALL)  # of a string nothing is found


def _remedy(error: json.JSONDecodeError, start: int, *, is_row: bool) -> str:
    """Return what to do about JSON that breaks off, where that is plain to see."""
    there, rest = error.doc[error.pos : error.pos + 1], error.doc[error.pos + 1 :]
    if there == "'" and error.msg.startswith(("Expecting value", "Expecting property name")):
        return ": this is Python's way to write it, use json.dumps"
    if there in ("/", "#") and (error.doc[error.pos :].startswith(("//", "/*", "#"))):
        return ": JSON has no comments, leave them out"
    if (there == "}" and error.doc[: error.pos].rstrip().endswith(",")) or error.msg.startswith("Illegal trailing"):
        return ": leave out the comma before }"
    if error.msg == "Extra data" and is_row:
        if there == "," and not rest.strip():
            return ": leave out the comma after the row"
        return ": end each row with a line feed" if there == "{" else ""
    if not error.doc[start : error.pos].strip() and there not in ("", "[", "{"):
        return ": an object goes from { to }"
    return ""


UNDECODED = re.compile("[\udc80-\udcff]")
"""What stands for a byte that is no text, where bytes are decoded with `surrogateescape`."""


def not_utf8(byte: int, where: str) -> Problem:
    """Return the problem of a row with a byte that is no text."""
    remedy = "store the file as UTF-8, for example with `iconv -f WINDOWS-1252 -t UTF-8`"
    return Problem("", f"not UTF-8: byte 0x{byte:02x} {where}: {remedy}", "notUtf8")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise RefusedError(
            Problem(twice[:60], "stands twice in one object, which of the two is meant?", "duplicateKey")
        )
    return result


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise RefusedError(Problem("", f"holds {text[:40]}, which is too large for a number", "number"))
    return value


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite)
"""Raises `RefusedError` for what this module refuses, apart from depth, and `JSONDecodeError` as usual."""
