"""Conversations: turns of system, user, assistant and tools, in an order that chat templates can render.

One turn of system or developer at most, and at the start; then user and assistant in turn. An assistant turn with
`tool_calls` is followed by the tools' answers, and these by the assistant. Where a row has no `tool_calls` at all, its
calls are text, and a tool may answer any turn of the assistant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from model.data.fields import Reading
from model.data.records import Problem
from model.data.texts import as_list, by_turn, check_mapping, listed, not_a_list, short
from model.data.turns import CALL, OPENING, Message, is_read, read_turn, role_of, spelling_of

_RESPONSE = re.compile(r"\s*<tool_response>(.*?)</tool_response>\s*", re.DOTALL)
_UNWRAPPED = "<tool_response> around what tools answer is taken off: chat templates write such marks themselves"


class _Moved(Message):
    """A turn that stands elsewhere than in the row; `index` is its place there."""

    index: int


def read_turns(value: Any, field: str, problems: list[Problem], reading: Reading | None = None) -> list[Message]:
    """Return the normalised turns of a conversation; what is wrong with one of them is added to the problems."""
    reading = reading or Reading()
    value = by_turn(as_list(value))
    if not isinstance(value, list):
        problems.append(Problem(field, f"must be a list, is {not_a_list(value)}", "wrongType"))
        return []
    if not value:
        problems.append(Problem(field, "is empty", "empty"))
        return []
    spelling = spelling_of(value)
    turns: list[Message] = []
    roles: list[str | None] = []
    for index, turn in enumerate(value):
        where = f"{field}[{index}]"
        if not check_mapping(turn, where, problems):
            continue
        read, role = read_turn(turn, where, spelling, problems, reading), role_of(turn.get(spelling.role))
        if roles and _are_one(turns[-1], roles[-1], read, role, merge=reading.merge):
            _append(turns[-1], read, where, problems)
            continue
        roles.append(role)
        turns.append(read if len(turns) == index else _moved(read, index))
        if role == "tool" and "<tool_response>" in str(read["content"]):
            turns[-1:] = _responses(turns[-1], index, reading)
            roles += [role] * (len(turns) - len(roles))
    return turns


def unread_keys(value: Any) -> list[str]:
    """Return what the turns of a conversation hold beside what is read of them."""
    turns = by_turn(as_list(value))
    if not isinstance(turns, list):
        return []
    spelling = spelling_of(turns)
    keys = (key for turn in turns if isinstance(turn, dict) for key, held in turn.items() if held is not None)
    return [key for key in dict.fromkeys(keys) if not is_read(key) and key not in (spelling.role, spelling.content)]


def check_order(
    turns: Sequence[Message],
    field: str,
    problems: list[Problem],
    *,
    before: Sequence[Message] = (),
    last: tuple[str, ...] = ("assistant",),
    start: int = 0,
) -> None:
    """Check that the turns follow upon each other, and that the last is by one of the roles given.

    Turns that stand before these, already checked, are given as `before`; `start` is the first turn's place in the
    field.
    """
    previous = before[-1] if before else None
    unanswered: list[str] | None = None
    calls_are_text = not any("tool_calls" in turn for turn in (*before, *turns))
    for index, turn in enumerate(turns, start):
        if (text := _out_of_order(previous, turn, calls_are_text=calls_are_text)) is not None:
            place = turn.index if isinstance(turn, _Moved) else index
            problems.append(Problem(f"{field}[{place}].role", text, "order"))
            return
        if turn["role"] == "assistant":
            unanswered = [call["id"] for call in turn.get("tool_calls", ()) if "id" in call] or None
        elif unanswered is not None and "tool_call_id" in turn:
            place = turn.index if isinstance(turn, _Moved) else index
            _answer(turn["tool_call_id"], unanswered, f"{field}[{place}].tool_call_id", problems)
        previous = turn
    if turns and turns[-1]["role"] not in last:
        if "assistant" in last and not any(turn["role"] == "assistant" for turn in turns):
            problems.append(Problem(field, "has no assistant turn to learn from", "order"))
        else:
            text = f"ends with a turn of {turns[-1]['role']}, must end with a turn of {' or '.join(last[:2])}"
            problems.append(Problem(field, text, "order"))


def _answer(identifier: str, unanswered: list[str], field: str, problems: list[Problem]) -> None:
    """Check that a tool answers one of the calls that wait for an answer."""
    if identifier in unanswered:
        unanswered.remove(identifier)
    else:
        waiting = listed(unanswered, "and") if unanswered else "none of the calls before it"
        text = f"is {short(identifier)}, but what waits for an answer is {waiting}"
        problems.append(Problem(field, text, "toolCall"))


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


_AFTER = {
    "system": ("user", "assistant"),
    "developer": ("user", "assistant"),
    "user": ("assistant",),
    "assistant": ("user",),
    "tool": ("tool", "assistant"),
}


def _out_of_order(previous: Message | None, turn: Message, *, calls_are_text: bool) -> str | None:
    role = turn["role"]
    if previous is None:
        allowed: tuple[str, ...] = ("system", "developer", "user")
        when = "a conversation starts with"
    elif previous["role"] == "assistant" and "tool_calls" in previous:
        allowed, when = ("tool",), "after an assistant turn with tool_calls comes"
    else:
        allowed = _AFTER[previous["role"]]
        when = f"after a turn of {previous['role']} comes"
        if role == "tool" and previous["role"] == "assistant" and calls_are_text:
            return None
    if role in allowed:
        return None
    if role in OPENING:
        return f"is {role}, but only the first turn may be"
    if role == "tool" and previous is not None and previous["role"] == "assistant":
        return "is tool, but the assistant turn before it has no tool_calls to answer"
    remedy = ""
    if previous is not None and role == previous["role"]:
        remedy = ": join the two, or have it done with --turns=Merge (turns in a TrainingRun)"
    return f"is {role}, but {when} {listed(allowed, 'or')}{remedy}"


def _are_one(before: Message, role_before: str | None, turn: Message, role: str | None, *, merge: bool) -> bool:
    """Whether a turn goes on with the one before it: several calls always do, further texts on request."""
    if role == role_before == CALL:
        return True
    return merge and role != "tool" and turn["role"] == before["role"] and None not in (role, role_before)


def _append(before: Message, turn: Message, where: str, problems: list[Problem]) -> None:
    """Add a turn to the one before it, of the same role."""
    if before.get("weight") != turn.get("weight"):
        text = "cannot be merged with the turn before it: only one of the two is learned"
        problems.append(Problem(where, text, "weight"))
    for key in ("content", "reasoning_content"):
        texts = [str(text) for text in (before.get(key), turn.get(key)) if text]
        if texts:
            before[key] = "\n\n".join(texts)
    if calls := [*before.get("tool_calls", ()), *turn.get("tool_calls", ())]:
        before["tool_calls"] = calls


def _moved(turn: Message, index: int) -> Message:
    moved = _Moved(turn)
    moved.index = index
    return moved


def _responses(turn: Message, index: int, reading: Reading) -> list[Message]:
    """Return the tools' answers that one turn holds between marks, each as a turn of its own and without them."""
    text: str = turn["content"]
    answers = [match[1].strip() for match in _RESPONSE.finditer(text)]
    if not answers or _RESPONSE.sub("", text):
        return [turn]
    reading.notes[_UNWRAPPED] += 1
    return [_moved({**turn, "content": answer}, index) for answer in answers]
