"""Which rows are taken, and what is said about the others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from model.data.checks import SHOWN_PROBLEMS, Report
from model.data.decode import MAX_LINE_BYTES, decode_line
from model.data.formats import parse_value
from model.data.records import InvalidRowError, Problem


def parse(value: Any, **columns: str) -> Any:
    line = value if isinstance(value, bytes) else json.dumps(value).encode()
    return parse_value(decode_line(line), columns, None).content


def said(value: Any, **columns: str) -> str:
    with pytest.raises(InvalidRowError) as caught:
        parse(value, **columns)
    return str(caught.value)


def chat(*turns: Any) -> dict[str, Any]:
    return {"messages": list(turns)}


QUESTION = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}


def test_a_row_keeps_the_fields_that_are_trained_on() -> None:
    assert parse({"prompt": "a", "completion": "b", "id": 7}) == {"prompt": "a", "completion": "b"}
    assert parse(chat({**QUESTION, "name": "x"}, ANSWER)) == chat(QUESTION, ANSWER)
    assert parse('{"prompt": "ä\\ud83d\\ude00", "completion": "b"}\r\n'.encode())["prompt"] == "ä😀"


def test_columns_are_mapped() -> None:
    row = {"question": "a", "answer": "b"}
    assert parse(row, prompt="question", completion="answer") == {"prompt": "a", "completion": "b"}
    assert said({"question": "a"}, prompt="question", completion="answer") == "answer: is missing"
    assert parse({"chat": [QUESTION, ANSWER]}, messages="chat") == chat(QUESTION, ANSWER)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b'{"prompt": "a", "completion" "b"}', "not valid JSON: Expecting ':' delimiter at character 30"),
        (b"", "not valid JSON: Expecting value at character 1"),
        (b'{"prompt": "\xff"}', "not UTF-8: byte 0xff at byte 13"),
        (b"[" * 100_000, "nests lists and objects more than 100 deep"),
        (b'{"prompt": ' + b"1" * 5000 + b"}", "holds a number of 5000 digits"),
        (b" " * (MAX_LINE_BYTES + 1), "is longer than 16 MiB"),
        ([1], "must be a JSON object, is a list"),
        ({"completion": "b"}, "prompt: is missing"),
        ({"prompt": 1, "completion": None}, "prompt: must be a string, is a number; completion: must be a"),
        ({"prompt": "a", "completion": " \n"}, "completion: is empty"),
        (b'{"prompt": "a", "completion": "\\ud800"}', "completion: holds half of a surrogate pair"),
        ({"text": "a"}, "has neither prompt and completion nor messages; it has text"),
        ({"prompt": "a", "messages": []}, "has both messages and prompt or completion"),
        (chat(), "messages: is empty"),
        ({"messages": "a"}, "messages: must be a list, is a string"),
        (chat(QUESTION), "messages: has no assistant turn to learn from"),
        (chat("a", ANSWER), "messages[0]: must be an object, is a string"),
        (chat({"role": "human", "content": "a"}, ANSWER), "messages[0].role: must be one of system, user"),
        (chat(QUESTION, {"role": "assistant"}), "messages[1].content: is missing"),
        (chat(QUESTION, {"role": "assistant", "content": ""}), "messages[1].content: is empty"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_says_why(value: Any, expected: str) -> None:
    assert expected in said(value)


def test_a_dataset_has_one_shape() -> None:
    with pytest.raises(InvalidRowError, match="messages rows, but the rows before are prompt-completion"):
        parse_value(chat(QUESTION, ANSWER), {}, "prompt-completion")


def test_a_single_problem_is_told_plainly() -> None:
    report = Report("train.jsonl")
    report.add(7, InvalidRowError([Problem("completion", "is missing")]))
    failure = report.failure()
    assert failure.message == "train.jsonl row 7: completion: is missing"
    assert (failure.code, failure.row) == (3, 7)


def test_many_problems_are_counted_and_the_first_are_shown() -> None:
    report = Report("train.jsonl")
    for row in range(3, 33):
        report.add(row, InvalidRowError([Problem("prompt", "is empty"), Problem("completion", "is empty")]))
    message = report.failure().message
    assert message.count("is empty") == SHOWN_PROBLEMS
    assert message.endswith("; and 40 more (60 problems in 30 rows)")
    assert report.failure().row == 3
