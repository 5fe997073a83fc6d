"""Rows are checked while they stream past, and every complaint names its line."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from contextlib import nullcontext

import pytest

from finetune.registry.errors import InvalidRows
from finetune.registry.jsonlines import MAX_LINE_BYTES, MAX_LINE_VALUES, JsonLinesReader, RowFacts

GOOD = b'{"prompt": "a", "completion": "\xc3\xa4"}\n{"prompt": "c", "completion": "d"}\n'
TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def read(content: bytes, *, block: int | None = None) -> RowFacts:
    reader = JsonLinesReader()
    for start in range(0, len(content), block or max(len(content), 1)):
        reader.feed(content[start : start + (block or len(content))])
    return reader.finish()


@pytest.mark.parametrize("block", [1, 2, 7, 41, 1000])
def test_blocks_may_end_anywhere_also_inside_a_character(block: int) -> None:
    facts = read(GOOD, block=block)
    assert facts == RowFacts(
        rows=2, bytes=len(GOOD), sha256=hashlib.sha256(GOOD).hexdigest(), shape="prompt-completion"
    )


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b"\n\n  \n"])
def test_the_last_line_may_end_as_it_likes(ending: bytes) -> None:
    assert read(GOOD.rstrip(b"\n") + ending).rows == 2


def test_windows_line_ends_are_white_space() -> None:
    assert read(GOOD.replace(b"\n", b"\r\n")).rows == 2


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"prompt": "a", "completion": "b"}, "prompt-completion"),
        ({"messages": TURNS}, "messages"),
        ({"messages": TURNS, "tools": []}, "messages"),
        ({"messages": json.dumps(TURNS)}, "messages"),
        ({"messages": TURNS, "prompt": None, "completion": None}, "messages"),
        ({"prompt": "a", "completion": TURNS[1:]}, "prompt-completion"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": TURNS[1:], "tools": []}, "preference-messages"),
        ({"prompt": "a", "chosen": TURNS[1:], "rejected": TURNS[1:]}, "preference-messages"),
        ({"instruction": "a", "output": "b", "prompt": None, "completion": None}, "other"),
        ({"chosen": [], "rejected": []}, "other"),
        ({"question": "a", "answer": "b"}, "other"),
        ({}, "other"),
    ],
)
def test_the_shape_follows_from_the_keys(row: dict[str, object], shape: str) -> None:
    assert read(json.dumps({**row, "id": 1}).encode()).shape == shape


@pytest.mark.parametrize(
    ("line", "complaint", "hint"),
    [
        (b'{"prompt": "a", "completion": ', "line 3: not valid JSON", "one complete JSON object"),
        (b'{"prompt": "\xff", "completion": ""}', "line 3: not UTF-8: byte 0xff at byte 13", "iconv -f WINDOWS-1252"),
        (b'{"prompt": "a", "completion": "b", "x": 1e999}', "line 3: holds 1e999, which is too large", "Infinity"),
        (b'{"prompt": "a", "completion": "b", "x": {"y": 1, "y": 2}}', 'line 3: the key "y" stands twice', "once"),
        (b'{"prompt": "a", "completion": NaN}', "line 3: not valid JSON", "NaN"),
        (b'["a"]', "line 3: a JSON array where an object is expected", "one object"),
        (b"7", "line 3: a JSON number where", "one object"),
        (b"null", "line 3: a JSON null where", "one object"),
        (b'{"messages": []}', "line 3: a row with messages, but line 1 is a row with prompt and compl", "one shape"),
    ],
)
def test_a_bad_line_is_named_with_what_to_do(line: bytes, complaint: str, hint: str) -> None:
    with pytest.raises(InvalidRows) as caught:
        read(GOOD + line + b"\n" + GOOD)
    assert complaint in caught.value.message
    assert hint in caught.value.hint


def test_an_empty_line_counts_as_a_line_but_not_as_a_row() -> None:
    assert read(b"\n" + GOOD + b" \r\n" + GOOD).rows == 4
    with pytest.raises(InvalidRows, match="line 5: not valid JSON"):
        read(b"\n" + GOOD + b"\n" + b"oops\n")
    with pytest.raises(InvalidRows, match="line 5: a row with messages, but line 2 is a row with prompt"):
        read(b"\n" + GOOD + b"\n" + b'{"messages": []}\n')


def test_a_byte_order_mark_is_no_part_of_the_first_row() -> None:
    facts = read(b"\xef\xbb\xbf" + GOOD, block=1)
    assert (facts.rows, facts.bytes, facts.shape) == (2, len(GOOD) + 3, "prompt-completion")


def test_text_and_messages_do_not_mix_in_preferences() -> None:
    text = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    chat = json.dumps({"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": TURNS[1:]}).encode()
    with pytest.raises(InvalidRows, match="line 2: a row with prompt, chosen and rejected as lists of messages, but"):
        read(text + chat)


def test_text_and_messages_do_not_mix_in_completions() -> None:
    chat = json.dumps({"prompt": TURNS[:1], "completion": TURNS[1:]}).encode()
    with pytest.raises(InvalidRows, match="line 3: a row with prompt and completion as lists of messages, but line 1 "):
        read(GOOD + chat)


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"prompt": "", "completion": None}, "prompt-completion"),
        ({"prompt": "a", "completion": 1, "messages": None}, "prompt-completion"),
        ({"prompt": "a\0", "completion": "\ud800"}, "prompt-completion"),
        ({"messages": [{"from": "narrator"}, 7]}, "messages"),
        ({"messages": "none"}, "messages"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "preference"),
    ],
)
def test_what_the_fields_hold_is_left_to_the_runs(row: dict[str, object], shape: str) -> None:
    assert read(json.dumps(row).encode()).shape == shape


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n"])
def test_no_rows_are_no_dataset(content: bytes) -> None:
    with pytest.raises(InvalidRows, match="no rows"):
        read(content)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"[\n" + GOOD, "jq -c"),
        (b"PAR1\x15\x04\x15", "this is a Parquet file"),
        (GOOD.decode().encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
        (GOOD.decode().encode("utf-16-le"), "iconv -f UTF-16 -t UTF-8"),
        (GOOD.decode().encode("cp1252"), "iconv -f WINDOWS-1252 -t UTF-8"),
        (GOOD.replace(b"\n", b"\r"), "tr '\\r' '\\n'"),
        (b"prompt,completion\na,b\n", "from a table with pandas"),
    ],
)
def test_the_usual_wrong_files_are_recognised(content: bytes, hint: str) -> None:
    with pytest.raises(InvalidRows) as caught:
        read(content)
    assert caught.value.message.startswith("line 1")
    assert hint in caught.value.hint


def test_a_file_without_line_ends_is_refused_before_it_fills_the_memory() -> None:
    reader = JsonLinesReader()
    block = b"x" * (1024 * 1024)
    tracemalloc.start()
    for _ in range(MAX_LINE_BYTES // len(block)):
        reader.feed(block)
    with pytest.raises(InvalidRows, match="line 1: longer than 16 MiB"):
        reader.feed(block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * MAX_LINE_BYTES


HOSTILE = {
    "text of wide characters": lambda size: ('{"prompt": "' + "x" * (size - 24) + '\N{GRINNING FACE}"}').encode(),
    "objects": lambda size: b'{"x":[' + b"{}," * (size // 3 - 4) + b"{}]}",
    "objects with a value": lambda size: b'{"x":[' + b'{"a":1},' * (size // 8 - 2) + b"{}]}",
    "lists in objects": lambda size: b'{"x":[' + b'{"a":[]},' * (size // 9 - 2) + b"{}]}",
    "numbers": lambda size: b'{"x":[' + b"7," * (size // 2 - 8) + b"7]}",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_line_takes_no_more_memory_than_what_the_registry_has(kind: str) -> None:
    line = HOSTILE[kind](4 * 1024 * 1024)
    reader = JsonLinesReader()
    tracemalloc.start()
    try:
        with nullcontext() if kind.startswith("text") else pytest.raises(InvalidRows, match="more than 200000 values"):
            reader.feed(line + b"\n")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * len(line)


def test_commas_and_brackets_in_a_text_are_no_values() -> None:
    text = ',[{\\"' * (MAX_LINE_VALUES // 2)
    reader = JsonLinesReader()
    reader.feed(f'{{"prompt": "{text}", "completion": "c"}}\n'.encode())
    assert reader.finish().rows == 1


def test_as_many_values_as_may_be_are_taken_and_one_more_is_not() -> None:
    most = b'{"x":[' + b"7," * (MAX_LINE_VALUES - 2) + b"7]}\n"  # the object, the list, and the commas in it
    JsonLinesReader().feed(most)
    with pytest.raises(InvalidRows, match=r"line 1: has more than"):
        JsonLinesReader().feed(most.replace(b"7]", b"7,7]"))
