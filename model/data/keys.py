"""Columns beside the texts, and keys of a turn, that change what is learned: what becomes of each.

Whatever stands here is used or refused, however it is spelled (`Loss-Mask` is `loss_mask`), and null says nothing.
docs/datasets.md shows the same table. A column that is none of these is not used, which the export says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

Kind = Literal[
    "system", "history", "tools", "thoughts", "template", "media", "weight", "mask", "label", "context",
    "learned", "notLearned", "unclear", "detail", "turnThoughts",
]  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """What becomes of some columns, or of some keys of a turn.

    Parameters
    ----------
    kind
        What the code knows it by.
    names
        Under which it goes; the first is the field that a mapping names.
    becomes
        What happens, for people.
    """

    kind: Kind
    names: tuple[str, ...]
    becomes: str


COLUMNS = (
    Rule(
        "system",
        ("system", "system_prompt", "sys_prompt", "system_message", "system_instruction"),
        "the system turn, beside texts and beside turns",
    ),
    Rule(
        "history",
        ("history", "chat_history", "conversation_history"),
        "earlier turns, seen and not learned: pairs of question and answer, or turns with `role` and `content`",
    ),
    Rule("tools", ("tools", "functions"), "the tools that may be called, beside texts and beside turns"),
    Rule(
        "thoughts",
        ("reasoning_content", "thinking", "reasoning", "thought", "thoughts", "chain_of_thought"),
        "what the only answer thinks (`reasoning_content` of its turn); refused beside several answers",
    ),
    Rule(
        "template",
        ("chat_template_kwargs", "template_kwargs"),
        "variables for the chat template, such as `enable_thinking`, of this row; null ones are left out",
    ),
    Rule(
        "media",
        (
            "image",
            "images",
            "image_path",
            "image_paths",
            "image_url",
            "image_urls",
            "video",
            "videos",
            "video_path",
            "audio",
            "audios",
            "audio_path",
            "pixel_values",
        ),
        "refused unless empty: only text is trained on",
    ),
    Rule("weight", ("weight", "sample_weight", "loss_weight"), "1 changes nothing; any other value is refused"),
    Rule(
        "mask",
        ("labels", "loss_mask", "token_weights", "assistant_masks", "completion_mask"),
        "refused when it is a list: masks of tokens are not read, mark turns with `weight`",
    ),
    Rule(
        "label",
        ("label",),
        "with KTO, whether the answer is good; with SFT, true changes nothing and false, a bad answer, is refused; "
        "other values: a class",
    ),
    Rule("context", ("context", "documents"), "not used, with a warning: the answer may need it"),
)
"""Columns, by what they become."""

TURN_KEYS = (
    Rule(
        "learned",
        (
            "weight", "train", "trainable", "training", "learn", "loss", "loss_mask", "loss_weight", "loss_scale",
            "compute_loss", "train_on_turn", "is_trainable",
        ),
        "1 and true: the assistant's turn is learned; 0 and false: it is seen and not learned; refused otherwise",
    ),
    Rule("notLearned", ("masked", "ignore_loss", "no_loss"), "the other way round: true is seen and not learned"),
    Rule("unclear", ("mask",), "refused: tools read it in both ways, write `weight`"),
    Rule("detail", ("train_detail", "training_detail"), "refused: a turn is learned as a whole or not at all"),
    Rule("turnThoughts", ("reasoning_content", "thinking", "reasoning"), "what the assistant thinks"),
    Rule("media", ("image", "images", "video", "videos", "audio", "audios"), "refused unless empty"),
)  # fmt: skip
"""Keys of a turn beside role, content and calls, by what they become."""

IGNORE = "or leave the column out with --ignore-column={key} (ignoredColumns in a TrainingRun)"
"""The way out for whoever knows that a column does not matter."""


@lru_cache(maxsize=4096)
def column_rule(key: str) -> Rule | None:
    """Return the rule for a column, None for one that says nothing about what is learned."""
    return _COLUMNS.get(plain(key))


@lru_cache(maxsize=4096)
def turn_rule(key: str) -> Rule | None:
    """Return the rule for a turn's key."""
    return _TURN_KEYS.get(plain(key))


def plain(key: str) -> str:
    """Return a key without what spellings differ in: capital letters, hyphens, underscores, spaces."""
    return re.sub(r"[^a-z0-9]", "", str(key).lower())


def truth(value: Any) -> bool | None:
    """Return whether a flag is set, None when it does not say so: 1 and 0, true and false, also as text."""
    if isinstance(value, str):
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(
            value.strip().lower()
        )
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def is_null(value: Any) -> bool:
    """Whether a value says nothing: null, and the NaN that a table's tool writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_empty(value: Any) -> bool:
    """Whether nothing is there: null, and text, lists and objects without anything in them."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null", "None")
    if isinstance(value, Mapping):
        value = list(value.values())
    return is_null(value) or (isinstance(value, list | tuple) and all(map(is_null, value)))


def documented() -> list[str]:
    """Return the rows of the table in docs/datasets.md."""
    places = [("column", rule) for rule in COLUMNS] + [("key of a turn", rule) for rule in TURN_KEYS]
    return [f"| {place} | {', '.join(f'`{name}`' for name in rule.names)} | {rule.becomes} |" for place, rule in places]


_COLUMNS = {plain(name): rule for rule in COLUMNS for name in rule.names}
_TURN_KEYS = {plain(name): rule for rule in TURN_KEYS for name in rule.names}
