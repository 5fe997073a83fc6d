"""The shapes that a row may have: from a decoded JSON value to a normalised row, or to a list of problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from model.data.records import InvalidRowError, Problem

Shape = Literal["prompt-completion", "messages"]

ROLES = ("system", "user", "assistant", "tool")
PROMPT_FIELDS = ("prompt", "completion")
CANONICAL_FIELDS = (*PROMPT_FIELDS, "messages")


@dataclass(frozen=True)
class Row:
    """A row that can be trained on: its shape and its normalised content."""

    shape: Shape
    content: dict[str, Any]


def parse_value(value: Any, columns: Mapping[str, str], expected: Shape | None) -> Row:
    """Turn one decoded row into a normalised row.

    Parameters
    ----------
    value
        The row as its source gave it.
    columns
        Where the fields are found when they have other names: canonical name to the source's name.
    expected
        The shape of the rows before this one; a dataset has one shape. None for the first row.

    Raises
    ------
    InvalidRowError
        With every problem of the row.
    """
    if not isinstance(value, dict):
        raise InvalidRowError([Problem("", f"must be a JSON object, is {_kind(value)}")])
    shape = _shape(value, columns)
    if expected is not None and shape != expected:
        raise InvalidRowError(
            [Problem("", f"has the fields of {shape} rows, but the rows before are {expected}: use one shape")]
        )
    names = {field: columns.get(field, field) for field in CANONICAL_FIELDS}
    if shape == "messages":
        problems = list(_messages_problems(value.get(names["messages"]), names["messages"]))
    else:
        problems = [p for field in PROMPT_FIELDS for p in _text_problems(value, names[field])]
    if problems:
        raise InvalidRowError(problems)
    if shape == "messages":
        messages = [{"role": m["role"], "content": m["content"]} for m in value[names["messages"]]]
        return Row(shape, {"messages": messages})
    return Row(shape, {field: value[names[field]] for field in PROMPT_FIELDS})


def _shape(value: Mapping[str, Any], columns: Mapping[str, str]) -> Shape:
    has_prompt = any(columns.get(field, field) in value for field in PROMPT_FIELDS)
    has_messages = columns.get("messages", "messages") in value
    if has_prompt and has_messages:
        raise InvalidRowError([Problem("", "has both messages and prompt or completion: keep one of the two")])
    if has_messages:
        return "messages"
    if has_prompt:
        return "prompt-completion"
    wanted = " and ".join(columns.get(field, field) for field in PROMPT_FIELDS)
    found = ", ".join(sorted(value)[:8]) or "nothing"
    other = columns.get("messages", "messages")
    raise InvalidRowError([Problem("", f"has neither {wanted} nor {other}; it has {found}: map the columns")])


def _text_problems(value: Mapping[str, Any], name: str) -> Iterator[Problem]:
    if name not in value:
        yield Problem(name, "is missing")
    else:
        yield from _string_problems(value[name], name)


def _string_problems(text: Any, name: str) -> Iterator[Problem]:
    if not isinstance(text, str):
        yield Problem(name, f"must be a string, is {_kind(text)}")
    elif not text.strip():
        yield Problem(name, "is empty")
    elif not _encodable(text):
        yield Problem(name, "holds half of a surrogate pair, which is no character")


def _messages_problems(messages: Any, name: str) -> Iterator[Problem]:
    if not isinstance(messages, list):
        yield Problem(name, f"must be a list, is {_kind(messages)}")
        return
    if not messages:
        yield Problem(name, "is empty")
        return
    for index, message in enumerate(messages):
        where = f"{name}[{index}]"
        if not isinstance(message, dict):
            yield Problem(where, f"must be an object, is {_kind(message)}")
            continue
        if message.get("role") not in ROLES:
            yield Problem(f"{where}.role", f"must be one of {', '.join(ROLES)}, is {message.get('role')!r:.40}")
        if "content" not in message:
            yield Problem(f"{where}.content", "is missing")
        else:
            yield from _string_problems(message["content"], f"{where}.content")
    if not any(isinstance(message, dict) and message.get("role") == "assistant" for message in messages):
        yield Problem(name, "has no assistant turn to learn from")


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
