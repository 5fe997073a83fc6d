"""Which rows are taken, and what becomes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.data.forms import CANONICAL_FIELDS, FORMS
from model.data.records import InvalidRowError, Record
from model.data.shapes import Shaper
from model.exits import FailureError

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
OTHER = {"role": "assistant", "content": "Go away."}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
SEEN = {**ANSWER, "weight": 0}
THOUGHT = {**ANSWER, "reasoning_content": "Well."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "2", "name": "add"}


def read(value: Any, method: str = "SFT", **columns: str) -> tuple[str | None, Any]:
    """Return the shape and the content that a row has as a dataset's first."""
    shaper = Shaper("train.jsonl", method, columns)
    content = shaper.content(Record(1, value))
    return shaper.shape, content


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ({"prompt": "a", "completion": "b", "id": 7}, {"prompt": "a", "completion": "b"}),
        ({"instruction": "a", "output": "b"}, {"prompt": "a", "completion": "b"}),
        ({"instruction": "a", "input": "", "output": "b"}, {"prompt": "a", "completion": "b"}),
        ({"instruction": "a", "input": None, "output": "b"}, {"prompt": "a", "completion": "b"}),
        ({"instruction": "a", "input": "c", "output": "b"}, {"prompt": "a\n\nc", "completion": "b"}),
    ],
)
def test_prompt_and_completion(value: Any, content: Any) -> None:
    assert read(value) == ("prompt-completion", content)


@pytest.mark.parametrize(
    ("value", "content"),
    [
        ({"messages": [{**USER, "weight": 1, "name": None}, ANSWER]}, {"messages": [USER, ANSWER]}),
        ({"messages": json.dumps([USER, ANSWER])}, {"messages": [USER, ANSWER]}),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}, ANSWER]},
         {"messages": [USER, ANSWER]}),
        ({"system": "Be brief.", "messages": [USER, ANSWER]},
         {"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER]}),
        ({"messages": [USER, {**CALLING, "content": None}, RESULT, ANSWER], "tools": [TOOL]},
         {"messages": [USER, CALLING, RESULT, ANSWER], "tools": [TOOL]}),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [
            {"id": "7", "function": {"name": "add", "arguments": '{"a": 1}'}}]}],
          "tools": json.dumps([TOOL["function"]])},
         {"messages": [USER, {**CALLING, "tool_calls": [{"id": "7", **CALL}]}], "tools": [TOOL]}),
        ({"messages": [USER, ANSWER], "tools": []}, {"messages": [USER, ANSWER]}),
        ({"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
         {"messages": [USER, ANSWER]}),
        ({"conversations": [USER, ANSWER]}, {"messages": [USER, ANSWER]}),
        ({"messages": [USER, CALLING, {"role": "tool", "tool_call_id": "7"}, ANSWER]},
         {"messages": [USER, CALLING, {"role": "tool", "content": "", "tool_call_id": "7"}, ANSWER]}),
        ({"conversations": [{"from": "human", "value": "Why?"},
                            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                            {"from": "observation", "value": "2"}, {"from": "gpt", "value": "Because."}],
          "system": "", "tools": ""},
         {"messages": [USER, CALLING, {"role": "tool", "content": "2"}, ANSWER]}),
        ({"prompt": [USER], "completion": [ANSWER]}, {"messages": [USER, ANSWER]}),
        ({"prompt": "Why?", "completion": [ANSWER]}, {"messages": [USER, ANSWER]}),
        ({"prompt": [USER, ANSWER, USER], "completion": [OTHER]}, {"messages": [USER, SEEN, USER, OTHER]}),
        ({"prompt": [USER, CALLING, RESULT], "completion": [ANSWER]},
         {"messages": [USER, {**CALLING, "weight": 0}, RESULT, ANSWER]}),
        ({"messages": [{**USER, "weight": 0}, SEEN, USER, {**OTHER, "weight": 1.0}]},
         {"messages": [USER, SEEN, USER, OTHER]}),
        ({"prompt": [USER], "completion": [SEEN, USER, OTHER]}, {"messages": [USER, SEEN, USER, OTHER]}),
        *(
            ({"messages": [{**USER, key: ""}, {**ANSWER, key: "Well."}]}, {"messages": [USER, THOUGHT]})
            for key in ("reasoning_content", "thinking", "reasoning")
        ),
        ({"messages": [USER, {**ANSWER, "thinking": " \n", "reasoning": None}]}, {"messages": [USER, ANSWER]}),
        ({"messages": [USER, {**THOUGHT, "reasoning": "Well."}]}, {"messages": [USER, THOUGHT]}),
        ({"conversations": [{"from": "human", "value": "Why?"},
                            {"from": "gpt", "value": "Because.", "thinking": "Well."}]},
         {"messages": [USER, THOUGHT]}),
    ],
)  # fmt: skip
def test_messages(value: Any, content: Any) -> None:
    assert read(value) == ("messages", content)


@pytest.mark.parametrize(
    ("value", "shape", "content"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference",
         {"prompt": "a", "chosen": "b", "rejected": "c"}),
        ({"instruction": "a", "input": "d", "chosen": "b", "rejected": "c"}, "preference",
         {"prompt": "a\n\nd", "chosen": "b", "rejected": "c"}),
        *(
            (value, "preference-messages", {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]})
            for value in (
                {"prompt": [USER], "chosen": [ANSWER], "rejected": [OTHER]},
                {"prompt": "Why?", "chosen": [ANSWER], "rejected": [OTHER]},
                {"prompt": None, "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
                {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
                {"prompt": "Why?", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
                {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": [USER, OTHER]},
            )
        ),
        ({"chosen": [USER, ANSWER, USER, ANSWER], "rejected": [USER, ANSWER, USER, OTHER], "tools": [TOOL]},
         "preference-messages",
         {"prompt": [USER, ANSWER, USER], "chosen": [ANSWER], "rejected": [OTHER], "tools": [TOOL]}),
        ({"system": "Be brief.", "chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "preference-messages",
         {"prompt": [{"role": "system", "content": "Be brief."}, USER], "chosen": [ANSWER], "rejected": [OTHER]}),
        ({"prompt": [USER, SEEN, USER], "chosen": [THOUGHT], "rejected": [ANSWER]}, "preference-messages",
         {"prompt": [USER, ANSWER, USER], "chosen": [THOUGHT], "rejected": [ANSWER]}),
        *(
            (value, "preference-messages", {"prompt": [USER, ANSWER, USER], "chosen": [OTHER], "rejected": [ANSWER]})
            for value in (
                {"prompt": [USER, SEEN, USER],
                 "chosen": [USER, ANSWER, USER, OTHER], "rejected": [USER, ANSWER, USER, ANSWER]},
                {"prompt": [USER, ANSWER, USER],
                 "chosen": [USER, SEEN, USER, OTHER], "rejected": [USER, SEEN, USER, ANSWER]},
                {"chosen": [USER, SEEN, USER, OTHER], "rejected": [USER, ANSWER, USER, ANSWER]},
            )
        ),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER, USER, OTHER]}, "preference-messages",
         {"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER, USER, OTHER]}),
    ],
)  # fmt: skip
def test_preferences(value: Any, shape: str, content: Any) -> None:
    assert read(value, "DPO") == (shape, content)


@pytest.mark.parametrize("text", ["[]", "[1, 2]", '[{"name": "Ada"}]', '["role"]', "[sic]", '[{"role": "user"'])
def test_a_text_that_is_a_list_without_roles_is_text(text: str) -> None:
    assert read({"prompt": text, "completion": text}) == ("prompt-completion", {"prompt": text, "completion": text})
    pair = {"prompt": "a", "chosen": text, "rejected": "b"}
    assert read(pair, "DPO") == ("preference", pair)
    answered = {"prompt": text, "completion": [ANSWER]}
    assert read(answered)[1] == {"messages": [{"role": "user", "content": text}, ANSWER]}


def test_a_text_that_is_a_list_of_turns_is_turns() -> None:
    content = {"messages": [USER, ANSWER]}
    assert read({"prompt": json.dumps([USER]), "completion": json.dumps([ANSWER])}) == ("messages", content)
    spoken = [{"from": "gpt", "value": "Because."}]
    assert read({"prompt": "Why?", "completion": json.dumps(spoken)}) == ("messages", content)


def test_columns_are_mapped_and_told() -> None:
    shaper = Shaper("train.jsonl", "SFT", {"prompt": "question", "completion": "answer"})
    row = {"question": "a", "answer": "b", "id": 7, "messages": [USER, ANSWER]}
    assert shaper.content(Record(1, row)) == {"prompt": "a", "completion": "b"}
    assert shaper.detected == (
        "prompt and completion; prompt is the column question; completion is the column answer; not used: id, messages"
    )


@pytest.mark.parametrize(
    ("row", "method", "detected"),
    [
        ({"messages": [USER, ANSWER], "prompt": "Why?"}, "SFT", "messages; not used: prompt"),
        ({"instruction": "a", "output": "b"}, "SFT",
         "instruction, input and output (Alpaca), read as prompt-completion"),
        ({"conversations": [USER, ANSWER], "system": "s"}, "SFT", "conversations (ShareGPT), read as messages"),
        ({"id": 1, "messages": [{**USER, "id": None}, {**ANSWER, "thinking": "Well.", "mood": "good"}]}, "SFT",
         "messages; not used: id; not used in turns: mood"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "DPO", "prompt, chosen and rejected, read as preference"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}, "DPO",
         "chosen and rejected conversations, whose common beginning is the prompt, read as preference-messages"),
    ],
)  # fmt: skip
def test_what_was_detected_is_told(row: Any, method: str, detected: str) -> None:
    shaper = Shaper("train.jsonl", method, {})
    shaper.content(Record(1, row))
    assert shaper.detected == detected


def test_a_row_that_lacks_a_field_does_not_decide() -> None:
    shaper = Shaper("train.jsonl", "DPO", {})
    with pytest.raises(InvalidRowError, match="rejected: is missing"):
        shaper.content(Record(1, {"prompt": "a", "chosen": "b"}))
    assert shaper.shape is None
    shaper.content(Record(2, {"chosen": [USER, ANSWER], "rejected": [USER, OTHER]}))
    assert shaper.shape == "preference-messages"
    with pytest.raises(
        InvalidRowError, match=r"has prompt, chosen and rejected, but row 2 has chosen and rejected con"
    ):
        shaper.content(Record(3, {"prompt": "a", "chosen": "b", "rejected": "c"}))


def test_a_row_for_both_methods_is_read_for_the_one_that_was_asked_for() -> None:
    row = {"prompt": "Why?", "chosen": [USER, ANSWER], "rejected": [USER, OTHER], "messages": [USER, ANSWER]}
    assert read(row)[0] == "messages"
    assert read(row, "DPO")[0] == "preference-messages"


def test_the_method_is_never_ignored() -> None:
    with pytest.raises(FailureError, match="has prompt, chosen and rejected: that is for method DPO; SFT needs"):
        read({"prompt": "a", "chosen": "b", "rejected": "c"})
    with pytest.raises(FailureError, match="has prompt and completion: that is for method SFT; DPO needs"):
        read({"prompt": "a", "completion": "b"}, "DPO")


def test_every_field_can_be_mapped() -> None:
    assert set(CANONICAL_FIELDS) == {field for forms in FORMS.values() for form in forms for field in form.fields}
    assert read({"p": "a", "c": "b", "r": "d"}, "DPO", prompt="p", chosen="c", rejected="r")[0] == "preference"
    assert read({"turns": [USER, ANSWER], "f": [TOOL]}, messages="turns", tools="f")[1]["tools"] == [TOOL]
