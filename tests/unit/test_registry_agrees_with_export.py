"""The registry refuses at upload what every run would refuse: held against the export, which it may not import."""

from __future__ import annotations

import codecs
import io
import json
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune.registry.errors import InvalidRows
from finetune.registry.jsonlines import JsonLinesReader
from finetune.registry.strictjson import decode
from model.data.decode import MAX_LINE_BYTES, decode_line
from model.data.readers import bounded_lines, json_lines
from model.data.records import InvalidRowError, Record
from model.data.shapes import Shaper
from model.exits import FailureError
from tests.unit.corpus import bad_beside, bad_conversations, bad_fields, bad_labels, bad_texts
from tests.unit.corpus.cases import Case

LINES = [
    b'{"a": 1e999}',
    b'{"a": -1e999}',
    b'{"a": 1e308}',
    b'{"a": 1, "a": 2}',
    b'{"a": {"b": 1, "b": 1}}',
    b'{"a": {"b": 1}, "b": {"b": 1}}',
    b'{"a": "\\u0000"}',
    b'{"a": "\x00"}',
    b'{"a": "\\ud800"}',
    b'{"a": "\\ud83d\\ude00"}',
    b'{"a": "\xed\xa0\x80"}',
    b'{"a": "\xff"}',
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"a": ' + b"9" * 4000 + b"}",
    b"[" * 100 + b"]" * 100,
    b"[" * 101 + b"]" * 101,
    b'{"a": "' + b"[" * 200 + b'"}',
    b'{"a": "\\"' + b"[" * 200 + b'"}',
    b'{"a": 01}',
    b'{"a": 1}\xc2\xa0',
    b'{"a": 1} \t\r',
    b'{"a": 1}{"b": 2}',
    b'{"a": "b',
    b"{'a': 1}",
    b'{"a": 1,}',
]


def test_the_digits_of_a_long_number_are_counted_alike_and_not_those_of_texts() -> None:
    line = b'{"a": "\\"' + b"1" * 6000 + b'", "b": ' + b"9" * 5000 + b"}"
    for decoder in (decode, decode_line):
        with pytest.raises((ValueError, InvalidRowError), match=r"^holds a number of 5000 digits$"):
            decoder(line)


def test_a_key_that_stands_twice_among_many_is_found_at_once() -> None:
    line = json.dumps({str(number): 0 for number in range(20_000)})[:-1].encode() + b', "19999": 0}'
    began = time.process_time()
    for decoder in (decode, decode_line):
        with pytest.raises((ValueError, InvalidRowError), match=r"19999\b.* stands twice"):
            decoder(line)
    assert time.process_time() - began < 1  # many seconds, when each key is looked for among all others


@pytest.mark.parametrize(
    ("mark", "end", "beyond"),
    [
        (b"", b"\n", 0),
        (b"", b"\n", 1),
        (codecs.BOM_UTF8, b"\r\n", 0),
        (codecs.BOM_UTF8, b"\n", 1),
        (codecs.BOM_UTF8, b"", 5),
    ],
)
def test_a_line_is_as_long_for_both(mark: bytes, end: bytes, beyond: int) -> None:
    start, stop = mark + b'{"prompt": "a", "completion": "', b'"}' + end
    text = b"x" * (MAX_LINE_BYTES + beyond - len((start + stop).removesuffix(b"\n")))
    line = start + text + stop
    assert refusal(line) == ("line 1: longer than 16 MiB" if beyond else None)
    (record,) = json_lines(bounded_lines(io.BytesIO(line)))
    assert str(record.value).startswith("is longer than 16 MiB: ") == (beyond > 0)
    assert isinstance(record.value, InvalidRowError) == (beyond > 0)


def refusal(content: bytes) -> str | None:
    reader = JsonLinesReader()
    try:
        reader.feed(content)
        reader.finish()
    except InvalidRows as error:
        return error.message
    return None


def decoded(decoder: Any, line: bytes) -> Any:
    try:
        return decoder(line)
    except (ValueError, InvalidRowError):
        return "refused"


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_json_for_both_or_for_neither(line: bytes) -> None:
    assert decoded(decode, line) == decoded(decode_line, line)


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_json_is_refused_at_upload_and_by_a_run_where_it_is_used(name: str) -> None:
    unused = f'{{"prompt": "a", "completion": "b", "score": {name}}}'.encode()
    assert refusal(unused) == f"line 1: not valid JSON: {name} is no JSON value, use null"
    content = {"prompt": "a", "completion": "b"}
    assert Shaper("train.jsonl", "SFT", {}).content(Record(1, decode_line(unused))) == content
    used = f'{{"prompt": "a", "completion": {name}}}'.encode()
    with pytest.raises(InvalidRowError, match=r"^completion: must"):
        Shaper("train.jsonl", "SFT", {}).content(Record(1, decode_line(used)))


@given(st.binary(max_size=30) | st.text(alphabet='{}[]":,\\u0dD8aA1eE+-. \t\n', max_size=30).map(str.encode))
def test_bytes_that_are_perhaps_json_are_so_for_both_or_for_neither(line: bytes) -> None:
    assert decoded(decode, line) == decoded(decode_line, line)


ONLY_THE_EXPORT = {
    "fields that no shape has, which a run may map": {
        "an empty object",
        "a field of another name",
        "rows under a key as long as a text",
        "ShareGPT: an unknown speaker",
        "ShareGPT: no value",
        "ShareGPT: a broken function call",
        "Alpaca: no output",
        "Alpaca: input is a number",
        "no rejected",
        "no prompt",
        "no prompt in common",
    },
    "rows for another method, or equal answers, of which SFT may learn one": {
        "two shapes in a row",
        "preferences for SFT",
        "chat preferences for SFT",
        "messages for DPO",
        "completions for DPO",
        "alpaca for DPO",
        "chosen equal to rejected",
        "chat: chosen equal to rejected",
        "chat: chosen equal to rejected but for weights",
    },
    "the order of turns, their weights, thoughts and calls of tools, which the trainer's version decides": {
        "system after the start",
        "two system turns",
        "system twice",
        "assistant first",
        "two user turns",
        "two assistant turns",
        "user last",
        "no assistant",
        "a tool's answer without a call, in a conversation that has calls",
        "a call without an answer",
        "a call by the user",
        "a call without a name",
        "a call with broken arguments",
        "a call with arguments twice",
        "a call with a comma after its arguments",
        "a call with a list as arguments",
        "calls that are no list",
        "tools that are no list",
        "a tool without a name",
        "all turns of weight 0",
        "half a weight",
        "a completion of weight 0",
        "an answer of weight 0, for DPO",
        "thoughts that are no text",
        "a user who thinks",
        "a call in the old form",
        "thoughts in two versions",
        "a prompt of another conversation",
        "a prompt with a system turn that the answers lack",
        "a prompt that ends with the assistant",
        "chosen ends with the user",
    },
    "labels, which only KTO reads, and what stands beside a text": {
        "no label anywhere",
        "no label beside messages",
        "no label",
        "a label that is null, first",
        "a label that is null",
        "a label in words",
        "an empty label",
        "a label of minus one",
        "a label of two",
        "half a label",
        "a label in a list",
        "a labelled prompt that ends with the assistant",
        "a labelled conversation that ends with the user",
        "a labelled conversation without a question",
        "a labelled answer of weight 0",
        "a labelled row with two system prompts",
        "preferences for KTO",
        "labelled answers for DPO",
        "texts for DPO",
        "texts for KTO",
        "a text that is null",
        "a text around a picture",
        "a system prompt beside a text",
        "tools beside a text",
        "thoughts beside a text",
        "variables of a template beside a text",
        "a prompt beside a text",
        "an answer beside a text",
        "a bad answer beside a text",
    },
    "the dataset as a whole": {
        "all rows the same",
        "all texts the same",
        "all rows invalid and dropped",
        "all answers good",
        "all answers bad",
    },
}
"""Rows of JSON lines that the export refuses and that the registry keeps, by the reason why."""

JSON_LINES = [
    case
    for case in (*bad_texts.CASES, *bad_fields.CASES, *bad_conversations.CASES, *bad_labels.CASES)
    if case.file == "train.jsonl" and case.code == 3 and not any("--column" in flag for flag in case.flags)
]


@pytest.mark.parametrize("case", JSON_LINES, ids=lambda case: case.name)
def test_what_the_export_refuses_is_refused_at_upload(case: Case) -> None:
    message = refusal(case.content)
    assert (message is None) == (case.name in set().union(*ONLY_THE_EXPORT.values()))
    if message is not None and case.row is not None:
        assert message.startswith(f"line {case.row}: ")


BESIDE = [case for case in bad_beside.CASES if case.file == "train.jsonl"]


@pytest.mark.parametrize("case", BESIDE, ids=lambda case: case.name)
def test_what_stands_beside_the_texts_is_left_to_the_export(case: Case) -> None:
    assert refusal(case.content) is None


QUESTION = [{"role": "user", "content": "a"}]
ANSWER = {"role": "assistant", "content": "a"}
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "human", "gpt", "function_call", "bot", None, 1])
TEXTS = st.sampled_from(
    [
        "a",
        "",
        " ",
        "a\0",
        "\ud800",
        "[1]",
        '[{"role": "user", "content": "a"}]',
        '[{"role": "x"}]',
        "[{]",
        None,
        1,
        True,
    ]
)
PARTS = st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "image", None])}, optional={"text": TEXTS}), max_size=2
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": ROLES,
            "content": TEXTS | PARTS,
            "from": ROLES,
            "value": TEXTS,
            "tool_calls": st.sampled_from([None, [], [{"name": "f", "arguments": {}}]]),
        },
    )
    | TEXTS,
    max_size=3,
)
FIELDS = (
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "messages",
    "conversations",
    "instruction",
    "output",
    "text",
    "label",
    "x",
)
ROWS = st.dictionaries(st.sampled_from(FIELDS), TEXTS | TURNS | PARTS, max_size=5)


@given(ROWS)
@example({"prompt": "a", "chosen": "", "rejected": "d", "completion": "ok"})
@example({"chosen": [*QUESTION, {**ANSWER, "content": "b"}], "rejected": [*QUESTION, ANSWER], "messages": []})
def test_what_is_refused_at_upload_no_run_could_use(row: dict[str, Any]) -> None:
    if (message := refusal(json.dumps(row).encode())) is None:
        return
    for method in ("SFT", "DPO", "KTO"):
        with pytest.raises((InvalidRowError, FailureError)):
            Shaper("train.jsonl", method, {}).content(Record(1, row))
    assert message.startswith("line 1: ")
