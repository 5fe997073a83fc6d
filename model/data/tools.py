"""Tools that a model may call, and its calls of them, in the form that chat templates expect.

A tool is `{"type": "function", "function": {"name", ...}}`; a call is the same with `arguments`, an object. What
comes without the wrapper, or as JSON in a string (as OpenAI's interface writes arguments), is brought to that form.
"""

from __future__ import annotations

from typing import Any

from model.data.decode import decode_text
from model.data.records import InvalidRowError, Problem
from model.data.texts import as_list, check_json, check_mapping, check_text, kind, not_a_list


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
    """Return the tool calls of an assistant turn; none when the value is null or empty."""
    value = as_list(value)
    if value is None or value in ("", []):
        return []
    if not isinstance(value, list):
        problems.append(Problem(field, f"must be a list of calls, is {not_a_list(value)}", "wrongType"))
        return []
    return [call for index, item in enumerate(value) if (call := _call(item, f"{field}[{index}]", problems))]


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


def _call(item: Any, where: str, problems: list[Problem]) -> dict[str, Any] | None:
    function = _function(item, where, problems)
    if function is None:
        return None
    inside = f"{where}.function" if "function" in item else where
    arguments = _arguments(function.get("arguments"), f"{inside}.arguments", problems)
    call = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if item.get("id") is not None:
        check_text(item["id"], f"{where}.id", problems)
        call = {"id": item["id"], **call}
    return call


def _function(item: Any, where: str, problems: list[Problem]) -> Any:
    if not check_mapping(item, where, problems):
        return None
    if item.get("function") is not None:
        where, item = f"{where}.function", item["function"]
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
    if check_mapping(value, field, problems):
        check_json(value, field, problems)
    return value
