"""Which held-out rows are asked at a run's end, and how a person reads them; the tokens are tests/training's part."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.training.rows.encoding import IGNORED
from model.training.rows.outcomes import Place
from model.training.samples.questions import (
    TEXT_BYTES,
    Question,
    candidates,
    card_lines,
    clean,
    fit,
    last_learned,
    learned_turns,
    opening,
    prompt_turns,
)


@pytest.mark.parametrize(
    ("count", "rows", "first"),
    [(5, 40, [1, 9, 17, 25, 33]), (5, 1000, [25, 225, 425, 625, 825]), (5, 3, [0, 1, 2]), (1, 8, [1]), (2, 1, [0])],
)
def test_the_first_rows_to_be_asked_lie_evenly_over_all(count: int, rows: int, first: list[int]) -> None:
    found = candidates(count, rows)
    assert sorted(found[:count]) == first
    assert len(found) == len(set(found)) == min(rows, 4 * count)
    assert all(0 <= number < rows for number in found)


def test_without_rows_nothing_is_asked() -> None:
    assert candidates(5, 0) == []


@pytest.mark.parametrize(
    ("labels", "span"),
    [("..xx", (2, 4)), (".xx.", (1, 3)), ("xx.x", (3, 4)), ("....", (0, 0)), ("", (0, 0)), (".xx.xx..", (4, 6))],
)
def test_the_answer_is_what_is_learned_last(labels: str, span: tuple[int, int]) -> None:
    assert last_learned([IGNORED if label == "." else 7 for label in labels]) == span


@pytest.mark.parametrize(("length", "span"), [(1000, (64, 192)), (100, (50, 100)), (3, (1, 3)), (1, (0, 1))])
def test_a_text_is_opened_by_its_first_half_at_most(length: int, span: tuple[int, int]) -> None:
    assert opening(length) == span


def turn(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CALL = {"function": {"name": "weather", "arguments": {"city": "Köln"}}}


@pytest.mark.parametrize(
    ("content", "prompt", "learned"),
    [
        ({"prompt": "Why?", "completion": "So."}, "Why?", 1),
        ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, "Why?", 1),
        ({"messages": [turn("user", "Why?"), turn("assistant", "So.")]}, "Why?", 1),
        (
            {"messages": [turn("system", "Be brief."), turn("user", "Why?"), turn("assistant", "So.")]},
            "system: Be brief.\n\nuser: Why?",
            1,
        ),
        (
            {"messages": [turn("user", "Hi"), turn("assistant", "Ho"), turn("user", "Why?"), turn("assistant", "So.")]},
            "user: Hi\n\nassistant: Ho\n\nuser: Why?",
            2,
        ),
        (  # what is seen and not learned is no answer
            {"messages": [turn("user", "Hi"), turn("assistant", "Ho"), turn("assistant", "So.", weight=0)]},
            "Hi",
            1,
        ),
        (
            {
                "messages": [
                    turn("user", "Rain?"),
                    turn("assistant", None, tool_calls=[CALL], weight=0),
                    turn("tool", "no"),
                    turn("assistant", "No."),
                ]
            },
            'user: Rain?\n\nassistant: [{"function": {"name": "weather", "arguments": {"city": "Köln"}}}]\n\ntool: no',
            1,
        ),
        (
            {
                "prompt": [turn("user", "Why?")],
                "chosen": [turn("assistant", "So.")],
                "rejected": [turn("assistant", "No.")],
            },
            "Why?",
            1,
        ),
        ({"prompt": [turn("user", "Why?")], "completion": [turn("assistant", "So.")], "label": True}, "Why?", 1),
    ],
)
def test_a_prompt_is_shown_as_the_row_has_it(content: dict[str, Any], prompt: str, learned: int) -> None:
    assert prompt_turns(content) == prompt
    assert learned_turns(content) == learned


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("plain\ttext\nof lines", "plain\ttext\nof lines"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("nul\x00 bell\x07 escape\x1b[31m", "nul� bell� escape�[31m"),
        ("half \ud83d of a pair", "half � of a pair"),
        ("c1 \x9b2J", "c1 �2J"),
        ("whole 😀, joined 👩‍👩‍👧", "whole 😀, joined 👩‍👩‍👧"),
    ],
)
def test_a_text_holds_nothing_that_a_reader_chokes_on(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_a_long_text_is_cut_between_characters() -> None:
    assert fit("é" * (TEXT_BYTES // 2), end=False) == ("é" * (TEXT_BYTES // 2), True)
    for text in ("x" + "é" * TEXT_BYTES, "😀" * TEXT_BYTES):
        beginning, whole = fit(text, end=False)
        assert not whole
        assert text.startswith(beginning)
        assert TEXT_BYTES - 4 < len(beginning.encode()) <= TEXT_BYTES
        end, whole = fit(text, end=True)
        assert not whole
        assert text.endswith(end)
        assert TEXT_BYTES - 4 < len(end.encode()) <= TEXT_BYTES


def test_what_is_kept_is_bounded_and_says_what_is_cut() -> None:
    place = Place("the dataset's", "a\x1b.jsonl", 7)
    hostile = "\x00\ud800\u2028" + "😀" * 5000
    question = Question(place, "?" + hostile, hostile, [1, 2])
    kept = question.answered("short", hostile, ["base"])
    assert kept["row"] == 7
    assert kept["file"] == "a�.jsonl"
    assert kept["truncated"] == ["prompt", "reference", "base", "adapter"]
    assert kept["base"] == "short"
    assert kept["prompt"].endswith("😀")
    assert len(json.dumps(kept, ensure_ascii=False).encode()) < 4 * TEXT_BYTES + 500


def test_a_row_of_one_file_without_a_good_answer_has_no_file_and_no_reference() -> None:
    kept = Question(Place("the dataset's", None, 3), "Why?", None, [1]).answered("So.", "Thus.", [])
    assert kept == {"row": 3, "prompt": "Why?", "base": "So.", "adapter": "Thus.", "truncated": []}


def test_no_text_of_an_answer_is_markdown_of_the_card() -> None:
    kept = Question(Place("", None, 3), "Why?", "So.", [1]).answered("# Title\n```\n<b>", "fine", ["adapter"])
    lines = list(card_lines([kept], "The reference"))
    assert "    # Title" in lines
    assert not [line for line in lines if line.startswith(("# ", "```", "<"))]
    assert lines.index("The reference:") < lines.index("The adapter (cut):") < lines.index("    fine")
    assert list(card_lines([], "The reference")) == []
