"""One turn of a conversation, in the ways in which turns are written, and what of it is learned."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.data import keys
from model.data.fields import Reading
from model.data.records import Problem
from model.data.texts import check_mapping, check_text, kind, media_in, names, short
from model.data.tools import identifier, read_calls, read_function_call

Message = dict[str, Any]

CALL = "call"
"""Role of a turn that is nothing but a call of a tool, written as JSON."""

_NAMES = {
    "system": ("system",),
    "developer": ("developer",),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "model", "bot", "ai"),
    "tool": ("tool", "observation", "function_response", "tool_response", "tool_result", "function", "ipython"),
    CALL: ("function_call", "tool_call"),
}
ROLES = {name: role for role, names in _NAMES.items() for name in names}
"""What roles are called, in lower case and with underscores, and which they are."""

OPENING = ("system", "developer")
"""Roles of a turn that says what the whole conversation is about."""


@dataclass(frozen=True)
class Spelling:
    """How a dataset calls the keys of a turn."""

    role: str
    content: str


_READ_KEYS = {"role", "content", "from", "value", "tool_calls", "name", "tool_call_id", "function_call"}
_ROLE_KEYS = ("role", "from", "speaker", "sender", "author")
_CONTENT_KEYS = ("content", "value", "text", "message")


def spelling_of(turns: Any) -> Spelling:
    """Return how a conversation's first turn is written."""
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
    role = next((key for key in _ROLE_KEYS if key in first), "role")
    content = next((key for key in _CONTENT_KEYS if key in first), "value" if role == "from" else "content")
    return Spelling(role, content)


def role_of(given: Any) -> str | None:
    """Return which role a turn's author has, however it is spelled; None for an unknown one."""
    if not isinstance(given, str):
        return None
    return ROLES.get(given) or ROLES.get(re.sub(r"[\s-]+", "_", given.strip().lower()))


def is_read(key: str) -> bool:
    """Whether something becomes of a turn's key."""
    return key in _READ_KEYS or keys.turn_rule(key) is not None


def read_turn(turn: Any, where: str, spelling: Spelling, problems: list[Problem], reading: Reading) -> Message:
    """Return a normalised turn, of the assistant if it is a call; what is wrong with it is added to the problems."""
    given = turn.get(spelling.role)
    role = role_of(given)
    if role is None:
        others = "or another name of theirs, such as human and gpt"
        text = f"must be system, developer, user, assistant or tool, {others}, is {short(given)}"
        if spelling.role not in turn:
            text = f"is missing: the turn has {names(turn) or 'nothing'}; write role and content in all turns"
        problems.append(Problem(f"{where}.{spelling.role}", text, "role"))
    content = f"{where}.{spelling.content}"
    calls: list[Any] = []
    message: Message = {"role": "assistant" if role == CALL else role or "unknown"}
    if role == CALL:
        calls = read_function_call(turn.get(spelling.content), content, problems)
        message["content"] = ""
    else:
        if calling := any(_is_given(turn.get(key)) for key in _CALL_KEYS):
            calls = _calls(turn, where, role, problems)
        message["content"] = _content(turn, content, spelling, problems, empty=calling or role == "tool")
        if (mark := media_in(message["content"], prompt=role == "user")) is not None:
            problems.append(Problem(content, mark, "media"))
    if calls:
        message["tool_calls"] = calls
        if any(None in call["function"]["arguments"].values() for call in calls):
            reading.notes[_NULL_ARGUMENTS] += 1
    if len(turn) > 2 or spelling.content not in turn:  # most turns are but role and content
        _read_further(turn, where, message, problems, reading)
    return message


def _read_further(turn: Any, where: str, message: Message, problems: list[Problem], reading: Reading) -> None:
    """Add to a message what its turn has beside role, content and calls."""
    for key in ("name", "tool_call_id"):
        if not keys.is_null(turn.get(key)) and turn[key] != "":
            message[key] = identifier(turn[key]) if key == "tool_call_id" else turn[key]
            check_text(message[key], f"{where}.{key}", problems)
    thoughts: dict[str, Any] = {}
    learned: dict[str, bool] = {}
    for key, value in turn.items():
        rule = None if key in _READ_KEYS or keys.is_null(value) else keys.turn_rule(key)
        if rule is None:
            continue
        if rule.kind == "turnThoughts":
            thoughts[key] = value
        elif rule.kind in ("learned", "notLearned") and (flag := keys.truth(value)) is not None:
            learned[key] = flag == (rule.kind == "learned")
        elif (text := _refusal(rule, value, message["role"])) is not None:
            problems.append(Problem(f"{where}.{key}", text, "media" if rule.kind == "media" else "weight"))
    if (reasoning := _reasoning(thoughts, where, message["role"], problems)) is not None:
        message["reasoning_content"] = reasoning
    if learned:
        _mark(learned, where, message, problems, reading)


def _refusal(rule: keys.Rule, value: Any, role: str) -> str | None:
    if rule.kind in ("learned", "notLearned"):
        return f"must be 0 or 1, is {short(value)}"
    if rule.kind == "unclear":
        if isinstance(value, str) and keys.truth(value) is None:
            return None  # it is about something else
        return "is not read, since tools read it in both ways: write weight: 0 where the turn is not learned, else 1"
    if keys.is_empty(value):
        return None
    if rule.kind == "channel":
        if role != "assistant" or str(value).strip().lower() in _FOR_EVERYBODY:
            return None
        remedy = "what is thought as reasoning_content of the answer, what is called as its tool_calls"
        return f"is {short(value)}, and only what is said to the user is read as content: write {remedy}"
    if rule.kind == "detail":
        return "is not read: a turn is learned as a whole or not at all, write weight: 1 or weight: 0"
    return "holds images or sound, but only text is trained on: leave the row out"


_FOR_EVERYBODY = ("final", "all", "user")
"""Channels and recipients of what an assistant says to the user."""


def _mark(learned: dict[str, bool], where: str, message: Message, problems: list[Problem], reading: Reading) -> None:
    """Mark a turn of the assistant that is not learned."""
    (first, is_learned), *others = learned.items()
    for key, other in others:
        if other != is_learned:
            problems.append(Problem(f"{where}.{key}", f"contradicts {first} beside it: keep one", "weight"))
    if message["role"] == "assistant":
        if not is_learned:
            message["weight"] = 0
    elif is_learned and first != "weight":
        reading.notes[f"turns of {message['role']} are marked with {first}, but only the assistant's are learned"] += 1


def _reasoning(given: dict[str, Any], where: str, role: str, problems: list[Problem]) -> str | None:
    """Return what an assistant turn thinks, None when it does not."""
    given = {key: text for key, text in given.items() if not isinstance(text, str) or text.strip()}
    first: str | None = None
    for key, text in given.items():
        check_text(text, f"{where}.{key}", problems)
        if role not in ("assistant", "unknown"):
            misplaced = f"is given for a turn of {role}, only assistants think: leave it out"
            problems.append(Problem(f"{where}.{key}", misplaced, "role"))
        elif first is not None and text != first:
            problems.append(
                Problem(f"{where}.{key}", f"differs from {next(iter(given))} beside it: keep one", "reasoning")
            )
        first = text if first is None else first
    return first


_NULL_ARGUMENTS = (
    "arguments of calls are null, and learned so: leave them out where a table has added the arguments of other calls"
)
_CALL_KEYS = ("tool_calls", "function_call")


def _is_given(value: Any) -> bool:
    """Whether there is more than the nulls that a table puts into all turns."""
    return bool(value) and not _is_filler(value)


def _is_filler(value: Any) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return keys.is_null(value) or (isinstance(value, list) and bool(value) and all(map(_is_filler, value)))


def _calls(turn: Any, where: str, role: str | None, problems: list[Problem]) -> list[Any]:
    """Return a turn's calls, in `tool_calls` or as its only one in `function_call`, as OpenAI had it before."""
    key, *others = (key for key in _CALL_KEYS if _is_given(turn.get(key)))
    if others:
        problems.append(Problem(f"{where}.{others[0]}", f"is given beside {key}: keep one", "toolCall"))
    if role not in ("assistant", None):
        problems.append(Problem(f"{where}.{key}", f"is given for a turn of {role}, only assistants call", "role"))
        return []
    return read_calls(turn[key], f"{where}.{key}", problems)


def _content(turn: Any, field: str, spelling: Spelling, problems: list[Problem], *, empty: bool) -> Any:
    """Return a turn's text. Null next to tool calls becomes empty text, on which all chat templates agree."""
    text = turn.get(spelling.content)
    if text is None and empty:
        return ""
    if spelling.content not in turn:
        problems.append(Problem(field, f"is missing: the turn has {names(turn)}", "missing"))
    elif isinstance(text, list):
        return _joined(text, field, problems)
    elif isinstance(text, Mapping):
        problems.append(Problem(field, f"must be a string, is {kind(text)}: write it as JSON text", "wrongType"))
    else:
        check_text(text, field, problems, empty=empty)
    return text


_TEXT_PARTS = ("text", "input_text", "output_text")
_OTHER_PARTS = {
    "thinking": "write it as reasoning_content of the turn",
    "reasoning": "write it as reasoning_content of the turn",
    "tool_use": "write it as tool_calls of the turn",
    "tool_call": "write it as tool_calls of the turn",
    "tool_result": "write it as a turn of role tool",
}


def _joined(parts: list[Any], field: str, problems: list[Problem]) -> str:
    """Return the text of a content that is a list of parts, of which only text can be learned."""
    texts = []
    for index, part in enumerate(parts):
        where = f"{field}[{index}]"
        if not check_mapping(part, where, problems):
            continue
        part_type = part.get("type", "text" if "text" in part else None)
        if part_type not in _TEXT_PARTS:
            remedy = _OTHER_PARTS.get(str(part_type), "other content cannot be trained on")
            problems.append(Problem(f"{where}.type", f"must be 'text', is {short(part_type)}: {remedy}", "wrongType"))
        else:
            check_text(part.get("text"), f"{where}.text", problems)
            texts.append(str(part.get("text")))
    if not parts:
        problems.append(Problem(field, "is empty", "empty"))
    return "".join(texts)
