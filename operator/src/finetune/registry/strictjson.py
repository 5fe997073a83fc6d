"""JSON as a run's export reads it: stricter than the standard library, so that an upload is refused and not a run.

Refused are NaN, infinite numbers and numbers that become infinite, a key twice in one object, and deep nesting. What is
refused here, in which words, is the registry's own; a test holds it against the export's decoder.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from itertools import islice
from typing import Any

MAX_DEPTH = 100
"""Lists and objects within each other."""


def decode(line: bytes) -> Any:
    """Return the JSON value of one line. Raises `ValueError` with what is wrong with it, for people."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1}") from None
    if line.count(b"[") + line.count(b"{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise ValueError(f"nests lists and objects more than {MAX_DEPTH} deep")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        where = f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
        raise ValueError(f"not valid JSON: {where}") from None
    except _RefusedError:
        raise
    except ValueError:  # only the conversion of a number that is longer than Python reads
        digits = max(map(len, _DIGITS_OR_STRING.findall(text)), default=0)
        raise ValueError(f"holds a number of {digits} digits") from None


def has_more_values(line: bytes, most: int) -> bool:
    """Whether a JSON text has more than so many lists, objects and values in them, found without parsing it.

    Many small values take thirty times the text's length of memory once they are parsed.
    """
    if sum(line.count(sign) for sign in (b"[", b"{", b",")) <= most:
        return False
    found = (match for match in _SIGN_OR_STRING.finditer(line) if match[0] in _SIGNS)
    return sum(1 for _ in islice(found, most + 1)) > most


class _RefusedError(ValueError):
    """What the standard library lets pass."""


def _depth(text: str) -> int:
    deepest = depth = 0
    for match in _BRACKET_OR_STRING.finditer(text):
        if match[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in "]}":
            depth -= 1
    return deepest


_BRACKET_OR_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
_SIGNS = frozenset({b"[", b"{", b","})
_SIGN_OR_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{,]', re.DOTALL)
_DIGITS_OR_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?|(\d+)', re.DOTALL)  # of a string nothing is found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise _RefusedError(f"the key {json.dumps(twice[:60])} stands twice in one object, which of the two is meant?")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _RefusedError(f"holds {text[:40]}, which is too large for a number")
    return value


def _constant(name: str) -> None:
    raise _RefusedError(f"not valid JSON: {name} is no JSON value, use null")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_finite, parse_constant=_constant)
