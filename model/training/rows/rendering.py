"""From exported rows to text, and which spans of it are learned, for any chat template.

What a turn is made of is found by rendering the conversation up to it, with and without the turn, so that a template
needs no markers. A turn that the whole conversation renders otherwise than its own end does (many templates drop
thoughts of earlier turns) is learned in a row of its own, as the model will see it: for each row it is checked that
the learned turns are what follows the generation prompt. Turns that are seen and not learned may be rewritten: that
is what the model sees at inference, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from model.training.rows.conversations import (
    IGNORE,
    PLAIN_KEYS,
    Content,
    Conversation,
    answered,
    prepared,
    single,
    variables,
    without_thoughts,
)
from model.training.rows.outcomes import Outcomes, Place, RefusedRowError
from model.training.rows.template import (
    PROBE,
    ChatTemplate,
    Markers,
    Messages,
    common_prefix_length,
    template_errors,
)

Span = tuple[int, int]


@dataclass(frozen=True)
class Rendered:
    """One conversation, or what is learned of it in one row, as text.

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
class _Turn:
    """A message to learn, with the conversation up to it and a generation prompt, and the one through it."""

    index: int
    prompt: str
    through: str


class Renderer:
    """Renders rows with the tokenizer's chat template; without one, prompt and answer are joined as they are.

    A prompt and its answer are one user turn and one assistant turn. Learned is each assistant turn with its end
    token, and nothing after that: a model that does not learn the end token never stops.

    Parameters
    ----------
    tokenizer
        The base model's.
    markers
        Its added tokens.
    moment
        What chat templates take for now.
    """

    def __init__(self, tokenizer: Any, markers: Markers, moment: datetime) -> None:
        self._markers = markers
        self._template = ChatTemplate(tokenizer, markers, moment) if tokenizer.chat_template else None
        begin = tokenizer.bos_token
        self._doubled_begin = begin if not self.templated and begin and begins_by_itself(tokenizer) else ""

    @property
    def templated(self) -> bool:
        """Whether there is a chat template."""
        return self._template is not None

    def conversation(self, content: Content, place: Place, outcomes: Outcomes) -> list[Rendered]:
        """Render a row of the shape prompt-completion or messages: one row, or several where the template needs that.

        Raises
        ------
        RefusedRowError
            When it does not go with the template.
        """
        if self._template is None:
            return [_join(content, "completion", place, self._doubled_begin)]
        rows = _Rendering(self._template, self._markers, single(content, place), outcomes).rows()
        if len(rows) > 1:
            outcomes.split.add(place)
            outcomes.split_rows += len(rows)
        return rows

    def answer(self, content: Content, place: Place, outcomes: Outcomes) -> list[Rendered]:
        """Render a prompt and its labelled answer; learned are the turns after the prompt.

        Raises
        ------
        RefusedRowError
            When it does not go with the template.
        """
        if self._template is None:
            return [_join(content, "completion", place, self._doubled_begin)]
        conversation = answered(content, "completion", place)
        return [_Rendering(self._template, self._markers, conversation, outcomes).one_row()]

    def pair(self, content: Content, place: Place, outcomes: Outcomes) -> tuple[Rendered, Rendered]:
        """Render a preference pair, the chosen before the rejected; learned are the turns after the prompt.

        Raises
        ------
        RefusedRowError
            When it does not go with the template.
        """
        if self._template is None:
            chosen, rejected = (_join(content, side, place, self._doubled_begin) for side in ("chosen", "rejected"))
            return chosen, rejected
        counted = (outcomes, Outcomes())  # what both have in common is told once
        sides = [
            _Rendering(self._template, self._markers, answered(content, side, place), tally).one_row()
            for side, tally in zip(("chosen", "rejected"), counted, strict=True)
        ]
        return sides[0], sides[1]


class _Rendering:
    """One conversation with the template."""

    def __init__(
        self, template: ChatTemplate, markers: Markers, conversation: Conversation, outcomes: Outcomes
    ) -> None:
        self._template = template
        self._markers = markers
        self._row = prepared(conversation, template, outcomes)

    def rows(self) -> list[Rendered]:
        """Return the rows that hold all learned turns: one, unless the template rewrites turns once others follow."""
        rows: list[Rendered] = []
        try:
            left = self._turns()
            while left:
                rendered, left = self._row_of(left)
                rows.append(rendered)
        except template_errors() as error:
            text = f"the base model's chat template refuses it: {error}"
            raise RefusedRowError(self._row.place, text) from error
        return rows[::-1]

    def one_row(self) -> Rendered:
        """Return the row that holds all learned turns, which an answer that is judged as a whole must be."""
        rows = self.rows()
        if len(rows) > 1:
            raise self._refused(
                self._row.turns[0],
                "the base model's chat template renders it, or what precedes it, differently once later turns follow, "
                "so it would be learned as it is never seen again: let the answers hold one turn of the assistant, and "
                "put what precedes it into prompt",
            )
        return rows[0]

    def _turns(self) -> list[_Turn]:
        messages, trailer = self._row.messages, self._template.trailer
        return [
            _Turn(
                index,
                self._render(messages[:index], generation=True),
                self._render(messages[: index + 1]).removesuffix(trailer),
            )
            for index in self._row.turns
        ]

    def _render(self, messages: Messages, *, generation: bool = False) -> str:
        return self._template.render(messages, self._row.tools, self._row.variables, generation=generation)

    def _row_of(self, turns: Sequence[_Turn]) -> tuple[Rendered, list[_Turn]]:
        """Return the row that ends with the last of these turns, and those that need another one.

        The whole ends with that turn: nothing after it can be learned from. Earlier ones are learned in it as well
        where it shows them as their own end does.
        """
        last = turns[-1]
        whole = last.through
        spans: dict[int, Span] = {}
        closed = True
        for one in turns:
            start = self._start(one, whole)
            end = None if start is None else self._end(one.through, start)
            if one is last:
                if start is None:
                    raise self._refused(
                        one.index,
                        "the base model's chat template renders what precedes it differently once later turns follow",
                    )
                if end is None:
                    end, closed = max(start, len(whole.rstrip())), False
            if start is not None and end is not None and whole[:end] == one.through[:end]:
                spans[one.index] = (start, end)
        for index, (start, end) in spans.items():
            self._check_shown(index, whole[:start], whole[start:end])
            self._check_reasoning(index, whole[start:end])
        self._check_texts(last.index, frozenset(spans), whole)
        learned = tuple(spans.values())
        rendered = Rendered(whole[: learned[-1][1]], learned, self._row.place, closed)
        return rendered, [one for one in turns if one.index not in spans]

    def _start(self, one: _Turn, whole: str) -> int | None:
        """Return where a turn begins: after the generation prompt, or what of it the finished turn has too.

        None when the whole shows what precedes it otherwise.
        """
        if whole.startswith(one.prompt):
            return len(one.prompt)
        before = self._render(self._row.messages[: one.index])
        if not whole.startswith(before):
            return None
        # A generation prompt may begin what the turn goes on with otherwise, as with <think>: up to the last border.
        common = whole[: common_prefix_length(one.prompt, whole)]
        while len(common) > len(before) and not (common.endswith("\n") or self._markers.at_end(common)):
            common = common[:-1]
        return max(len(common), len(before))

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
            if marker == self._template.closing:
                return position
        if tail and self._markers.ids[tail[0][0]] in self._markers.special_ids:
            return tail[0][1]
        return None

    def _check_shown(self, index: int, before: str, shown: str) -> None:
        """Refuse a template that leaves out what the row has, without a word."""
        for call in self._row.messages[index].get("tool_calls") or ():
            name = str(call.get("function", call).get("name"))
            if name not in shown:
                raise RefusedRowError(
                    self._row.place,
                    f"{self._row.field(index)}.tool_calls: the base model's chat template does not show the call of "
                    f"{name}: use a base model whose template knows tools, or write the call into content",
                )
        for tool in self._row.tools or ():
            name = str(tool.get("function", tool).get("name"))
            if name not in before:
                raise RefusedRowError(
                    self._row.place,
                    f"tools: the base model's chat template does not show the tool {name}: use a base model whose "
                    "template knows tools, or leave tools out",
                )

    def _check_reasoning(self, index: int, shown: str) -> None:
        """Refuse a template that leaves out what a learned turn thinks: the model would learn not to think."""
        message = self._row.messages[index]
        key = self._template.reasoning_key if message.keys() - PLAIN_KEYS else None
        if key is None or message.get(key, "").strip() in shown:
            return
        if not self._shows_probe(self._row.messages[: index + 1], index, PROBE, key):
            raise without_thoughts(self._row, index)

    def _check_texts(self, last: int, learned: frozenset[int], whole: str) -> None:
        """Refuse a template that leaves out what a turn says, without a word.

        A text that it writes otherwise, trimmed or escaped, is told from one that is missing by a word in its place.
        """
        messages = self._row.messages[: last + 1]
        for index, message in enumerate(messages):
            text = message["content"].strip()
            if text in whole:
                continue
            matters = index in learned or message["role"] != "assistant"
            shown = self._shows_probe(messages, index, PROBE)
            thought = text.partition("</think>")[0].removeprefix("<think>").strip() if "</think>" in text else ""
            what = None if shown else "what {} says"
            if matters and shown and thought not in whole:
                what = "what {} thinks"
            elif matters and shown and not self._shows_probe(messages, index, f"{text} {PROBE}"):
                what = "all of what {} says"
            if what is not None:
                raise self._refused(
                    index,
                    f"the base model's chat template does not show {what.format(message['role'])} here: use a base "
                    "model whose template does, or leave it out",
                )

    def _shows_probe(self, messages: Messages, index: int, text: str, key: str = "content") -> bool:
        """Whether the template shows the probe in a text that takes the place of a message's."""
        try:
            shown = self._render([*messages[:index], messages[index] | {key: text}, *messages[index + 1 :]])
            return PROBE in shown.lower()
        except template_errors():
            return True  # it takes texts of this turn apart, so it does not pass over them

    def _refused(self, index: int, text: str) -> RefusedRowError:
        return RefusedRowError(self._row.place, f"{self._row.field(index)}: {text}")


def _join(content: Content, answer: str, place: Place, doubled_begin: str) -> Rendered:
    if not isinstance(content.get("prompt"), str):
        raise RefusedRowError(
            place,
            "it has messages, but the base model has no chat template: use plain text in prompt and "
            f"{answer}, or a chat model as the base model",
        )
    if variables(content):
        raise RefusedRowError(place, f"chat_template_kwargs: the base model has no chat template: {IGNORE}")
    prompt = content["prompt"].removeprefix(doubled_begin)
    text = prompt + content[answer]
    return Rendered(text, ((len(prompt), len(text)),), place, closed=False)


def begins_by_itself(tokenizer: Any) -> bool:
    """Whether a tokenizer puts its begin token before a text."""
    ids = tokenizer("a")["input_ids"]
    return len(ids) > 1 and ids[0] == tokenizer.bos_token_id
