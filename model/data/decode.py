"""From the bytes of one JSON line to a value, more strictly than the standard library does it.

Refused are NaN and infinite numbers, a key that stands twice in one object, and nesting that would exhaust the
stack of whoever reads the value next: no reader of the written rows agrees with another on what these mean.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

from model.data.records import InvalidRowError, Problem

MAX_LINE_BYTES = 16 << 20
"""A longer line is an invalid row: it would be held in memory whole, and no model could read it."""

MAX_DEPTH = 100
"""Lists and objects within each other; Python's and other parsers give up at different depths beyond."""


class _RefusedError(ValueError):
    """A value that JSON does not know, or that stands in doubt; `problem` says so."""

    def __init__(self, field: str, text: str, kind: str) -> None:
        super().__init__(text)
        self.problem = Problem(field, text, kind)


def decode_line(line: bytes) -> Any:
    """Return the JSON value of one line, with or without its line break.

    Raises
    ------
    InvalidRowError
        When the line is too long, is not UTF-8, or is not one JSON value.
    """
    if len(line) > MAX_LINE_BYTES:
        raise InvalidRowError([Problem("", f"is longer than {MAX_LINE_BYTES >> 20} MiB", "tooLong")])
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRowError([_not_utf8(line, error.start)]) from error
    return decode_text(text)


def decode_text(text: str) -> Any:
    """Return the JSON value of a text.

    Raises
    ------
    InvalidRowError
        When it is not one JSON value.
    """
    try:
        if text.count("[") + text.count("{") > MAX_DEPTH:
            _check_depth(text)
        return _DECODER.decode(text)
    except _RefusedError as error:
        problem = error.problem
    except json.JSONDecodeError as error:
        where = f"{error.msg.removesuffix(' at')} at character {error.pos + 1}{_ends(text, error)}"
        problem = Problem("", f"not valid JSON: {where}", "notJson")
    except ValueError:
        digits = max(map(len, re.findall(r"\d+", text)))
        problem = Problem("", f"holds a number of {digits} digits", "number")
    raise InvalidRowError([problem])


def _check_depth(text: str) -> None:
    depth = 0
    for match in _BRACKET_OR_STRING.finditer(text):
        bracket = match[0]
        if bracket in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _RefusedError("", f"nests lists and objects more than {MAX_DEPTH} deep", "tooDeep")
        elif bracket in "]}":
            depth -= 1


_BRACKET_OR_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)


def _ends(text: str, error: json.JSONDecodeError) -> str:
    unfinished = error.msg.startswith("Unterminated string") or error.pos >= len(text.rstrip())
    return ", the line ends too early: is the file cut off?" if unfinished and text.strip() else ""


def _not_utf8(line: bytes, start: int) -> Problem:
    return Problem("", f"not UTF-8: byte 0x{line[start]:02x} at byte {start + 1}", "notUtf8")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise _RefusedError(twice[:60], "stands twice in one object, which of the two is meant?", "duplicateKey")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _RefusedError("", f"holds {text[:40]}, which is too large for a number", "number")
    return value


def _constant(name: str) -> None:
    raise _RefusedError("", f"not valid JSON: {name} is no JSON value, use null", "notJson")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_constant)
