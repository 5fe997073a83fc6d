"""Conversations as exported rows have them, in the form that a chat template wants them in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from model.training.rows.outcomes import Outcomes, Place, RefusedRowError
from model.training.rows.template import NONE, REASONING, ChatTemplate, Messages, turn

Content = dict[str, Any]

PLAIN_KEYS = frozenset({"role", "content"})
IGNORE = "leave the column out with --ignore-column=chat_template_kwargs (ignoredColumns in a TrainingRun)"

_GIVEN = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


@dataclass(frozen=True)
class Conversation:
    """What is rendered of a row: `turns` are the messages to learn.

    `field` names a message of it, by its index, the way the row does; `variables` are those of its chat template.
    """

    messages: Messages
    turns: tuple[int, ...]
    place: Place
    tools: list[dict[str, Any]] | None
    field: Callable[[int], str]
    variables: Mapping[str, Any]


def single(content: Content, place: Place) -> Conversation:
    """Return the conversation of a row of the shape prompt-completion or messages."""
    if "messages" not in content:
        messages = [turn("user", content["prompt"]), turn("assistant", content["completion"])]
        names = ("prompt", "completion")
        return Conversation(messages, (1,), place, content.get("tools"), names.__getitem__, variables(content))
    messages, turns = _learned(content["messages"], 0)
    if not turns:
        raise RefusedRowError(
            place, "messages: no assistant turn follows a user's, so there is nothing to learn: leave it out"
        )
    field = "messages[{}]".format
    return Conversation(messages, turns, place, content.get("tools"), field, variables(content))


def answered(content: Content, side: str, place: Place) -> Conversation:
    """Return the conversation of a prompt and the answer in the field `side`, which alone is learned."""
    if isinstance(content["prompt"], str):
        messages = [turn("user", content["prompt"]), turn("assistant", content[side])]
        names = ("prompt", side)
        return Conversation(messages, (1,), place, content.get("tools"), names.__getitem__, variables(content))
    prompt, answer = content["prompt"], content[side]
    if not prompt or not answer or answer[0]["role"] != "assistant":
        raise RefusedRowError(
            place,
            f"{side}: must begin with the assistant's turn, and prompt must hold all that precedes it, for an answer "
            "is judged as what follows its prompt",
        )
    first = len(prompt)
    messages, turns = _learned([*prompt, *answer], first)
    return Conversation(
        messages,
        turns,
        place,
        content.get("tools"),
        lambda index: f"{side}[{index - first}]" if index >= first else f"prompt[{index}]",
        variables(content),
    )


def _learned(messages: Messages, first: int) -> tuple[Messages, tuple[int, ...]]:
    """Return the messages without weights, and the indexes from `first` on that are learned.

    A turn of the assistant that nothing precedes is never asked for, and is not learned.
    """
    turns = tuple(
        index
        for index, message in enumerate(messages)
        if index >= max(first, 1) and message["role"] == "assistant" and "weight" not in message
    )
    if any("weight" in message for message in messages):
        messages = [{key: held for key, held in message.items() if key != "weight"} for message in messages]
    return messages, turns


def variables(content: Content) -> Mapping[str, Any]:
    """Return the variables that a row gives its chat template."""
    return content.get("chat_template_kwargs") or NONE


def prepared(row: Conversation, template: ChatTemplate, outcomes: Outcomes) -> Conversation:
    """Return the conversation in the form that the template wants.

    Thoughts stand under the key that it reads, arguments of calls are objects or text, and where it knows no developer
    or system that is what precedes it: a system turn, or the beginning of the first user turn.
    """
    _check_variables(row, template)
    _check_marks(row, template, outcomes)
    messages = row.messages
    if any(message.keys() - PLAIN_KEYS for message in messages):
        messages = [_with_calls(message, row, template) for message in messages]
        messages = [_with_reasoning(message, index, row, template) for index, message in enumerate(messages)]
    if messages[0]["role"] == "developer" and not template.has_developer:
        messages = [messages[0] | {"role": "system"}, *messages[1:]]
    if messages[0]["role"] == "system" and len(messages) > 1 and not template.has_system:
        return _without_system(replace(row, messages=messages), outcomes)
    return row if messages is row.messages else replace(row, messages=messages)


def _without_system(row: Conversation, outcomes: Outcomes) -> Conversation:
    """Put what the system says before what the first user says."""
    system, user = row.messages[:2]
    if user["role"] != "user":
        return row  # the template may say what it makes of that
    outcomes.system_folded.add(row.place)
    merged = user | {"content": f"{system['content'].strip()}\n\n{user['content']}"}
    field = row.field
    return replace(
        row,
        messages=[merged, *row.messages[2:]],
        turns=tuple(index - 1 for index in row.turns),
        field=lambda index: field(index + 1),
    )


def _check_variables(row: Conversation, template: ChatTemplate) -> None:
    """Refuse a variable that the template does not read: what it says would be lost without a word."""
    for name in row.variables:
        if name in _GIVEN or not re.search(rf"\b{re.escape(name)}\b", template.text):
            text = f"chat_template_kwargs.{name}: the base model's chat template has no such variable: {IGNORE}"
            raise RefusedRowError(row.place, text)


def _check_marks(row: Conversation, template: ChatTemplate, outcomes: Outcomes) -> None:
    """Refuse texts that are rendered already, and count rows whose texts hold what the tokenizer takes for tokens."""
    marked = False
    for index, message in enumerate(row.messages):
        text = message["content"]
        found = [mark for mark in template.marks if mark in text]
        if not found:
            continue
        if opening := template.opening_of(text):
            raise RefusedRowError(
                row.place,
                f"{row.field(index)}: begins with {opening}, as turns do in the base model's chat template: it "
                "is rendered already, and would be rendered a second time; give the plain text, or turns in messages",
            )
        if message["role"] == "assistant" and template.closing:  # an end token at its end stands for the template's
            text = text.rstrip().removesuffix(template.closing)
        marked = marked or any(mark in text for mark in found)
    if marked:
        outcomes.special_tokens.add(row.place)


def _with_reasoning(message: dict[str, Any], index: int, row: Conversation, template: ChatTemplate) -> dict[str, Any]:
    """Put what the assistant thinks under the key that the template reads."""
    if (text := message.get(REASONING)) is None:
        return message
    if template.reasoning_key is None and index in row.turns:
        raise without_thoughts(row, index)
    message = {key: held for key, held in message.items() if key != REASONING}
    return message if template.reasoning_key is None else message | {template.reasoning_key: text}


def _with_calls(message: dict[str, Any], row: Conversation, template: ChatTemplate) -> dict[str, Any]:
    """Return a message with the arguments of its calls as the template writes them rightly."""
    if not message.get("tool_calls"):
        return message
    as_text = template.takes_arguments_as_text
    return message | {"tool_calls": [_with_arguments(call, row.place, as_text) for call in message["tool_calls"]]}


def _with_arguments(call: dict[str, Any], place: Place, as_text: bool) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments")
    if not isinstance(arguments, str) and not as_text:
        return call
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError as error:
            text = f"tool_calls: the arguments of {function.get('name')} are not JSON: {error}"
            raise RefusedRowError(place, text) from error
    if as_text and arguments is not None:
        arguments = json.dumps(arguments, ensure_ascii=False)
    function = function | {"arguments": arguments}
    return call | {"function": function} if "function" in call else function


def without_thoughts(row: Conversation, index: int) -> RefusedRowError:
    """Return the refusal of a learned turn whose thoughts the template leaves out."""
    return RefusedRowError(
        row.place,
        f"{row.field(index)}.{REASONING}: the base model's chat template does not show it here, so the model "
        "would learn to answer without a thought: use a base model whose template shows it, write it into content as "
        "that model writes its thoughts (often between <think> and </think>), or leave it out",
    )
