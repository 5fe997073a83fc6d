"""Checks of single values, shared by all shapes. Each appends what it finds to the row's list of problems."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from model.data.decode import RefusedError, check_depth, decode_text
from model.data.records import InvalidRowError, Problem

_KINDS = {
    dict: "an object",
    list: "a list",
    tuple: "a list",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    bytes: "bytes",
    bytearray: "bytes",
    memoryview: "bytes",
    type(None): "null",
}
SHOWN_CHARACTERS = 40
BYTES_REMEDY = ": store it as text, in Parquet with pyarrow's `column.cast('string')`, in SQL with convert_from"
_MARKS = re.compile(r"<(?:[iI][mM]|[vV][iI]|[aA][uU]|[sS][pP]|start_of_image|__media|\|)")  # faster than IGNORECASE
_PLACEHOLDER = re.compile(
    r"\A\s*<(?P<first>image|video|audio|speech)>"
    r"|(?<=[.?!:])\s*<(?P<last>image|video|audio|speech)>\s*\Z"
    r"|^[ \t]*(?:<(?P<line>image|video|audio|speech)>[ \t]*)+\r?$"
    r"|(?:<(?:image|video|audio|speech)>\s*){2}"
    r"|<(?:image|video|audio)[ _]\d+>|<\|(?:image|img|video|audio|vision|media)\w*\|>"
    r"|<start_of_image>|<(?:image|audio)_soft_token>|<image_placeholder>|<IMG_CONTEXT>|<ImageHere>|<__media__>"
    r"|<img>[^<>]*</img>|\[IMG\](?!.*\[/IMG\])",
    re.MULTILINE | re.IGNORECASE,
)
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # not where the backslash itself is escaped


def kind(value: Any) -> str:
    """Return what a value is, in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN, no text or number" if math.isnan(value) else "an infinite number"
    return _KINDS.get(type(value), f"a {type(value).__name__}")


def short(value: Any) -> str:
    """Return a value as it stands in a message, cut when it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def names(keys: Any) -> str:
    """Return the first keys of a row, for messages."""
    shown = [str(key)[:SHOWN_CHARACTERS] or "''" for key in list(keys)[:8]]
    return ", ".join(shown) + (", ..." if len(keys) > len(shown) else "")


def listed(items: Sequence[str], word: str) -> str:
    """Return some words as one does in a sentence: a, b and c."""
    *first, last = items
    return f"{', '.join(first)} {word} {last}" if first else last


def check_text(text: Any, field: str, problems: list[Problem], *, empty: bool = False) -> None:
    """Check that a value is text with something to read in it; `empty` allows that there is nothing."""
    if type(text) is not str:
        remedy = BYTES_REMEDY if kind(text) == "bytes" else ""
        problems.append(Problem(field, f"must be a string, is {kind(text)}{remedy}", "wrongType"))
    elif not text or text.isspace():
        if not empty:
            problems.append(Problem(field, "is empty", "empty"))
    elif "\0" in text:
        problems.append(Problem(field, f"holds a NUL character, at character {text.index(chr(0)) + 1}", "character"))
    elif not text.isascii() and not _encodable(text):
        problems.append(Problem(field, "holds half of a surrogate pair, which is no character", "character"))


def media_in(text: Any, *, prompt: bool) -> str | None:
    """Return what is wrong with a text that stands around a picture or a sound; None when it does not.

    A word such as `<image>` is a placeholder at the start of what is asked, after its last sentence, or alone on a
    line; elsewhere, and where an end tag follows, it is text.
    """
    if not isinstance(text, str) or not (("<" in text and _MARKS.search(text)) or "[IMG]" in text):  # much faster
        return None
    if (match := _PLACEHOLDER.search(text)) is None:
        return None
    word = match["first"] or match["last"] or match["line"]
    if word and (not prompt or f"</{word}>" in text):
        return None
    mark = match[0].strip()
    return (
        f"holds {mark}, in whose place a model sees a picture or hears a sound, but only text is trained on: leave the "
        "row out"
    )


def as_list(value: Any) -> Any:
    """Return the list that a text holds as JSON, as CSV files and databases have it; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return decode_text(value)
    except InvalidRowError:
        return value


def by_turn(value: Any) -> Any:
    """Return the turns of which a table has the roles in one list and the texts in another (`datasets.Sequence`)."""
    if not isinstance(value, Mapping) or not all(isinstance(held, list) for held in value.values()):
        return value
    if not value or len(set(map(len, value.values()))) > 1:
        return value
    return [dict(zip(value, held, strict=True)) for held in zip(*value.values(), strict=True)]


def as_turns(value: Any) -> Any:
    """Return the list of turns that a text holds as JSON; any other value as it is.

    A text to learn may be a JSON list itself, of numbers or of records: it holds turns when its first item has a role.
    One turn alone, an object with a role, is a list of one.
    """
    value = by_turn(value)
    if isinstance(value, Mapping) and ("role" in value or "from" in value):
        return [value]
    if not isinstance(value, str):
        return value
    turns = as_list(value)
    first = turns[0] if isinstance(turns, list) and turns else None
    return turns if isinstance(first, dict) and ("role" in first or "from" in first) else value


def not_a_list(value: Any) -> str:
    """Return what stands where a list should, in words."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            decode_text(value)
        except InvalidRowError as error:
            return f"a string that holds none: {error}"
    return kind(value)


def check_json(value: Any, field: str, problems: list[Problem]) -> None:
    """Check that a nested value can be written as JSON."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
        check_depth(text)
    except RefusedError as error:
        problems.append(Problem(field, error.problem.text, error.problem.kind))
    except UnicodeEncodeError:
        problems.append(Problem(field, "holds half of a surrogate pair, which is no character", "character"))
    except (TypeError, ValueError, RecursionError):
        text = "holds what JSON cannot: NaN, an infinite number, a date or bytes"
        problems.append(Problem(field, text, "wrongType"))
    else:
        if _NUL.search(text):
            problems.append(Problem(field, "holds a NUL character", "character"))


def check_mapping(value: Any, field: str, problems: list[Problem]) -> bool:
    """Check that a value is an object, and say whether it is."""
    if type(value) is dict or isinstance(value, Mapping):  # the first is much faster, and nearly always right
        return True
    problems.append(Problem(field, f"must be an object, is {kind(value)}", "wrongType"))
    return False


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
