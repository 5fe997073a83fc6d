"""Columns and keys that change what is learned: one table, of which nothing is passed over."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from model.data import keys
from model.data.fields import Reading

DOCUMENT = Path(__file__).parents[2] / "docs/datasets.md"


def test_the_documents_show_the_table() -> None:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    start = lines.index("| where | names | what happens |") + 2
    table = lines[start : start + len(keys.documented()) + 1]
    assert table == [*keys.documented(), ""]


@pytest.mark.parametrize("spelling", ["loss_mask", "loss-mask", "Loss Mask", "lossMask", "LOSS_MASK"])
def test_a_key_is_known_in_any_spelling(spelling: str) -> None:
    rule = keys.turn_rule(spelling)
    assert rule is not None
    assert rule.kind == "learned"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("should_train", "learned"), ("isTrained", "learned"), ("include-in-loss", "learned"), ("use_loss", "learned"),
     ("no_train", "notLearned"), ("excludeFromLoss", "notLearned"), ("is_masked", "notLearned"),
     ("ignored_in_loss", "notLearned"), ("mask_label", "unclear"), ("loss_multiplier", "unclear"),
     ("turn_weight", "unclear"), ("imageUrl", "media"), ("audio_bytes", "media"),
     ("message", None), ("is_correct", None), ("brainstorm", None), ("lossy", None), ("image_caption", None)],
)  # fmt: skip
def test_a_turns_key_is_told_by_the_words_of_its_name(name: str, kind: str | None) -> None:
    rule = keys.turn_rule(name)
    assert (rule and rule.kind) == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [("train_on_turns", "flag"), ("skipLoss", "notFlag"), ("turn_weights", "mask"), ("mm_data", "media"),
     ("attention_mask", None), ("special_tokens_mask", None), ("media", None), ("developer", None), ("lessons", None)],
)  # fmt: skip
def test_a_column_is_told_by_the_words_of_its_name(name: str, kind: str | None) -> None:
    rule = keys.column_rule(name)
    assert (rule and rule.kind) == kind


@pytest.mark.parametrize(
    ("value", "said"),
    [(True, True), (1, True), (1.0, True), ("true", True), ("True", True), (" yes", True), ("1", True),
     (False, False), (0, False), (0.0, False), ("FALSE", False), ("0", False), ("no", False),
     ("t", True), ("Y", True), ("on", True), ("1.0", True), ("f", False), ("N", False), ("off", False), ("0.0", False),
     (2, None), (0.5, None), ("", None), ("maybe", None), ([1], None), (float("nan"), None), ({}, None)],
)  # fmt: skip
def test_what_a_flag_says(value: Any, said: bool | None) -> None:
    assert keys.truth(value) is said


@pytest.mark.parametrize(
    ("value", "empty"),
    [(None, True), (float("nan"), True), ("", True), (" ", True), ("[]", True), ([], True), ([None], True), ({}, True),
     ({"bytes": None, "path": None}, True), ([{"bytes": None}, ""], True), ("NaN", True), ("None", True),
     (r"\N", True), ("a", False), ([0], False), (0, False), ({"a": 1}, False)],
)  # fmt: skip
def test_what_is_empty(value: Any, empty: bool) -> None:
    assert keys.is_empty(value) is empty


def test_a_mapping_decides_which_column_is_meant() -> None:
    reading = Reading({"system": "s", "completion": "thinking"})
    mapped = reading.rule("s")
    assert mapped is not None
    assert mapped.kind == "system"
    assert reading.rule("system_prompt") is None  # another column is mapped
    assert reading.rule("thinking") is None  # it is the completion
    other = reading.rule("reasoning")
    assert other is not None
    assert other.kind == "thoughts"


def test_rows_of_ever_other_columns_take_no_memory() -> None:
    reading = Reading()
    before = sys.getsizeof(reading._rules)
    for number in range(20_000):
        assert reading.rule(f"column {number}") is None
    assert sys.getsizeof(reading._rules) - before < 1 << 20
