"""A JSON array of rows, one element at a time from a buffer that never grows beyond one row.

No streaming parser of a library does this: after one row that is not JSON they give up the file, where the rows after
it have numbers and problems of their own; a key twice, NaN and bytes that are not UTF-8 are not told by row either.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from itertools import count
from typing import Any, BinaryIO

from model import exits
from model.data.decode import DECODER, MAX_DEPTH, MAX_LINE_BYTES, UNDECODED, check_depth, explain, not_utf8
from model.data.readers.base import DataFile, damaged
from model.data.readers.lines import invalid, too_long
from model.data.records import InvalidRowError, Record
from model.exits import FailureError

CHUNK_BYTES = 256 << 10

_SPACE = re.compile(r"[ \t\r\n]*")
_OUTSIDE = re.compile(r'["\[\]{},]')
_INSIDE = re.compile(r'"|\\.?', re.DOTALL)


def json_array(stream: BinaryIO, file: DataFile) -> Iterator[Record]:
    """Yield one record an element, numbered from 1.

    Raises
    ------
    FailureError
        Code 3, when the array is cut off or its elements are not separated by commas.
    """
    text = _Text(stream)
    text.take()  # the opening bracket, which was seen before
    if text.next() == "]":
        text.take()
    else:
        for number in count(1):
            try:
                value = _nothing() if text.next() in (",", "]") else text.value()
            except _UnfinishedError as error:
                raise _unfinished(file, number, error) from error
            yield Record(number, value, file.label)
            mark = text.take()
            if mark == "]":
                break
            if mark == "":
                raise damaged(file.name, number, "is cut off: the array has no end")
            if mark != ",":
                raise _malformed(file, number, f"is followed by {mark!r}: separate the rows with commas")
    if (rest := text.take()) == "\ufeff":
        raise FailureError(
            exits.DATASET_INVALID,
            "DatasetInvalid",
            f"{file.name} goes on with a byte order mark after the array's end, as if two files had been joined: keep "
            "them apart, or write one array",
        )
    if rest:
        raise FailureError(
            exits.DATASET_INVALID,
            "DatasetInvalid",
            f"{file.name} goes on with {rest!r} after the array's end: write one array",
        )


class _UnfinishedError(Exception):
    """The file ends within an element; `cause` is where the decoder stopped, when that was before the end."""

    def __init__(self, cause: str | None) -> None:
        super().__init__(cause)
        self.cause = cause


class _Text:
    """The file's text from the current position on, read as it is needed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        # Bytes that are not UTF-8 become lone surrogates, so that they spoil their own row only.
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._buffer = ""
        self._position = 0
        self._ended = False
        self._has_undecoded = False

    def next(self) -> str:
        """Return the next character that is no white space, nothing at the end."""
        while True:
            match = _SPACE.match(self._buffer, self._position)
            assert match is not None
            self._position = match.end()
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._more():
                return ""

    def take(self) -> str:
        """Return the next character that is no white space, and pass it."""
        character = self.next()
        self._position += len(character)
        return character

    def value(self) -> Any:
        """Decode the next element, and pass it; an `InvalidRowError` stands for one that cannot be decoded."""
        self.next()
        try:
            value, end = DECODER.raw_decode(self._buffer, self._position)
        except (ValueError, RecursionError):
            return self._whole_value()
        if self._buffer[end - 1] not in '}]"':
            return self._whole_value()  # a number may go on beyond the buffer
        return self._passed(value, end)

    def _whole_value(self) -> Any:
        """Decode the next element once all of it is in the buffer: it is malformed, or crosses the buffer's end."""
        scanner = _Scanner()
        end = scanner.feed(self._buffer, self._position)
        is_long = False
        while end < 0:
            if is_long := is_long or len(self._buffer) - self._position > MAX_LINE_BYTES:
                self._position = len(self._buffer)
            scanned = len(self._buffer) - self._position
            if not self._more():
                raise _UnfinishedError(None if is_long else self._cause())
            end = scanner.feed(self._buffer, scanned)
        if is_long or end - self._position > MAX_LINE_BYTES:
            self._position = end
            return too_long()
        start = self._position
        try:
            value, value_end = DECODER.raw_decode(self._buffer, start)
        except (ValueError, RecursionError) as error:
            value, value_end = explain(error, self._buffer[:end], start), end
        return self._passed(value, value_end)

    def _passed(self, value: Any, end: int) -> Any:
        start, self._position = self._position, end
        if self._has_undecoded and (match := UNDECODED.search(self._buffer, start, end)) is not None:
            byte = ord(match[0]) - 0xDC00
            return InvalidRowError([not_utf8(byte, f"at character {match.start() - start + 1}")])
        if self._buffer.count("[", start, end) + self._buffer.count("{", start, end) > MAX_DEPTH:
            try:
                check_depth(self._buffer[start:end])
            except ValueError as error:
                return explain(error, "")
        return value

    def _cause(self) -> str | None:
        """Say where the decoder stops in an element without end, unless it gets to the file's end."""
        try:
            DECODER.raw_decode(self._buffer, self._position)
        except json.JSONDecodeError as error:
            if error.pos < len(self._buffer.rstrip()) and not error.msg.startswith("Unterminated"):
                return f"{error.msg} at character {error.pos - self._position + 1}"
        except (ValueError, RecursionError) as error:
            return str(error)
        return None

    def _more(self) -> bool:
        """Read on; what was passed is forgotten. False at the end."""
        if self._ended:
            return False
        data = self._stream.read(CHUNK_BYTES)
        self._ended = not data
        text = self._decoder.decode(data, final=self._ended)
        self._has_undecoded = self._has_undecoded or UNDECODED.search(text) is not None
        self._buffer = self._buffer[self._position :] + text
        self._position = 0
        return bool(text) or not self._ended


class _Scanner:
    """Finds the comma or bracket that ends an element, whether or not the element is well formed."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._in_string = False
        self._escaped = False

    def feed(self, text: str, position: int) -> int:
        """Go on at a position, and return where the element ends, -1 when not in this text."""
        if self._escaped and position < len(text):
            position += 1
            self._escaped = False
        while (match := (_INSIDE if self._in_string else _OUTSIDE).search(text, position)) is not None:
            mark = match[0]
            if mark in ",]" and not self._open and not self._in_string:
                return match.start()
            position = match.end()
            if mark == '"':
                self._in_string = not self._in_string
            elif self._in_string:
                self._escaped = mark == "\\"  # the text's last character: what it escapes comes next
            elif mark in "[{":
                self._open.append("]" if mark == "[" else "}")
            elif self._open and mark == self._open[-1]:  # a bracket that closes nothing is passed over
                self._open.pop()
        return -1


def _nothing() -> InvalidRowError:
    """Return what stands for an element that is not there: one for each, as an exception keeps who raised it."""
    return invalid("is missing: leave out the comma before it", "notJson")


def _unfinished(file: DataFile, number: int, error: _UnfinishedError) -> FailureError:
    if error.cause is None:
        return damaged(file.name, number - 1, "is cut off")
    return _malformed(file, number, f"is not valid JSON, nor can the rows after it be read: {error.cause}")


def _malformed(file: DataFile, number: int, text: str) -> FailureError:
    return FailureError(exits.DATASET_INVALID, "DatasetInvalid", f"{file.name} row {number} {text}", row=number)
