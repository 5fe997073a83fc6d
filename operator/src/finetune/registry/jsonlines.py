"""Check and measure JSON lines while they stream past, in constant memory.

Refused is what is not one JSON object a line, all of one shape: see `strictjson` and `shapes`. What the rows hold is
checked by a run's export. A byte order mark and blank lines are let pass, as there; blank lines count as lines.

    reader = JsonLinesReader()
    for block in blocks:
        reader.feed(block)
    facts = reader.finish()

`feed` and `finish` raise `InvalidRows` naming the line. Nothing is changed: what was fed are the rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from finetune.api.registry import Shape

from .errors import InvalidRows
from .shapes import Form, form_of
from .strictjson import decode, has_more_values

MAX_LINE_BYTES = 16 * 1024 * 1024
"""As in a run's export. Parsing a line takes up to ten times its length of memory, if its values are few; of many small
ones it would be thirty times."""
MAX_LINE_VALUES = 200_000
"""Lists, objects, and what stands in them."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FROM_A_TABLE = "pandas: to_json(orient='records', lines=True)"
_OTHER_FILES = (
    (b"[", "this looks like a JSON array: write one object a line instead (jq -c '.[]' file.json)"),
    (b"\x1f\x8b", "this is a gzip file: decompress it first"),
    (b"PAR1", f"this is a Parquet file: write its rows as JSON lines (with {_FROM_A_TABLE})"),
    (b"\xff\xfe", "this is UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`"),
    (b"\xfe\xff", "this is UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`"),
)


@dataclass(frozen=True, kw_only=True)
class RowFacts:
    """What is known about a dataset's content once all of it was seen."""

    rows: int
    bytes: int
    sha256: str
    shape: Shape


class JsonLinesReader:
    """Reads blocks of bytes that may end anywhere, also in the middle of a character."""

    def __init__(self, *, line_bytes: int = MAX_LINE_BYTES, line_values: int = MAX_LINE_VALUES) -> None:
        self._line_bytes, self._line_values = line_bytes, line_values
        self._digest = hashlib.sha256()
        self._bytes = 0
        self._line = 0
        self._rows = 0
        self._first_row = 0
        self._form: Form | None = None
        self._rest = bytearray()

    def feed(self, block: bytes) -> None:
        """Take the next bytes. Raises `InvalidRows`."""
        self._digest.update(block)
        self._bytes += len(block)
        end = block.rfind(b"\n")
        if end < 0:
            self._rest += block
        else:
            self._rest += block[:end]
            for line in bytes(self._rest).split(b"\n"):
                self._take(line)
            self._rest = bytearray(block[end + 1 :])
        if len(self._rest) > self._line_bytes:
            raise self._too_long(self._line + 1)

    def finish(self) -> RowFacts:
        """Take the last line, which may lack its newline. Raises `InvalidRows`, also for no rows at all."""
        if self._rest:
            self._take(bytes(self._rest))
            self._rest.clear()
        if self._form is None:
            raise InvalidRows(
                "the dataset has no rows",
                hint="send JSON lines: one JSON object a line, like "
                '{"prompt": "...", "completion": "..."}; is the file empty?',
            )
        return RowFacts(rows=self._rows, bytes=self._bytes, sha256=self._digest.hexdigest(), shape=self._form.shape)

    def _take(self, line: bytes) -> None:
        self._line += 1
        number = self._line
        if len(line) > self._line_bytes:
            raise self._too_long(number)
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line.strip():
            return
        row = self._parse(line, number)
        form = form_of(row)
        if self._form is None:
            self._form, self._first_row = form, number
        elif form != self._form:
            raise InvalidRows(
                f"line {number}: {form.words}, but line {self._first_row} is {self._form.words}",
                hint="all rows of a dataset have one shape: split the file, or add the missing keys",
            )
        self._rows += 1

    def _parse(self, line: bytes, number: int) -> dict[str, Any]:
        if has_more_values(line, self._line_values):
            raise InvalidRows(
                f"line {number}: has more than {self._line_values} values",
                hint="one row is one example: is this a whole dataset in one object, or a table of numbers?",
            )
        try:
            row = decode(line)
        except ValueError as error:
            raise InvalidRows(f"line {number}: {error}", hint=_json_hint(line, number)) from None
        if not isinstance(row, dict):
            raise InvalidRows(
                f"line {number}: a JSON {_type_name(row)} where an object is expected",
                hint='every line is one object, like {"prompt": "...", "completion": "..."}',
            )
        return row

    def _too_long(self, number: int) -> InvalidRows:
        return InvalidRows(
            f"line {number}: longer than {self._line_bytes / 1024 / 1024:g} MiB",
            hint="one row is one line; is this a JSON array, or a file without line ends? An administrator can raise "
            "the registry's --max-line-bytes",
        )


def _json_hint(line: bytes, number: int) -> str:
    if number == 1:
        start = line.lstrip()
        for beginning, hint in _OTHER_FILES:
            if start.startswith(beginning):
                return hint
        if b"\0" in start[:8]:
            return "this is binary, or UTF-16 text: convert text with `iconv -f UTF-16 -t UTF-8`"
        if not start.startswith(b"{"):
            return f"this is no JSON: write one object a line (from a table with {_FROM_A_TABLE})"
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return "store the file as UTF-8, for example with `iconv -f WINDOWS-1252 -t UTF-8`"
    if b"}\r{" in line:
        return r"end each row with a line feed: convert the file with `tr '\r' '\n'`"
    return "every line is one complete JSON object, in UTF-8, without NaN or Infinity, each key once"


def _type_name(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return names.get(type(value), "null")
