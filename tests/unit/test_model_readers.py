"""Every file format: its rows, their numbers, what is wrong with a row, and what is wrong with the file."""

from __future__ import annotations

import gzip
import io
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model.data.readers import MAX_LINE_BYTES, DataFile, read
from model.data.records import InvalidRowError, Record
from model.exits import FailureError

ROWS = [{"prompt": f"p{number} \u00e9\U0001f642", "completion": f"c{number}"} for number in range(1, 6)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS, ensure_ascii=False, indent=1).encode()
CSV = ("prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in ROWS)).encode()

TO_UTF8 = ": store the file as UTF-8, for example with `iconv -f WINDOWS-1252 -t UTF-8`"
QUOTES = ": close each quote, and double those within a field"


def packed(content: bytes) -> bytes:
    """Compress without the time, so that the tests have the same names in every process."""
    return gzip.compress(content, mtime=0)


def parquet(rows: list[dict[str, Any]] | None = None, **options: Any) -> bytes:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    sink = io.BytesIO()
    write_table(pa.Table.from_pylist(ROWS if rows is None else rows), sink, **options)
    return sink.getvalue()


def records(name: str, content: bytes) -> list[Record]:
    return list(read(DataFile(name, lambda: io.BytesIO(content))))


def outcome(found: list[Record]) -> list[tuple[int, Any]]:
    """Row numbers with the value, or with the text of what is wrong."""
    return [(r.number, str(r.value) if isinstance(r.value, InvalidRowError) else r.value) for r in found]


def refusal(name: str, content: bytes) -> str:
    with pytest.raises(FailureError) as caught:
        records(name, content)
    assert (caught.value.code, caught.value.reason) == (3, "DatasetInvalid")
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.ndjson", LINES),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES),
        ("a.jsonl.gz", packed(LINES)),
        ("a.json", LINES),
        ("a.json", ARRAY),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", b"\xef\xbb\xbf\n " + ARRAY + b"\n \n"),
        ("a.json.gz", packed(ARRAY)),
        ("a.csv", CSV),
        ("a.csv", b"\xef\xbb\xbf" + CSV.replace(b"\n", b"\r\n")),
        ("a.csv", CSV.replace(b",", b";")),
        ("a.tsv", CSV.replace(b",", b"\t")),
        ("A.CSV.gz", packed(CSV)),
        ("key", LINES),
        ("key", ARRAY),
        ("key", CSV),
        ("key", packed(LINES)),
        ("key.txt", CSV.replace(b",", b"\t")),
    ],
)
def test_each_format_gives_the_same_rows(name: str, content: bytes) -> None:
    assert outcome(records(name, content)) == list(enumerate(ROWS, start=1))


def test_parquet_gives_the_same_rows() -> None:
    assert outcome(records("a.parquet", parquet())) == list(enumerate(ROWS, start=1))
    assert outcome(records("key", parquet(row_group_size=2))) == list(enumerate(ROWS, start=1))


def test_parquet_gives_lists_and_structs() -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}, {"messages": []}]
    assert [record.value for record in records("a.parquet", parquet(rows))] == rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a", "a.jsonl.gz"])
def test_an_empty_file_has_no_rows(name: str) -> None:
    content = packed(b"") if name.endswith(".gz") else b""
    assert records(name, content) == []


def test_the_deepest_row_that_is_read() -> None:
    rows = [b'{"a": ' + b"[" * depth + b"]" * depth + b"}" for depth in (99, 100)]
    (_, first), (_, second) = outcome(records("a.jsonl", b"\n".join(rows)))
    assert list(first) == ["a"]
    assert second == "nests lists and objects more than 100 deep"


def test_what_stands_in_quotes_separates_no_columns() -> None:
    content = b'"question, in full";"answer, or \t none"\n"a;b";c\n'
    assert outcome(records("a.csv", content)) == [(1, {"question, in full": "a;b", "answer, or \t none": "c"})]


@pytest.mark.parametrize("content", [b"[]", b" [ ] \n", b"prompt,completion\n"])
def test_a_file_without_rows(content: bytes) -> None:
    assert records("a.csv" if b"," in content else "a.json", content) == []


def test_json_lines_name_the_line_as_a_person_counts() -> None:
    content = b'\n{"a": 1}\n\n{"a": \n{"a": 2}\n{"a": "\xff"}\n[1]'
    assert outcome(records("a.jsonl", content)) == [
        (2, {"a": 1}),
        (4, "not valid JSON: Expecting value at character 8"),
        (5, {"a": 2}),
        (6, f"not UTF-8: byte 0xff at byte 8{TO_UTF8}"),
        (7, [1]),
    ]


def test_a_malformed_element_spoils_only_its_own_row() -> None:
    content = b'[{"a": 1},\n {"a": 2, "b"},\n {"a": "x]\\"},{"}, nonsense, {"a": "\xff"}, 7, {"a": 3}]'
    assert outcome(records("a.json", content)) == [
        (1, {"a": 1}),
        (2, "not valid JSON: Expecting ':' delimiter at character 13"),
        (3, {"a": 'x]"},{'}),
        (4, "not valid JSON: Expecting value at character 1: an object goes from { to }"),
        (5, f"not UTF-8: byte 0xff at character 8{TO_UTF8}"),
        (6, 7),
        (7, {"a": 3}),
    ]


def test_a_missing_element_keeps_nothing_of_the_others() -> None:
    first, second, _ = (record.value for record in records("a.json", b"[,,]"))
    assert first is not second
    assert str(first) == "is missing: leave out the comma before it"


def test_an_element_that_nests_too_deep() -> None:
    deep = b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}"
    deeper = b"[" * 100_000 + b"]" * 100_000
    found = outcome(records("a.json", b"[" + b'{"a": 1},' + deep + b"," + deeper + b',{"a": 2}]'))
    assert [number for number, value in found if "100 deep" in str(value)] == [2, 3]
    assert found[3] == (4, {"a": 2})


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_where_an_array_is_cut_into_chunks_does_not_matter(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.data.readers.json_array.CHUNK_BYTES", chunk)
    content = (
        '[{"a": "\u00e9\\\\\\"]},"}, 12, -3.5e2, {"b": [1, {"c": "}"}]}, "x, y", {"bad": ]}, {"a": \x00}, true, {}]'
    )
    assert outcome(records("a.json", content.encode())) == [
        (1, {"a": '\u00e9\\"]},'}),
        (2, 12),
        (3, -350.0),
        (4, {"b": [1, {"c": "}"}]}),
        (5, "x, y"),
        (6, "not valid JSON: Expecting value at character 9"),
        (7, "not valid JSON: Expecting value at character 7"),
        (8, True),
        (9, {}),
    ]


def test_csv_rows_are_records_whatever_lines_they_take() -> None:
    content = b'prompt,completion\n"two\nlines, one ""field""",c1\n\nx\n"a"b,c\np4,"\xff"\np5,c5\n"open,c6\np7,c7\n'
    assert outcome(records("a.csv", content)) == [
        (1, {"prompt": 'two\nlines, one "field"', "completion": "c1"}),
        (2, "has 1 field, but the header names 2: write empty ones, too"),
        (3, f"not valid CSV: ',' expected after '\"'{QUOTES}"),
        (4, f"not UTF-8: byte 0xff in completion{TO_UTF8}"),
        (5, {"prompt": "p5", "completion": "c5"}),
        (6, f"not valid CSV: unexpected end of data{QUOTES}"),
    ]


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_csv_fields_may_be_separated_otherwise(mark: str) -> None:
    content = f'prompt{mark}"a, b; c|d"\n"x{mark}y"{mark}z\n'.encode()
    assert outcome(records("a.csv", content)) == [(1, {"prompt": f"x{mark}y", "a, b; c|d": "z"})]


def test_a_quote_that_is_left_open_does_not_swallow_the_file() -> None:
    line = b"x" * (1 << 20) + b"\n"
    found = outcome(records("a.csv", b'a\n1\n"' + 16 * line + b"y\n3\n"))
    assert found[0] == (1, {"a": "1"})
    assert found[1] == (2, "is longer than 16 MiB: is a quote left open?")
    assert found[-1][1] == {"a": "3"}


def long_line() -> bytes:
    return b'{"a": "' + b"x" * MAX_LINE_BYTES + b'"}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lambda: b'{"a": "1"}\n' + long_line() + b'\n{"a": "3"}\n'),
        ("a.json", lambda: b'[{"a": "1"},' + long_line() + b',{"a": "3"}]'),
        ("a.csv", lambda: b"a\n1\n" + b"x" * (MAX_LINE_BYTES + 9) + b"\n3\n"),
        ("a.parquet", lambda: parquet([{"a": "1"}, {"a": "x" * MAX_LINE_BYTES}, {"a": "3"}])),
    ],
)
def test_a_row_that_is_too_long_is_one_invalid_row(name: str, content: Callable[[], bytes]) -> None:
    found = outcome(records(name, content()))
    assert found[0] == (1, {"a": "1"})
    assert "is longer than 16 MiB" in found[1][1]
    assert records(name, content())[1].value.problems[0].kind == "tooLong"
    assert (3, {"a": "3"}) in found
    assert sum("longer" in str(value) for _, value in found) == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", ARRAY, "a.jsonl holds a JSON array, not JSON lines: name it .json, or write one object a line"),
        ("a.jsonl", json.dumps(ROWS).encode(), "holds a JSON array, not JSON lines"),
        ("a.jsonl", CSV, "a.jsonl holds CSV, not JSON lines: name it .csv"),
        ("a.jsonl", json.dumps(ROWS[0], indent=2).encode(), "holds a JSON object over several lines: write one object"),
        ("a.json", json.dumps({"data": ROWS}, indent=2).encode(), "a JSON object over several lines: write an array"),
        ("a.json", CSV, "a.json is not JSON: it begins with 'prompt,completion': name it .csv"),
        ("a.csv", LINES, "a.csv holds JSON lines, not CSV: name it .jsonl"),
        ("a.csv", ARRAY, "a.csv holds a JSON array, not CSV"),
        ("a.jsonl", LINES.decode().encode("utf-16"), "a.jsonl is UTF-16 text: convert it with `iconv -f UTF-16"),
        ("a.csv", CSV.decode().encode("utf-16-le"), "a.csv is UTF-16 text"),
        ("a.json", ARRAY.decode().encode("utf-32"), "a.json is UTF-32 text"),
        ("a.jsonl", packed(LINES), "a.jsonl is compressed with gzip: name it a.jsonl.gz, or decompress it"),
        ("a.jsonl.gz", LINES, "a.jsonl.gz is not gzip although its name says so: it begins with '{\"prompt\""),
        ("a.jsonl.gz", packed(ARRAY), "a.jsonl.gz holds a JSON array, not JSON lines"),
        ("a.jsonl", b"BZh91AY", "is compressed with bzip2: decompress it"),
        ("a.csv", b"PK\x03\x04...", "is a ZIP archive or an Excel workbook: unpack it, or save it as CSV"),
        ("a.jsonl", b"\x7fELF\x02\x01\x00\x00", "is binary data"),
        ("a.jsonl", b"\n<!DOCTYPE html><html>", "is an HTML page, probably an error or login page in place of the"),
        ("a.csv", b"<?xml version='1.0'?><Error>", "is XML or HTML, perhaps an error message"),
        ("a.parquet", b"<html>", "a.parquet is an HTML page"),
        ("a.parquet", b"", "a.parquet is no Parquet file: it is empty: copy it again"),
        ("a.parquet", LINES, "a.parquet is no Parquet file: it begins with"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\no", "is a Git LFS pointer, not the file"),
        ("a.parquet", packed(b"PAR1"), "is compressed with gzip as a whole: decompress it"),
        ("a.jsonl", b"PAR1" + bytes(40), "a.jsonl holds Parquet, not JSON lines: name it .parquet"),
        ("notes", b"These are my notes\n", "begins with 'These are my notes', and its name says no format: name it"),
        ("a.csv", b"a,b,a\n1,2,3\n", "has the column 'a' more than once: name each column once"),
        ("a.json", b'[{"a": 1} {"a": 2}]', "a.json row 1 is followed by '{': separate the rows with commas"),
        ("a.json", b'\x0c[{"a": 1}]', "a.json is not JSON: it begins with '\\x0c[{"),
        ("a.json", b'[{"a": 1}] []', "goes on with '[' after the array's end"),
    ],
)  # fmt: skip
def test_a_file_that_is_something_else_is_one_clear_error(name: str, content: bytes, said: str) -> None:
    assert said in refusal(name, content)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'[{"a": 1}, {"a": "tw', "a.json is cut off after row 1; copy it again"),
        ("a.json", b'[{"a": 1}, {"a": 2}', "a.json is cut off: the array has no end after row 2"),
        ("a.json", b"[", "a.json is cut off; copy it again"),
        ("a.json", b'[{"a": 1}, {"a": {"b" 2}, {"c": 3}]', "a.json row 2 is not valid JSON, nor can the rows after it"),
        ("a.jsonl.gz", packed(LINES)[:-12], "a.jsonl.gz is cut off: the compressed data ends too early"),
        ("a.jsonl.gz", packed(LINES)[:-8] + bytes(8), "a.jsonl.gz is damaged: CRC check failed"),
        ("a.jsonl.gz", packed(LINES)[:10] + b"\xff" * 40, "a.jsonl.gz is damaged: Error -3"),
    ],
)
def test_a_file_that_is_cut_off_or_damaged_says_after_which_row(name: str, content: bytes, said: str) -> None:
    assert said in refusal(name, content)


def test_a_truncated_parquet_file() -> None:
    assert refusal("a.parquet", parquet()[:-100]) == "a.parquet is cut off; copy it again"


def test_a_parquet_file_damaged_in_its_middle() -> None:
    rows = [{"text": f"{number} " + "text " * 50} for number in range(2000)]
    content = bytearray(parquet(rows, row_group_size=500, use_dictionary=False, compression="zstd"))
    middle = len(content) * 3 // 5
    content[middle : middle + 200] = b"\xff" * 200
    message = refusal("a.parquet", bytes(content))
    assert message.startswith("a.parquet is damaged (")
    assert 1000 <= int(message.split("after row ")[1].removesuffix("; copy it again")) < 1500


def numbers_or_failure(name: str, content: bytes) -> tuple[list[int], FailureError | None]:
    numbers: list[int] = []
    try:
        numbers.extend(record.number for record in read(DataFile(name, lambda: io.BytesIO(content))))
    except FailureError as error:
        return numbers, error
    return numbers, None


def test_fuzzed_files_never_crash() -> None:
    """Bytes changed, removed and repeated at random: rows, invalid rows or one error for the file, nothing else."""
    chance = random.Random(7)
    originals = {
        "a.jsonl": LINES,
        "a.json": ARRAY,
        "a.csv": CSV,
        "a.jsonl.gz": packed(LINES),
        "a.parquet": parquet(compression="none"),
    }
    for name, original in originals.items():
        for _ in range(150):
            content = bytearray(original)
            for _ in range(chance.randint(1, 4)):
                at = chance.randrange(len(content))
                match chance.randrange(3):
                    case 0:
                        content[at] = chance.randrange(256)
                    case 1:
                        del content[at : at + chance.randint(1, 30)]
                    case 2:
                        content[at:at] = content[at : at + chance.randint(1, 30)]
                if not content:
                    break
            numbers, failure = numbers_or_failure(name, bytes(content))
            assert numbers == sorted(set(numbers))
            assert failure is None or (failure.code == 3 and name in failure.message)


def endless(unit: bytes, start: bytes = b"", size: int = 24 << 20) -> Iterator[bytes]:
    yield start
    for _ in range(size // len(unit)):
        yield unit


class Pipe(io.RawIOBase):
    """A file whose content is made while it is read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = next(self._pieces, b"") or next(self._pieces, b"")
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


@pytest.mark.parametrize(
    ("name", "start", "unit"),
    [
        ("a.jsonl", b"", b'{"prompt": "' + b"x" * 100_000 + b'"}\n'),
        ("a.json", b'[{"a": 1}', b',{"prompt": "' + b"x" * 100_000 + b'"}'),
        ("a.csv", b"prompt,completion\n", b"c," + b"x" * 100_000 + b"\n"),
    ],
)
def test_memory_does_not_grow_with_the_file(name: str, start: bytes, unit: bytes) -> None:
    tracemalloc.start()
    try:
        count = 0
        with pytest.raises(FailureError) if name == "a.json" else io.BytesIO():  # the array has no end
            for _ in read(DataFile(name, lambda: Pipe(endless(unit, start)))):  # type: ignore[arg-type, return-value]
                count += 1
        assert count >= 240
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


class Counted(io.FileIO):
    """A file that counts what was read of it."""

    taken = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else size) or b""
        Counted.taken += len(data)
        return data


def test_a_parquet_file_of_one_row_group_is_not_held_as_a_whole(tmp_path: Path) -> None:
    chance = random.Random(3)
    path = tmp_path / "a.parquet"
    rows = [{"text": chance.randbytes(4_000).hex()} for _ in range(4_000)]
    path.write_bytes(parquet(rows, compression="none", use_dictionary=False))
    del rows
    size = path.stat().st_size
    taken = []
    for _ in read(DataFile("a.parquet", lambda: Counted(path))):  # type: ignore[arg-type, return-value]
        taken.append(Counted.taken)  # noqa: PERF401 - what was taken at this moment
    assert taken[0] < size / 2  # a first row needs no more than the pages around it
    assert taken[2000] < size * 3 / 4
    assert size * 0.9 < taken[-1] < size * 1.2  # nor is anything read twice
