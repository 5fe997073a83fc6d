"""From exported rows to text, and which spans of it are learned, for any chat template.

What a turn is made of is found by rendering the conversation up to it, with and without the turn, so that a
template needs no markers. For each row it is checked that these renderings are the beginning of the whole one: a
template that rewrites earlier turns would have the model learn what it never sees again. Turns that are seen and not
learned may lose their thoughts, as many templates have it: that is what the model sees at inference, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from model import exits
from model.exits import FailureError

Span = tuple[int, int]
Content = dict[str, Any]
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where a row comes from.

    Parameters
    ----------
    name
        What to call the dataset when it is a single file.
    file
        The source's file, None when there is only one.
    row
        1-based row of that file.
    """

    name: str
    file: str | None
    row: int

    @classmethod
    def of(cls, content: Content, name: str) -> Place:
        """Return the place that the export wrote into the row."""
        return cls(name, content.get("file"), content["row"])

    def __str__(self) -> str:
        return f"{self.file or self.name} row {self.row}"

    @property
    def short(self) -> str:
        """The place, without the dataset's name."""
        return f"{self.file} row {self.row}" if self.file else f"row {self.row}"

    def failure(self, text: str) -> FailureError:
        """Return the failure that this row causes."""
        return FailureError(exits.DATASET_INVALID, "DatasetInvalid", f"{self}: {text}", row=self.row)


@dataclass(frozen=True)
class Rendered:
    """One conversation as text.

    Parameters
    ----------
    text
        All of it, up to the end of the last learned turn.
    learned
        Spans of characters, in order.
    place
        Where the row comes from.
    closed
        Whether every span is known to end with an end token.
    """

    text: str
    learned: tuple[Span, ...]
    place: Place
    closed: bool


@dataclass(frozen=True)
class Conversation:
    """What is rendered of a row: learned are the assistant's turns from message `first` on, but those in `seen`.

    `field` names a message of it, by its index, the way the row does.
    """

    messages: Messages
    first: int
    place: Place
    tools: list[dict[str, Any]] | None
    field: Callable[[int], str]
    seen: frozenset[int] = frozenset()

    @property
    def turns(self) -> list[int]:
        """The learned messages; a turn that nothing precedes is never asked for, and is not learned."""
        start = max(self.first, 1)
        return [
            index
            for index, message in enumerate(self.messages)
            if index >= start and message["role"] == "assistant" and index not in self.seen
        ]


class Markers:
    """The tokens that a tokenizer cuts out of a text before anything else: turn headers, end tokens and the like."""

    def __init__(self, tokenizer: Any) -> None:
        added = {int(index): token for index, token in tokenizer.added_tokens_decoder.items()}
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self.ids: dict[str, int] = {str(t.content): i for i, t in added.items() if t.content.strip()} | special
        self.special_ids = frozenset(special.values()) | {index for index, token in added.items() if token.special}
        self._lengths = sorted({len(text) for text in self.ids}, reverse=True)

    def at_end(self, text: str) -> str | None:
        """Return the longest marker that the text ends with, None when it ends with none."""
        return next((text[-length:] for length in self._lengths if text[-length:] in self.ids), None)


class Renderer:
    """Renders rows with the tokenizer's chat template; without one, prompt and answer are joined as they are.

    A prompt and its answer are one user turn and one assistant turn. Learned is each assistant turn with its end
    token, and nothing after that: a model that does not learn the end token never stops.
    """

    def __init__(self, tokenizer: Any, markers: Markers) -> None:
        self._tokenizer = tokenizer
        self._markers = markers
        self.templated = bool(tokenizer.chat_template)
        self._closing = self._find_closing() if self.templated else None
        begin = tokenizer.bos_token
        self._doubled_begin = begin if not self.templated and begin and _begins_by_itself(tokenizer) else ""

    def conversations(self, contents: Sequence[Content], name: str) -> list[Rendered]:
        """Render rows of the shapes prompt-completion and messages.

        Raises
        ------
        FailureError
            When a row does not go with the template.
        """
        places = [Place.of(content, name) for content in contents]
        if not self.templated:
            return [self._join(c, "completion", place) for c, place in zip(contents, places, strict=True)]
        return self._render([_conversation(c, place) for c, place in zip(contents, places, strict=True)])

    def pairs(self, contents: Sequence[Content], name: str) -> list[tuple[Rendered, Rendered]]:
        """Render preference pairs, the chosen before the rejected; learned are the turns after the prompt.

        Raises
        ------
        FailureError
            When a pair does not go with the template.
        """
        sides = [(c, side, Place.of(c, name)) for c in contents for side in ("chosen", "rejected")]
        if self.templated:
            rendered = self._render([_answered(*side) for side in sides])
        else:
            rendered = [self._join(*side) for side in sides]
        return list(zip(rendered[::2], rendered[1::2], strict=True))

    def _join(self, content: Content, answer: str, place: Place) -> Rendered:
        if not isinstance(content.get("prompt"), str):
            raise place.failure(
                "it has messages, but the base model has no chat template: use plain text in prompt and "
                f"{answer}, or a chat model as the base model"
            )
        prompt = content["prompt"].removeprefix(self._doubled_begin)
        text = prompt + content[answer]
        return Rendered(text, ((len(prompt), len(text)),), place, closed=False)

    def _render(self, conversations: list[Conversation]) -> list[Rendered]:
        conversations = [self._with_reasoning(conversation) for conversation in conversations]
        if not any(conversation.tools for conversation in conversations):
            try:
                return self._render_together(conversations, None)
            except _template_errors():
                pass  # it comes again below, where it can be told of which row it is
        return [self._render_one(conversation) for conversation in conversations]

    def _with_reasoning(self, conversation: Conversation) -> Conversation:
        """Put what the assistant thinks under the key that the template reads."""
        if not any(_REASONING in message for message in conversation.messages):
            return conversation
        messages = []
        for index, message in enumerate(conversation.messages):
            if (text := message.get(_REASONING)) is not None:
                if self._reasoning_key is None and index in conversation.turns:
                    raise _without_thoughts(conversation, index)
                message = {key: held for key, held in message.items() if key != _REASONING}  # noqa: PLW2901
                if self._reasoning_key is not None:
                    message[self._reasoning_key] = text
            messages.append(message)
        return replace(conversation, messages=messages)

    @cached_property
    def _reasoning_key(self) -> str | None:
        """The key of a message under which the template looks for thoughts; None when it shows none."""
        for key in _REASONING_KEYS:
            answer = _turn("assistant", "answer") | {key: _PROBE}
            try:
                shown = self._apply([[_turn("user", "question"), answer]], None, generation=False)[0]
            except _template_errors():
                continue
            if _PROBE in shown:
                return key
        return None

    def _render_one(self, conversation: Conversation) -> Rendered:
        try:
            return self._render_together([conversation], conversation.tools)[0]
        except _template_errors() as error:
            raise conversation.place.failure(f"the base model's chat template refuses it: {error}") from error

    def _render_together(self, conversations: list[Conversation], tools: Any) -> list[Rendered]:
        turns = [(c.messages, index) for c in conversations for index in c.turns]
        prompts = iter(self._apply([m[:index] for m, index in turns], tools, generation=True))
        throughs = iter(self._apply([m[: index + 1] for m, index in turns], tools, generation=False))
        return [self._spans(c, [(next(prompts), next(throughs)) for _ in c.turns]) for c in conversations]

    def _spans(self, conversation: Conversation, turns: list[tuple[str, str]]) -> Rendered:
        """Find the turns in the whole text and check what is asked of the template.

        The whole ends with the last learned turn: nothing after it can be learned from.
        """
        whole = turns[-1][1]
        learned: list[Span] = []
        closed = True
        for index, (prompt, through) in zip(conversation.turns, turns, strict=True):
            start = self._start(conversation, index, prompt, whole)
            end = self._end(through, start)
            if end is None:
                if through is not whole:
                    raise conversation.place.failure(
                        f"{conversation.field(index)}: the base model's chat template writes no end token after it, "
                        f"from which the model could learn where to stop: {_ONE_ROW_PER_TURN}"
                    )
                end, closed = max(start, len(through.rstrip())), False
            if whole[:end] != through[:end]:
                raise _rewritten(conversation, index)
            _check_shown(conversation, index, whole[:start], whole[start:end])
            self._check_reasoning(conversation, index, whole[start:end])
            learned.append((start, end))
        self._check_texts(conversation, whole)
        return Rendered(whole[: learned[-1][1]], tuple(learned), conversation.place, closed)

    def _start(self, conversation: Conversation, index: int, prompt: str, whole: str) -> int:
        """Return where the turn begins: after the generation prompt, or what of it the finished turn has too."""
        if whole.startswith(prompt):
            return len(prompt)
        before = self._apply([conversation.messages[:index]], conversation.tools, generation=False)[0]
        if not whole.startswith(before):
            raise _rewritten(conversation, index)
        # A generation prompt may begin what the turn goes on with otherwise, as with <think>: up to the last border.
        common = whole[: common_prefix_length(prompt, whole)]
        while len(common) > len(before) and not (common.endswith("\n") or self._markers.at_end(common)):
            common = common[:-1]
        return max(len(common), len(before))

    def _check_reasoning(self, conversation: Conversation, index: int, turn: str) -> None:
        """Refuse a template that leaves out what a learned turn thinks: the model would learn not to think."""
        message = conversation.messages[index]
        key = self._reasoning_key if message.keys() - _PLAIN_KEYS else None
        if key is None or message.get(key, "").strip() in turn:
            return
        probed: Messages = [*conversation.messages[:index], message | {key: _PROBE}]
        if not self._shows_probe(probed, conversation.tools):
            raise _without_thoughts(conversation, index)

    def _check_texts(self, conversation: Conversation, whole: str) -> None:
        """Refuse a template that leaves out what a turn says, without a word.

        A text that it writes otherwise, trimmed or escaped, is told from one that is missing by a word in its place.
        """
        learned = conversation.turns
        messages = conversation.messages[: learned[-1] + 1]
        for index, message in enumerate(messages):
            text = message["content"].strip()
            if text in whole:
                continue
            probed = [*messages[:index], message | {"content": _PROBE}, *messages[index + 1 :]]
            shown = self._shows_probe(probed, conversation.tools)
            thought = text.partition("</think>")[0].removeprefix("<think>").strip() if "</think>" in text else ""
            if not shown or (thought not in whole and (index in learned or message["role"] != "assistant")):
                what = "thinks" if shown else "says"
                raise conversation.place.failure(
                    f"{conversation.field(index)}: the base model's chat template does not show what "
                    f"{message['role']} {what} here: use a base model whose template does, or leave it out"
                )

    def _shows_probe(self, messages: Messages, tools: Any) -> bool:
        try:
            return _PROBE in self._apply([messages], tools, generation=False)[0]
        except _template_errors():
            return True  # it takes texts of this turn apart, so it does not pass over them

    def _end(self, through: str, start: int) -> int | None:
        """Return where the turn that begins at `start` ends: after its end token; None when it has none.

        Templates put line breaks behind it, and some the end of the whole text.
        """
        tail: list[tuple[str, int]] = []
        end = len(through.rstrip())
        while end > start and (marker := self._markers.at_end(through[start:end])):
            tail.append((marker, end))
            end = len(through[: end - len(marker)].rstrip())
        for marker, position in reversed(tail):
            if marker == self._closing:
                return position
        if tail and self._markers.ids[tail[0][0]] in self._markers.special_ids:
            return tail[0][1]
        return None

    def _find_closing(self) -> str | None:
        """Return the token that the template closes an assistant's turn with, whether or not more turns follow."""
        messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _PROBE}]
        try:
            last, followed = self._apply([messages, [*messages, messages[0]]], None, generation=False)
        except _template_errors():
            return None
        _, found, after = last[: common_prefix_length(last, followed)].rpartition(_PROBE)
        while found and after:
            if marker := self._markers.at_end(after):
                return marker
            after = after[:-1]
        return None

    def _apply(self, conversations: list[Messages], tools: Any, *, generation: bool) -> list[str]:
        if not conversations:
            return []
        texts: list[str] = self._tokenizer.apply_chat_template(
            conversations, tools=tools, tokenize=False, add_generation_prompt=generation
        )
        return texts


_PROBE = "answer 1"
_REASONING = "reasoning_content"
_REASONING_KEYS = (_REASONING, "thinking", "reasoning")
_PLAIN_KEYS = frozenset({"role", "content"})
_ONE_ROW_PER_TURN = (
    "split the conversation into one row per assistant turn, each with that turn as completion and everything that "
    "precedes it as prompt"
)


def _template_errors() -> tuple[type[Exception], ...]:
    """Return what a template can raise on messages that it was not written for."""
    from jinja2 import TemplateError

    return (TemplateError, TypeError, ValueError, LookupError, AttributeError)


def _begins_by_itself(tokenizer: Any) -> bool:
    ids = tokenizer("a")["input_ids"]
    return len(ids) > 1 and ids[0] == tokenizer.bos_token_id


def _conversation(content: Content, place: Place) -> Conversation:
    if "messages" not in content:
        messages = [_turn("user", content["prompt"]), _turn("assistant", content["completion"])]
        return Conversation(messages, 0, place, None, lambda index: ("prompt", "completion")[index])
    messages = _with_parsed_arguments(content["messages"], place)
    seen = frozenset(index for index, message in enumerate(messages) if "weight" in message)
    if seen:
        messages = [{key: held for key, held in message.items() if key != "weight"} for message in messages]
    conversation = Conversation(messages, 0, place, content.get("tools"), lambda index: f"messages[{index}]", seen)
    if not conversation.turns:
        raise place.failure("messages: no assistant turn follows a user's, so there is nothing to learn: leave it out")
    return conversation


def _answered(content: Content, side: str, place: Place) -> Conversation:
    if isinstance(content["prompt"], str):
        messages = [_turn("user", content["prompt"]), _turn("assistant", content[side])]
        return Conversation(messages, 1, place, content.get("tools"), lambda index: ("prompt", side)[index])
    prompt = _with_parsed_arguments(content["prompt"], place)
    answer = _with_parsed_arguments(content[side], place)
    if not prompt or not answer or answer[0]["role"] != "assistant":
        raise place.failure(
            f"{side}: must begin with the assistant's turn, and prompt must hold all that precedes it, so that chosen "
            "and rejected answer the same prompt"
        )
    first = len(prompt)
    return Conversation(
        [*prompt, *answer],
        first,
        place,
        content.get("tools"),
        lambda index: f"{side}[{index - first}]" if index >= first else f"prompt[{index}]",
    )


def _turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _with_parsed_arguments(messages: Messages, place: Place) -> Messages:
    """Return the messages with the arguments of their tool calls as objects, which is what templates write as JSON."""
    return [
        message | {"tool_calls": [_with_object(call, place) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _with_object(call: dict[str, Any], place: Place) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        function = function | {"arguments": json.loads(arguments or "{}")}
    except ValueError as error:
        raise place.failure(f"tool_calls: the arguments of {function.get('name')} are not JSON: {error}") from error
    return call | {"function": function} if "function" in call else function


def _check_shown(conversation: Conversation, index: int, before: str, turn: str) -> None:
    """Refuse a template that leaves out what the row has, without a word."""
    for call in conversation.messages[index].get("tool_calls") or ():
        name = str(call.get("function", call).get("name"))
        if name not in turn:
            raise conversation.place.failure(
                f"{conversation.field(index)}.tool_calls: the base model's chat template does not show the call of "
                f"{name}: use a base model whose template knows tools, or write the call into content"
            )
    for tool in conversation.tools or ():
        name = str(tool.get("function", tool).get("name"))
        if name not in before:
            raise conversation.place.failure(
                f"tools: the base model's chat template does not show the tool {name}: use a base model whose "
                "template knows tools, or leave tools out"
            )


def _without_thoughts(conversation: Conversation, index: int) -> FailureError:
    return conversation.place.failure(
        f"{conversation.field(index)}.{_REASONING}: the base model's chat template does not show it here, so the model "
        "would learn to answer without a thought: use a base model whose template shows it, write it into content as "
        "that model writes its thoughts (often between <think> and </think>), or leave it out"
    )


def _rewritten(conversation: Conversation, index: int) -> FailureError:
    return conversation.place.failure(
        f"{conversation.field(index)}: the base model's chat template renders it, or what precedes it, differently "
        f"once later turns follow, so it would be learned as it is never seen again: {_ONE_ROW_PER_TURN}"
    )


def common_prefix_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return how many items the two have in common from the start."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(index for index in range(shorter) if first[index] != second[index])
