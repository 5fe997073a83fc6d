"""Columns beside the texts, and keys of a turn, that change what is learned: what becomes of each.

Whatever stands here is used or refused, however it is spelled (`Loss-Mask` is `loss_mask`), and null says nothing.
Names that are not in the table are told by the words they are made of: `should_train`, `skip_loss`, `image_file`.
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
    "system", "history", "tools", "thoughts", "template", "media", "weight", "mask", "flag", "notFlag", "label",
    "split", "context", "learned", "notLearned", "unclear", "detail", "turnThoughts", "channel",
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
        (
            "system", "system_prompt", "sys_prompt", "system_message", "system_instruction", "system_instructions",
            "system_text", "system_content", "system_msg", "sys_msg", "sys", "developer_prompt",
            "developer_message", "developer_instructions",
        ),
        "the system turn, beside texts and beside turns",
    ),
    Rule(
        "history",
        (
            "history", "chat_history", "conversation_history", "dialogue_history", "dialog_history", "message_history",
            "previous_messages", "previous_turns", "past_messages", "past_turns",
        ),
        "earlier turns, seen and not learned: pairs of question and answer, or turns with `role` and `content`",
    ),
    Rule("tools", ("tools", "functions"), "the tools that may be called, beside texts and beside turns"),
    Rule(
        "thoughts",
        (
            "reasoning_content", "thinking", "reasoning", "thought", "thoughts", "chain_of_thought", "cot",
            "complex_cot", "reasoning_trace",
        ),
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
            "image", "images", "image_path", "image_paths", "image_url", "image_urls", "img", "picture", "photo",
            "video", "videos", "video_path", "audio", "audios", "audio_path", "pixel_values", "multi_modal_data",
        ),
        "refused unless empty: only text is trained on; so are `image_file`, `audio_bytes` and the like",
    ),
    Rule("weight", ("weight", "sample_weight", "loss_weight"), "1 changes nothing; any other value is refused"),
    Rule(
        "mask",
        ("labels", "loss_mask", "token_weights", "assistant_masks", "completion_mask", "mask", "weights"),
        "refused when it is a list, as are other names with mask, weight, train or loss in them: masks are not read, "
        "mark turns with `weight`",
    ),
    Rule(
        "flag",
        ("train", "trainable", "training", "learn", "loss"),
        "false and 0 are refused: such a row is not to be learned; true changes nothing, and other values are not used",
    ),
    Rule("notFlag", ("no_train", "skip_loss", "ignore_loss", "masked"), "the other way round: true and 1 are refused"),
    Rule(
        "label",
        ("label", "kto_tag", "desirable", "is_good"),
        "with KTO, whether the answer is good; with SFT, true changes nothing and false, a bad answer, is refused; "
        "other values: a class",
    ),
    Rule("split", ("split", "partition"), "not used, with a warning where it says test, validation or the like"),
    Rule(
        "context",
        ("context", "contexts", "documents", "passage", "passages", "background", "knowledge", "persona"),
        "not used, with a warning: the answer may need it",
    ),
)  # fmt: skip
"""Columns, by what they become."""

TURN_KEYS = (
    Rule(
        "learned",
        (
            "weight", "train", "trainable", "training", "learn", "loss", "loss_mask", "loss_weight", "loss_scale",
            "compute_loss", "train_on_turn", "is_trainable",
        ),
        "1 and true: the assistant's turn is learned; 0 and false: it is seen and not learned; refused otherwise; "
        "so are `should_train`, `include_in_loss` and other names made of such words",
    ),
    Rule(
        "notLearned",
        ("masked", "ignore_loss", "no_loss", "no_train", "skip_loss"),
        "the other way round: true is seen and not learned",
    ),
    Rule(
        "unclear",
        ("mask", "skip", "ignore"),
        "refused when it is a flag, a number or a list, as are other names with mask, weight, train or loss in them: "
        "tools read these in both ways, write `weight`",
    ),
    Rule("detail", ("train_detail", "training_detail"), "refused: a turn is learned as a whole or not at all"),
    Rule(
        "turnThoughts",
        ("reasoning_content", "thinking", "reasoning", "thought", "thoughts"),
        "what the assistant thinks",
    ),
    Rule(
        "channel",
        ("channel", "recipient"),
        "of the assistant: `final`, `all` and `user` change nothing; refused otherwise",
    ),
    Rule(
        "media",
        ("image", "images", "image_url", "video", "videos", "audio", "audios"),
        "refused unless empty, like columns",
    ),
)  # fmt: skip
"""Keys of a turn beside role, content and calls, by what they become."""

_LEARNING = frozenset(
    {
        "train", "trained", "training", "trainable", "learn", "learned", "learning", "learnable", "loss", "losses",
        "supervise", "supervised", "backprop",
    }
)  # fmt: skip
_AROUND = frozenset(
    {
        "is", "to", "be", "should", "must", "do", "use", "used", "has", "with", "in", "on", "for", "include",
        "included", "compute", "calculate", "calc", "turn", "turns", "message", "flag", "this",
    }
)  # fmt: skip
_AGAINST = frozenset(
    {"no", "not", "non", "dont", "never", "skip", "skipped", "ignore", "ignored", "exclude", "excluded", "without",
     "omit", "from"}
)  # fmt: skip
_MASKING = frozenset({"mask", "masks", "masked", "masking", "weight", "weights"})
"""Words of which the names of flags are made: what is done, what may stand beside it, what denies it, and what means
one thing to one tool and the other to another."""

_OF_TOKENS = frozenset({"attentionmask", "specialtokensmask"})
"""Masks that say nothing about what is learned."""

_MEDIA = re.compile(
    r"(?:image|img|picture|photo|video|audio|medias|pixel|multimodal|mm)s?"
    r"(?:path|file|filename|name|url|uri|base64|b64|byte|data|value|feature|array|list|embed|content)?s?"
)

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""The words by which the hub tells a file's split from its path, and by which columns tell a row's."""

IGNORE = "or leave the column out with --ignore-column={key} (ignoredColumns in a TrainingRun)"
"""The way out for whoever knows that a column does not matter."""


@lru_cache(maxsize=4096)
def column_rule(key: str) -> Rule | None:
    """Return the rule for a column, None for one that says nothing about what is learned."""
    name = plain(key)
    if (rule := _COLUMNS.get(name)) is not None or name in _OF_TOKENS:
        return rule
    if _MEDIA.fullmatch(name):
        return _COLUMNS["image"]
    kind = _flag(key)
    return kind and _COLUMNS[{"learned": "train", "notLearned": "notrain", "unclear": "mask"}[kind]]


@lru_cache(maxsize=4096)
def turn_rule(key: str) -> Rule | None:
    """Return the rule for a turn's key."""
    name = plain(key)
    if (rule := _TURN_KEYS.get(name)) is not None:
        return rule
    if _MEDIA.fullmatch(name):
        return _TURN_KEYS["image"]
    kind = _flag(key)
    return kind and _TURN_KEYS[{"learned": "train", "notLearned": "notrain", "unclear": "mask"}[kind]]


def _flag(key: str) -> Literal["learned", "notLearned", "unclear"] | None:
    """Return which way a flag is meant, by the words of its name; None for a name that speaks of no learning."""
    words = {word.lower() for word in _WORD.findall(str(key))}
    if words <= _AROUND | {"masked"} and "masked" in words:
        return "notLearned"
    if not words & (_LEARNING | _MASKING):
        return None
    if not words <= _LEARNING | _AROUND | _AGAINST:
        return "unclear"
    return "notLearned" if words & _AGAINST else "learned"


_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def plain(key: str) -> str:
    """Return a key without what spellings differ in: capital letters, hyphens, underscores, spaces."""
    return re.sub(r"[^a-z0-9]", "", str(key).lower())


def truth(value: Any) -> bool | None:
    """Return whether a flag is set, None when it does not say so: 1 and 0, true and false, also as text."""
    if isinstance(value, str):
        return _TRUTHS.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


_TRUTHS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1", "1.0"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0", "0.0"), False),
}
"""How programs, tables and databases write a flag as text, in lower case."""


def is_null(value: Any) -> bool:
    """Whether a value says nothing: null, and the NaN that a table's tool writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_empty(value: Any) -> bool:
    """Whether nothing is there: null, and text, lists and objects without anything in them, at any depth."""
    if isinstance(value, str):
        return value.strip().lower() in NOTHING
    if isinstance(value, Mapping):
        value = list(value.values())
    return is_null(value) or (isinstance(value, list | tuple) and all(map(is_empty, value)))


NOTHING = frozenset({"", "[]", "{}", "null", "none", "nan", "<na>", r"\n"})
"""What tables and databases write where nothing is, in lower case."""


def documented() -> list[str]:
    """Return the rows of the table in docs/datasets.md."""
    places = [("column", rule) for rule in COLUMNS] + [("key of a turn", rule) for rule in TURN_KEYS]
    return [f"| {place} | {', '.join(f'`{name}`' for name in rule.names)} | {rule.becomes} |" for place, rule in places]


_COLUMNS = {plain(name): rule for rule in COLUMNS for name in rule.names}
_TURN_KEYS = {plain(name): rule for rule in TURN_KEYS for name in rule.names}
