"""A tokenizer's chat template: rendered at one moment, and asked once what it makes of roles, calls and thoughts.

Many templates write the day (`strftime_now`): a run renders all of its rows at one moment, however long it takes and
however often it is started.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any

Messages = list[dict[str, Any]]

NONE: Mapping[str, Any] = MappingProxyType({})
PROBE = "answer 1"
"""What stands for a text, to see what the template makes of it."""
REASONING = "reasoning_content"

_REASONING_KEYS = (REASONING, "thinking", "reasoning")
_QUESTIONS = ("question 1", "question 2")
_SHORTEST_HEADER = 3


def template_errors() -> tuple[type[Exception], ...]:
    """Return what a template can raise on messages that it was not written for."""
    from jinja2 import TemplateError

    return (TemplateError, TypeError, ValueError, LookupError, AttributeError)


def _random(*_given: Any, **_named: Any) -> str:
    """Stand for what writes something else each time: no two renderings agree, and no server would ask so again."""
    from jinja2 import TemplateRuntimeError

    raise TemplateRuntimeError(
        "it writes something random here, so that no two renderings are alike: give one that does not, with "
        "--chat-template (baseModel.chatTemplate)"
    )


class Markers:
    """The tokens that a tokenizer cuts out of a text before anything else: turn headers, end tokens and the like."""

    def __init__(self, tokenizer: Any) -> None:
        added = {int(index): token for index, token in tokenizer.added_tokens_decoder.items()}
        special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self.ids: dict[str, int] = {str(t.content): i for i, t in added.items() if t.content.strip()} | special
        self.special_ids = frozenset(special.values()) | {index for index, token in added.items() if token.special}
        self.named = frozenset(text for text in special if text.strip())
        self._lengths = sorted({len(text) for text in self.ids}, reverse=True)

    def at_start(self, text: str) -> str | None:
        """Return the longest marker that the text begins with, None when it begins with none."""
        return next((text[:length] for length in self._lengths if text[:length] in self.ids), None)

    def at_end(self, text: str) -> str | None:
        """Return the longest marker that the text ends with, None when it ends with none."""
        return next((text[-length:] for length in self._lengths if text[-length:] in self.ids), None)


class ChatTemplate:
    """Renders conversations as `apply_chat_template` does, at a moment that stays.

    Parameters
    ----------
    tokenizer
        The base model's, with a chat template.
    markers
        Its added tokens.
    moment
        What the template takes for now, in the time zone that it is to show.
    """

    def __init__(self, tokenizer: Any, markers: Markers, moment: datetime) -> None:
        self._tokenizer = tokenizer
        self._markers = markers
        self._moment = moment
        self._special_tokens = dict(tokenizer.special_tokens_map)
        self._compiled: dict[bool, Any] = {}
        self.text = str(tokenizer.chat_template)

    def render(
        self, messages: Messages, tools: Any = None, variables: Mapping[str, Any] = NONE, *, generation: bool = False
    ) -> str:
        """Return the conversation as text, with the beginning of an answer when `generation` is asked for."""
        template = self._compiled.get(bool(tools)) or self._compile(tools)
        text: str = template.render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=generation,
            **{**self._special_tokens, **variables},
        )
        return text

    def _compile(self, tools: Any) -> Any:
        # The library's own function for the moment cannot be passed in, so the template gets a namespace of its own.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        source = self._tokenizer.get_chat_template(None, tools)
        environment = _compile_jinja_template(source).environment.overlay()
        environment.filters = {**environment.filters, "random": _random}
        names = {"strftime_now": self._moment.strftime, "lipsum": _random}
        template = environment.from_string(source, globals=names)
        template.globals = dict(template.globals)  # each rendering copies them, and from a chain of mappings slowly
        self._compiled[bool(tools)] = template
        return template

    def tries(self, messages: Messages, tools: Any = None, *, generation: bool = False) -> str | None:
        """Return the conversation as text, None when the template refuses it."""
        try:
            return self.render(messages, tools, generation=generation)
        except template_errors():
            return None

    @cached_property
    def closing(self) -> str | None:
        """The token that the template closes an assistant's turn with, whether or not more turns follow."""
        _, last, after = self._after_an_answer
        if self._adds_text:
            return self._markers.at_start(after.lstrip())
        while after:
            if marker := self._markers.at_end(after):
                return marker
            after = after[:-1]
        # It writes the turn otherwise once others follow: then the one that it ends with now.
        marker = self._markers.at_start(last.lstrip())
        return marker if marker is not None and self._markers.ids[marker] in self._markers.special_ids else None

    @cached_property
    def trailer(self) -> str:
        """What the template writes behind the end of a conversation, as the header of a next turn; no part of it."""
        _, last, _ = self._after_an_answer
        if not self._adds_text:
            return ""
        return last.partition(self.closing)[2] if self.closing else last

    @cached_property
    def _after_an_answer(self) -> tuple[str, str, str]:
        """What stands before the first question, behind an answer that ends a conversation, and what belongs to it.

        That is what a next question leaves of it, without the header of a question that stands behind each answer.
        """
        messages = [turn("user", _QUESTIONS[0]), turn("assistant", PROBE)]
        texts = (self.tries(messages) or "", self.tries([*messages, messages[0]]) or "")
        last, followed = (text.rpartition(PROBE)[2] if PROBE in text else "" for text in texts)
        end = 0
        while end < len(last) and followed.startswith(piece := self._markers.at_start(last[end:]) or last[end], end):
            end += len(piece)
        opening, asked, _ = texts[1].partition(_QUESTIONS[0])
        if end == len(last) and asked and followed.startswith(_QUESTIONS[0], end):
            end = self._before_header(last, opening)
        return opening, last, last[:end]

    def _before_header(self, last: str, opening: str) -> int:
        """Return where in the text behind an answer the next question's header begins; its end when it holds none.

        It holds one when it ends as the text before the first question does: the answer's end token precedes that.
        """
        length = common_prefix_length(last[::-1], opening[::-1])
        if not last[len(last) - length :].strip():
            return len(last)
        markers = ((at, marker) for at in range(len(last)) if (marker := self._markers.at_start(last[at:])))
        at, marker = next(markers, (len(last) - length, ""))
        return at + len(marker)

    @cached_property
    def _adds_text(self) -> bool:
        """Whether the end of a conversation is followed by more than white space and tokens that is no part of it."""
        opening, last, after = self._after_an_answer
        rest = last[len(after) :].strip()
        is_header = opening.endswith(last[len(after) :])
        while rest and (marker := self._markers.at_start(rest)):
            rest = rest[len(marker) :].lstrip()
        return bool(rest) and (bool(after.strip()) or is_header)

    @cached_property
    def reasoning_key(self) -> str | None:
        """The key of a message under which the template looks for thoughts; None when it shows none."""
        for key in _REASONING_KEYS:
            answer = turn("assistant", "answer") | {key: PROBE}
            if PROBE in (self.tries([turn("user", "question"), answer]) or ""):
                return key
        return None

    @cached_property
    def has_system(self) -> bool:
        """Whether the template shows what a system turn says."""
        messages = [turn("system", PROBE), turn("user", _QUESTIONS[0]), turn("assistant", "yes")]
        return PROBE in (self.tries(messages) or "").lower()

    @cached_property
    def has_developer(self) -> bool:
        """Whether the template knows the role developer, and not just writes the name of any role."""
        return re.search(r"""(['"])developer\1""", self.text) is not None

    @cached_property
    def takes_arguments_as_text(self) -> bool:
        """Whether the template writes the arguments of a call rightly only when they are JSON text already."""
        if "arguments" not in self.text:
            return False
        arguments = {"city": PROBE}
        as_object, as_text = self._shown_call(arguments), self._shown_call(json.dumps(arguments))
        if as_object is not None and "'city'" not in as_object:  # as Python writes it, which is no JSON
            return False
        return as_text is not None

    def _shown_call(self, arguments: Any) -> str | None:
        call = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": arguments}}
        text = self.tries([turn("user", _QUESTIONS[0]), turn("assistant", "") | {"tool_calls": [call]}])
        return text if text is not None and PROBE in text else None

    def opening_of(self, text: str) -> str | None:
        """Return what the template itself begins a conversation or a turn with, if the text begins so."""
        begun = text.lstrip().removeprefix(self._special_tokens.get("bos_token") or "").lstrip()
        return next((opening for opening in self.turn_openings if begun.startswith(opening)), None)

    @cached_property
    def turn_openings(self) -> tuple[str, ...]:
        """What a rendered conversation or turn begins with: a token, or the first line where that is no token."""
        user, system, assistant = turn("user", _QUESTIONS[0]), turn("system", PROBE), turn("assistant", PROBE)
        headers = [(self.tries([user]) or "").partition(_QUESTIONS[0])[0]]
        if self.has_system:
            headers.append((self.tries([system, user, turn("assistant", "yes")]) or "").partition(PROBE)[0])
        between = (self.tries([user, assistant, turn("user", _QUESTIONS[1])]) or "").partition(PROBE)[2]
        between = between.partition(_QUESTIONS[1])[0]
        headers.append(between.partition(self.closing)[2] if self.closing else between)
        prompted, asked = self.tries([user], generation=True) or "", self.tries([user])
        if asked and prompted.startswith(asked):
            headers.append(prompted[len(asked) :])
        return tuple(dict.fromkeys(opening for header in headers if (opening := self._opening(header))))

    def _opening(self, header: str) -> str | None:
        header = header.lstrip().removeprefix(self._special_tokens.get("bos_token") or "").strip()
        if marker := self._markers.at_start(header):
            return marker
        line = header.partition("\n")[0].strip()
        return line if len(line) >= _SHORTEST_HEADER and not line.isalnum() else None

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """What a text of a turn cannot hold without being taken for something else: special tokens, turn headers."""
        closing = {self.closing} if self.closing else set()
        return tuple(sorted(self._markers.named | closing | set(self.turn_openings)))


def turn(role: str, content: str) -> dict[str, Any]:
    """Return a message."""
    return {"role": role, "content": content}


def common_prefix_length(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return how many items the two have in common from the start."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(index for index in range(shorter) if first[index] != second[index])
