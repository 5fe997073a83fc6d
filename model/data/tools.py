"""Tools that a model may call, and its calls of them, in the form that chat templates expect.

A tool is `{"type": "function", "function": {"name", ...}}`; a call is the same with `arguments`, an object. What
comes without the wrapper, as JSON in a string (as OpenAI's interface writes arguments), or with another name for the
arguments, is brought to that form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from model.data import keys
from model.data.decode import decode_text
from model.data.records import InvalidRowError, Problem
from model.data.texts import as_list, check_json, check_mapping, check_text, kind, names, not_a_list

_ARGUMENTS = ("arguments", "parameters", "args", "kwargs", "params", "input")
"""What the arguments of a call are called."""

_OF_A_CALL = frozenset({"name", "id", "type", "index", "function", "description", *_ARGUMENTS})


def read_tools(value: Any, field: str, problems: list[Problem]) -> list[dict[str, Any]]:
    """Return the tools of a row; none when the value is null or empty."""
    value = as_list(value)
    if value is None or value in ("", []):
        return []
    if not isinstance(value, list):
        problems.append(Problem(field, f"must be a list of tools, is {not_a_list(value)}", "wrongType"))
        return []
    tools = []
    for index, tool in enumerate(value):
        where = f"{field}[{index}]"
        if (function := _function(tool, where, problems)) is not None:
            check_json(tool, where, problems)
            tools.append({"type": "function", "function": dict(function)})
    return tools


def read_calls(value: Any, field: str, problems: list[Problem]) -> list[dict[str, Any]]:
    """Return the tool calls of an assistant turn, one or a list; none when the value is null or empty."""
    value = _decoded(value)
    if value is None or value in ("", []):
        return []
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        problems.append(Problem(field, f"must be a list of calls, is {not_a_list(value)}", "wrongType"))
        return []
    found = (_call(_decoded(item), f"{field}[{index}]", problems) for index, item in enumerate(value))
    return [call for call in found if call]


def read_function_call(value: Any, field: str, problems: list[Problem]) -> list[dict[str, Any]]:
    """Return the calls that a ShareGPT `function_call` turn holds as JSON: one object, or a list of them."""
    if not isinstance(value, str):
        problems.append(Problem(field, f"must be a string with JSON, is {kind(value)}", "wrongType"))
        return []
    try:
        decoded = decode_text(value)
    except InvalidRowError as error:
        problems.append(Problem(field, f"must hold a call as JSON: {error}", "toolCall"))
        return []
    return read_calls(decoded if isinstance(decoded, list) else [decoded], field, problems)


def identifier(value: Any) -> Any:
    """Return what a call goes by; a number as text, as templates compare and write it."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _decoded(value: Any) -> Any:
    """Return the list or object that a text holds as JSON; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return decode_text(value)
    except InvalidRowError:
        return value


def _call(item: Any, where: str, problems: list[Problem]) -> dict[str, Any] | None:
    function = _function(item, where, problems)
    if function is None:
        return None
    inside = f"{where}.function" if "function" in item else where
    key, value = _named_arguments(function, item, inside, problems)
    arguments = _arguments(value, f"{inside}.{key}", problems)
    call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if item.get("id") not in (None, ""):
        name = identifier(item["id"])
        check_text(name, f"{where}.id", problems)
        call = {"id": name, **call}
    return call


def _named_arguments(function: Any, item: Any, where: str, problems: list[Problem]) -> tuple[str, Any]:
    """Return under which key a call has its arguments, and these; they may stand beside the function, too."""
    given = {key: holder[key] for holder in (item, function) for key in _ARGUMENTS if holder.get(key) is not None}
    if len(given) > 1:
        problems.append(Problem(where, f"has {names(given)}: keep one of them as arguments", "toolCall"))
    elif not given and (
        other := [key for key in function if key not in _OF_A_CALL and not keys.is_null(function[key])]
    ):
        problems.append(Problem(where, f"has no arguments, but {names(other)}: call them arguments", "toolCall"))
    return next(iter(given.items()), ("arguments", None))


def _function(item: Any, where: str, problems: list[Problem]) -> Any:
    if not check_mapping(item, where, problems):
        return None
    if item.get("function") is not None:
        where, item = f"{where}.function", _decoded(item["function"])
        if not check_mapping(item, where, problems):
            return None
    if "name" not in item:
        problems.append(Problem(f"{where}.name", "is missing", "missing"))
        return None
    before = len(problems)
    check_text(item["name"], f"{where}.name", problems)
    return item if len(problems) == before else None


def _arguments(value: Any, field: str, problems: list[Problem]) -> Any:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = decode_text(value)
        except InvalidRowError as error:
            problems.append(Problem(field, f"must be an object, or one as JSON: {error}", "toolCall"))
            return {}
    if not check_mapping(value, field, problems):
        return {}
    check_json(value, field, problems)
    return value
