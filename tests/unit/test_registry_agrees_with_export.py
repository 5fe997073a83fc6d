"""The registry refuses at upload what no run could decode: held against the export, which it may not import."""

from __future__ import annotations

import codecs
import io
import json
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.registry.errors import InvalidRows
from finetune.registry.jsonlines import JsonLinesReader
from finetune.registry.strictjson import decode
from model.data.decode import MAX_LINE_BYTES, decode_line
from model.data.readers import bounded_lines, json_lines
from model.data.records import InvalidRowError, Record
from model.data.shapes import Shaper
from tests.unit.corpus import bad_beside, bad_conversations, bad_fields, bad_labels, bad_texts, good

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


CORPUS = (good, bad_texts, bad_fields, bad_conversations, bad_beside, bad_labels)
JSON_LINES = [case for part in CORPUS for case in part.CASES if case.file == "train.jsonl"]


@pytest.mark.parametrize("case", JSON_LINES, ids=lambda case: case.name)
def test_an_upload_is_refused_where_the_export_can_decode_no_row_or_shapes_mix(case: Any) -> None:
    message = refusal(case.content)
    records = list(json_lines(bounded_lines(io.BytesIO(case.content))))
    wrong = [record.number for record in records if not isinstance(record.value, dict)]
    if wrong or not records:
        assert message is not None
        assert message.startswith(f"line {wrong[0]}: " if wrong else "the dataset has no rows")
    elif message is not None:  # NaN the export reads, and passes over where nobody uses it
        assert re.match(r"line \d+: (a row .*, but line \d+ is a row |not valid JSON: -?(NaN|Infinity) is no)", message)
