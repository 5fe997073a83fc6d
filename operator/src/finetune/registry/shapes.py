"""What a row is by its keys, and whether the fields that make it so hold what every run would ask of them.

Checked is what each run refuses that reads these fields by these names: values of the wrong type, null or empty texts,
characters that are none, turns without a known role. Left to a run's export is what depends on the run, or on its
trainer's version: which columns it maps, its method, whether two answers differ, in which order turns may follow upon
each other, and what they hold beside role and content: calls of tools, weights, thoughts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetune.api.registry import Shape

from .strictjson import decode

_FIELDS: tuple[tuple[Shape, tuple[str, ...]], ...] = (  # the first match wins
    ("preference", ("prompt", "chosen", "rejected")),
    ("prompt-completion", ("prompt", "completion")),
    ("messages", ("messages",)),
)
_PAIR = ("chosen", "rejected")
_LEARNED = (("prompt", "completion"), ("messages",), ("conversations",), ("instruction", "output"))
_OTHERS = (*_LEARNED[2:], _PAIR)
"""Rows that a run may read although fields of the shapes above are there, and null."""

_TOOL = frozenset({"tool", "observation", "function_response", "tool_response", "tool_result", "function", "ipython"})
_CALL = frozenset({"function_call", "tool_call"})
_ROLES = frozenset(
    {"system", "developer", "user", "human", "prompter", "assistant", "gpt", "chatgpt", "model", "bot", "ai"}
    | _TOOL
    | _CALL
)
"""What the export knows as roles, in lower case and with underscores."""
_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class Form:
    """What all rows of a dataset have in common.

    Attributes: `shape`, `fields` that make a row so, and whether their texts are lists of `turns`. A label changes the
    shape, and nothing else: which rows need one is a run's to say.
    """

    shape: Shape = dataclasses.field(compare=False)
    fields: tuple[str, ...] = ()
    turns: bool = False

    @property
    def words(self) -> str:
        """What to call a row of it."""
        if not self.fields:
            return "a row of another shape"
        *first, last = self.fields
        names = f"{', '.join(first)} and {last}" if first else last
        return f"a row with {names}" + (" as lists of messages" if self.turns and first else "")


def form_of(row: Mapping[str, Any]) -> Form:
    """The form of a row, by its fields and whether its answers are text or lists; further fields are allowed."""
    form = _unlabelled_form_of(row)
    if isinstance(row.get("label"), bool) and form.shape in ("prompt-completion", "messages"):
        return replace(form, shape="unpaired-messages" if form.turns else "unpaired")
    return form


def _unlabelled_form_of(row: Mapping[str, Any]) -> Form:
    for shape, fields in _FIELDS:
        if _has(row, fields):
            return _form(row, shape, fields)
    if not any(_has(row, fields) for fields in _OTHERS):
        if row.get("text") is not None:  # beside all others it is these, rendered
            return Form("text", ("text",))
        for shape, fields in _FIELDS:
            if all(field in row for field in fields):
                return _form(row, shape, fields)
    return Form("other")


def problem_of(row: Mapping[str, Any], form: Form) -> str | None:
    """What is wrong with the first field that is wrong, None when all are right or some run does not read them."""
    for field in form.fields:
        value = row[field]
        turns = (_as_turns(value) if field == "prompt" else _as_list(value)) if form.turns else value
        if form.turns and not (field == "prompt" and isinstance(turns, str)):
            problem = _turns_problem(turns, field)
        else:
            problem = _text_problem(value, field)
        if problem is not None:
            return None if _serves_both_methods(row) else problem
    return None


def _has(row: Mapping[str, Any], fields: tuple[str, ...]) -> bool:
    return all(row.get(field) is not None for field in fields)


def _serves_both_methods(row: Mapping[str, Any]) -> bool:
    """Whether a row has a pair of answers and also what SFT reads: each method passes over the other's fields."""
    return _has(row, _PAIR) and any(_has(row, fields) for fields in _LEARNED)


def _form(row: Mapping[str, Any], shape: Shape, fields: tuple[str, ...]) -> Form:
    if shape == "messages":
        return Form(shape, fields, turns=True)
    turns = any(_holds_turns(row[field]) for field in fields[1:])
    return Form("preference-messages" if shape == "preference" and turns else shape, fields, turns)


def _as_list(value: Any) -> Any:
    """The list that a text holds as JSON, as rows from tables have it; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        return decode(value.encode())
    except ValueError:  # also half of a surrogate pair
        return value


def _as_turns(value: Any) -> Any:
    """The list of turns that a text holds as JSON: its first item has a role. A text to learn may be a list itself."""
    turns = _as_list(value)
    first = turns[0] if isinstance(turns, list) and turns else None
    return turns if isinstance(first, dict) and ("role" in first or "from" in first) else value


def _holds_turns(value: Any) -> bool:
    turns = _as_turns(value)
    return isinstance(turns, list) and (not turns or isinstance(turns[0], dict))


def _text_problem(value: Any, field: str, *, empty: bool = False) -> str | None:
    if type(value) is not str:
        return f"{field}: must be a string, is {_kind(value)}"
    if not value or value.isspace():
        return None if empty else f"{field}: is empty"
    if "\0" in value:
        return f"{field}: holds a NUL character, at character {value.index(chr(0)) + 1}"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"{field}: holds half of a surrogate pair, which is no character"
    return None


def _turns_problem(value: Any, field: str) -> str | None:
    if not isinstance(value, list):
        return f"{field}: must be a list of messages, is {_kind(value)}"
    if not value:
        return f"{field}: is empty"
    sharegpt = isinstance(value[0], dict) and "from" in value[0] and "role" not in value[0]
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    for index, turn in enumerate(value):
        where = f"{field}[{index}]"
        if not isinstance(turn, dict):
            return f"{where}: must be an object, is {_kind(turn)}"
        given = turn.get(role_key)
        role = re.sub(r"[\s-]+", "_", given.strip().lower()) if isinstance(given, str) else ""
        if role not in _ROLES:
            is_what = f"is {_short(given)}" if role_key in turn else "is missing"
            known = "must be system, developer, user, assistant or tool, or another name of theirs"
            return f"{where}.{role_key}: {known}, {is_what}"
        problem = _content_problem(turn, f"{where}.{content_key}", role, content_key)
        if problem is not None:
            return problem
    return None


def _content_problem(turn: dict[str, Any], field: str, role: str, key: str) -> str | None:
    content = turn.get(key)
    if role in _CALL:
        return None  # a call as JSON, which the export reads
    empty = role in _TOOL or bool(turn.get("tool_calls"))
    if content is None and empty:
        return None
    if key not in turn:
        return f"{field}: is missing"
    if not isinstance(content, list):
        return _text_problem(content, field, empty=empty)
    if not content:
        return f"{field}: is empty"
    for index, part in enumerate(content):
        where = f"{field}[{index}]"
        if not isinstance(part, dict):
            return f"{where}: must be an object, is {_kind(part)}"
        if part.get("type") != "text":
            return f"{where}.type: must be 'text', is {_short(part.get('type'))}: other content cannot be trained on"
        if (problem := _text_problem(part.get("text"), f"{where}.text")) is not None:
            return problem
    return None


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "a number")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
