"""The forms of a row by method: which fields it must have, what it is called, and what makes content of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from model.data.fields import Fields
from model.data.formats import (
    Content,
    Shape,
    normalise_completion_turns,
    normalise_conversations,
    normalise_instruction,
    normalise_instruction_preference,
    normalise_labelled,
    normalise_labelled_conversations,
    normalise_labelled_instruction,
    normalise_labelled_messages,
    normalise_labelled_turns,
    normalise_messages,
    normalise_preference,
    normalise_preference_conversations,
    normalise_preference_messages,
    normalise_preference_turns,
    normalise_prompt_completion,
    normalise_text,
)
from model.data.keys import COLUMNS
from model.data.texts import as_list
from model.data.turns import role_of


@dataclass(frozen=True)
class Form:
    """One way to write a row.

    Parameters
    ----------
    words
        What to call it in messages.
    shape
        What its rows become.
    required, optional
        Canonical fields.
    conversations
        Whether its texts are lists of turns; None when no other form has the same fields.
    normalise
        Returns a row's content, or raises `InvalidRowError`.
    """

    words: str
    shape: Shape
    required: tuple[str, ...]
    optional: tuple[str, ...]
    conversations: bool | None
    normalise: Callable[[Fields], Content]

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields that its rows may have, and a mapping may name."""
        return self.required + self.optional + (() if self.shape == "text" else BESIDE)

    @property
    def texts(self) -> tuple[str, ...]:
        """The fields that say whether a row's texts are turns: one of them is enough."""
        return tuple(field for field in (*_ANSWERS, "prompt", *_ASKED) if field in self.required)

    def fits(self, row: Fields, *, but: str = "") -> bool:
        """Whether a row has all that this form requires, `but` for one field."""
        if not all(row.has(field) for field in self.required if field != but):
            return False
        if "chosen" in self.required and _ends_with_an_answer(row, self.required[0]):
            return False
        return self.conversations is None or self.conversations == any(map(row.has_turns, self.texts))


_ANSWERS = ("completion", "chosen", "rejected")
_ASKED = ("messages", "conversations")


def _ends_with_an_answer(row: Fields, field: str) -> bool:
    """Whether a conversation has its answer already, as beside the two answers that it was made of."""
    turns = as_list(row.get(field)) if field in _ASKED else None
    last = turns[-1] if isinstance(turns, list) and turns else None
    return isinstance(last, Mapping) and role_of(last.get("role", last.get("from"))) == "assistant"


BESIDE = tuple(rule.names[0] for rule in COLUMNS if rule.kind in ("system", "history", "tools", "thoughts", "template"))
"""Fields that may stand beside all texts."""

PREFERENCE = ("prompt", "chosen", "rejected")
LABELLED = ("prompt", "completion", "label")
FORMS = {
    "SFT": (
        Form(
            "prompt and completion",
            "prompt-completion",
            ("prompt", "completion"),
            (),
            conversations=False,
            normalise=normalise_prompt_completion,
        ),
        Form(
            "prompt and completion as turns",
            "messages",
            ("prompt", "completion"),
            (),
            conversations=True,
            normalise=normalise_completion_turns,
        ),
        Form("messages", "messages", ("messages",), (), conversations=None, normalise=normalise_messages),
        Form(
            "conversations (ShareGPT)",
            "messages",
            ("conversations",),
            (),
            conversations=None,
            normalise=normalise_conversations,
        ),
        Form(
            "instruction, input and output (Alpaca)",
            "prompt-completion",
            ("instruction", "output"),
            ("input",),
            conversations=None,
            normalise=normalise_instruction,
        ),
        Form("text", "text", ("text",), (), conversations=None, normalise=normalise_text),
    ),
    "DPO": (
        Form(
            "prompt, chosen and rejected",
            "preference",
            PREFERENCE,
            (),
            conversations=False,
            normalise=normalise_preference,
        ),
        Form(
            "prompt, chosen and rejected as turns",
            "preference-messages",
            PREFERENCE,
            (),
            conversations=True,
            normalise=normalise_preference_turns,
        ),
        Form(
            "chosen and rejected conversations, whose common beginning is the prompt",
            "preference-messages",
            ("chosen", "rejected"),
            (),
            conversations=True,
            normalise=normalise_preference_turns,
        ),
        Form(
            "messages, and a chosen and a rejected answer",
            "preference-messages",
            ("messages", "chosen", "rejected"),
            (),
            conversations=True,
            normalise=normalise_preference_messages,
        ),
        Form(
            "conversations (ShareGPT), and a chosen and a rejected answer",
            "preference-messages",
            ("conversations", "chosen", "rejected"),
            (),
            conversations=True,
            normalise=normalise_preference_conversations,
        ),
        Form(
            "instruction, input, chosen and rejected",
            "preference",
            ("instruction", "chosen", "rejected"),
            ("input",),
            conversations=False,
            normalise=normalise_instruction_preference,
        ),
    ),
    "KTO": (
        Form(
            "prompt, completion and label",
            "unpaired",
            LABELLED,
            (),
            conversations=False,
            normalise=normalise_labelled,
        ),
        Form(
            "prompt, completion and label as turns",
            "unpaired-messages",
            LABELLED,
            (),
            conversations=True,
            normalise=normalise_labelled_turns,
        ),
        Form(
            "messages and label",
            "unpaired-messages",
            ("messages", "label"),
            (),
            conversations=None,
            normalise=normalise_labelled_messages,
        ),
        Form(
            "conversations (ShareGPT) and label",
            "unpaired-messages",
            ("conversations", "label"),
            (),
            conversations=None,
            normalise=normalise_labelled_conversations,
        ),
        Form(
            "instruction, input, output and label",
            "unpaired",
            ("instruction", "output", "label"),
            ("input",),
            conversations=None,
            normalise=normalise_labelled_instruction,
        ),
    ),
}
CANONICAL_FIELDS = tuple(dict.fromkeys(field for forms in FORMS.values() for form in forms for field in form.fields))
