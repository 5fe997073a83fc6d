"""Conversations: turns of system, user, assistant and tools, read from two ways of writing them.

Roles come in an order that every chat template can render: one system turn at most and at the start, then user and
assistant in turn; an assistant turn with `tool_calls` is followed by the tools' answers and then by the assistant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.data.records import Problem
from model.data.texts import as_list, check_mapping, check_text, not_a_list, short
from model.data.tools import read_calls, read_function_call

Message = dict[str, Any]

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Spelling:
    """How a dataset writes a turn: the names of its keys and of the roles."""

    role: str
    content: str
    roles: dict[str, str]


OPENAI = Spelling("role", "content", {role: role for role in ROLES})
SHAREGPT = Spelling(
    "from",
    "value",
    {
        **{role: role for role in ROLES},
        "human": "user",
        "gpt": "assistant",
        "chatgpt": "assistant",
        "model": "assistant",
        "function_call": "assistant",
        "observation": "tool",
        "function_response": "tool",
    },
)


REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Under which an assistant turn's thoughts stand beside its content; kept under the first of these."""

_READ_KEYS = {"role", "content", "from", "value", "tool_calls", "name", "tool_call_id", "weight", *REASONING_KEYS}


def spelling_of(turns: Any) -> Spelling:
    """Return how a conversation's first turn is written."""
    first = turns[0] if isinstance(turns, list) and turns else None
    return SHAREGPT if isinstance(first, dict) and "from" in first and "role" not in first else OPENAI


def read_turns(value: Any, field: str, problems: list[Problem]) -> list[Message]:
    """Return the normalised turns of a conversation; what is wrong with one of them is added to the problems."""
    value = as_list(value)
    if not isinstance(value, list):
        problems.append(Problem(field, f"must be a list, is {not_a_list(value)}", "wrongType"))
        return []
    if not value:
        problems.append(Problem(field, "is empty", "empty"))
        return []
    spelling = spelling_of(value)
    turns = []
    for index, turn in enumerate(value):
        where = f"{field}[{index}]"
        if check_mapping(turn, where, problems):
            turns.append(_read_turn(turn, where, spelling, problems))
    return turns


def unread_keys(value: Any) -> list[str]:
    """Return what the turns of a conversation hold beside what is read of them."""
    turns = as_list(value)
    if not isinstance(turns, list):
        return []
    keys = (key for turn in turns if isinstance(turn, dict) for key, held in turn.items() if held is not None)
    return [key for key in dict.fromkeys(keys) if key not in _READ_KEYS]


def check_order(
    turns: Sequence[Message],
    field: str,
    problems: list[Problem],
    *,
    before: Sequence[Message] = (),
    last: tuple[str, ...] = ("assistant",),
) -> None:
    """Check that the turns follow upon each other, and that the last is by one of the roles given.

    Turns that stand before these, already checked, are given as `before`.
    """
    previous = before[-1] if before else None
    for index, turn in enumerate(turns):
        if (text := _out_of_order(previous, turn)) is not None:
            problems.append(Problem(f"{field}[{index}].role", text, "order"))
            return
        previous = turn
    if turns and turns[-1]["role"] not in last:
        if "assistant" in last and not any(turn["role"] == "assistant" for turn in turns):
            problems.append(Problem(field, "has no assistant turn to learn from", "order"))
        else:
            text = f"ends with a turn of {turns[-1]['role']}, must end with a turn of {' or '.join(last)}"
            problems.append(Problem(field, text, "order"))


def seen_only(turns: Sequence[Message]) -> list[Message]:
    """Return the turns with those of the assistant marked as not learned."""
    return [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in turns]


def check_learned(turns: Sequence[Message], field: str, problems: list[Problem]) -> None:
    """Check that at least one turn of the assistant is learned."""
    if not any(turn["role"] == "assistant" and "weight" not in turn for turn in turns):
        text = "has no assistant turn to learn from: all are of weight 0"
        problems.append(Problem(field, text, "weight"))


def without_weights(turns: Sequence[Message]) -> list[Message]:
    """Return the turns without their weights, where none is learned anyway."""
    return [{key: held for key, held in turn.items() if key != "weight"} for turn in turns]


def _out_of_order(previous: Message | None, turn: Message) -> str | None:
    role = turn["role"]
    if previous is None:
        allowed: tuple[str, ...] = ("system", "user")
        when = "a conversation starts with"
    elif previous["role"] == "assistant" and "tool_calls" in previous:
        allowed, when = ("tool",), "after an assistant turn with tool_calls comes"
    else:
        allowed = {"system": ("user",), "user": ("assistant",), "assistant": ("user",), "tool": ("tool", "assistant")}[
            previous["role"]
        ]
        when = f"after a turn of {previous['role']} comes"
    if role in allowed:
        return None
    if role == "system":
        return "is system, but only the first turn may be"
    if role == "tool" and previous is not None and previous["role"] == "assistant":
        return "is tool, but the assistant turn before it has no tool_calls to answer"
    return f"is {role}, but {when} {' or '.join(allowed)}"


def _read_turn(turn: Any, where: str, spelling: Spelling, problems: list[Problem]) -> Message:
    given = turn.get(spelling.role)
    role = spelling.roles.get(given) if isinstance(given, str) else None
    if role is None:
        text = f"must be one of {', '.join(spelling.roles)}, is {short(given)}"
        missing = spelling.role not in turn
        problems.append(Problem(f"{where}.{spelling.role}", "is missing" if missing else text, "role"))
    content = f"{where}.{spelling.content}"
    calls: list[Any] = []
    message: Message = {"role": role or "unknown"}
    if given == "function_call":
        calls = read_function_call(turn.get(spelling.content), content, problems)
        message["content"] = ""
    else:
        calling = bool(turn.get("tool_calls"))
        if calling:
            calls = _calls(turn, where, role, problems)
        message["content"] = _content(turn, content, spelling, problems, empty=calling or role == "tool")
    if calls:
        message["tool_calls"] = calls
    if len(turn) > 2 or spelling.content not in turn:  # most turns are but role and content
        _read_further(turn, where, role, message, problems)
    return message


def _read_further(turn: Any, where: str, role: str | None, message: Message, problems: list[Problem]) -> None:
    """Add to a message what its turn has beside role, content and calls."""
    for key in ("name", "tool_call_id"):
        if turn.get(key) is not None:
            check_text(turn[key], f"{where}.{key}", problems)
            message[key] = turn[key]
    if turn.get("function_call") is not None:
        problems.append(Problem(f"{where}.function_call", "is not read: write the call as tool_calls", "toolCall"))
    if reasoning := _reasoning(turn, where, role, problems):
        message["reasoning_content"] = reasoning
    if (weight := turn.get("weight")) is not None:
        if weight not in (0, 1):
            problems.append(Problem(f"{where}.weight", f"must be 0 or 1, is {short(weight)}", "weight"))
        elif weight == 0 and role == "assistant":
            message["weight"] = 0


def _reasoning(turn: Any, where: str, role: str | None, problems: list[Problem]) -> str | None:
    """Return what an assistant turn thinks, None when it does not."""
    given = {key: turn[key] for key in REASONING_KEYS if turn.get(key) is not None}
    given = {key: text for key, text in given.items() if not isinstance(text, str) or text.strip()}
    first: str | None = None
    for key, text in given.items():
        check_text(text, f"{where}.{key}", problems)
        if role not in ("assistant", None):
            misplaced = f"is given for a turn of {role}, only assistants think: leave it out"
            problems.append(Problem(f"{where}.{key}", misplaced, "role"))
        elif first is not None and text != first:
            problems.append(
                Problem(f"{where}.{key}", f"differs from {next(iter(given))} beside it: keep one", "reasoning")
            )
        first = text if first is None else first
    return first


def _calls(turn: Any, where: str, role: str | None, problems: list[Problem]) -> list[Any]:
    if role not in ("assistant", None):
        problems.append(Problem(f"{where}.tool_calls", f"is given for a turn of {role}, only assistants call", "role"))
        return []
    return read_calls(turn["tool_calls"], f"{where}.tool_calls", problems)


def _content(turn: Any, field: str, spelling: Spelling, problems: list[Problem], *, empty: bool) -> Any:
    """Return a turn's text. Null next to tool calls becomes empty text, on which all chat templates agree."""
    text = turn.get(spelling.content)
    if text is None and empty:
        return ""
    if spelling.content not in turn:
        problems.append(Problem(field, "is missing", "missing"))
    elif isinstance(text, list):
        return _joined(text, field, problems)
    else:
        check_text(text, field, problems, empty=empty)
    return text


def _joined(parts: list[Any], field: str, problems: list[Problem]) -> str:
    """Return the text of a content that is a list of parts, of which only text can be learned."""
    texts = []
    for index, part in enumerate(parts):
        where = f"{field}[{index}]"
        if not check_mapping(part, where, problems):
            continue
        if part.get("type") != "text":
            text = f"must be 'text', is {short(part.get('type'))}: other content cannot be trained on"
            problems.append(Problem(f"{where}.type", text, "wrongType"))
        else:
            check_text(part.get("text"), f"{where}.text", problems)
            texts.append(str(part.get("text")))
    if not parts:
        problems.append(Problem(field, "is empty", "empty"))
    return "".join(texts)
