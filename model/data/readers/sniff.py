"""What a file is by its first bytes: the format to read it as, or why it is none that can be read."""

from __future__ import annotations

import json
import re
from typing import Literal

Format = Literal["JSON lines", "JSON array", "CSV", "Parquet", "Arrow"]

COMPRESSIONS = {"gzip": (b"\x1f\x8b", (".gz",)), "zstd": (b"\x28\xb5\x2f\xfd", (".zst", ".zstd"))}
"""How a file may be compressed as a whole: its first bytes, and the ends of its name."""

ARROW = (b"ARROW1", b"\xff\xff\xff\xff")
"""How a file and a stream of Arrow begin."""

PARQUET = b"PAR1"

_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"\xff\xfe\x00\x00", "UTF-32 text", "convert it with `iconv -f UTF-32 -t UTF-8`"),
    (b"\x00\x00\xfe\xff", "UTF-32 text", "convert it with `iconv -f UTF-32 -t UTF-8`"),
    (b"\xff\xfe", "UTF-16 text", "convert it with `iconv -f UTF-16 -t UTF-8`"),
    (b"\xfe\xff", "UTF-16 text", "convert it with `iconv -f UTF-16 -t UTF-8`"),
    (b"PARE", "an encrypted Parquet file", "store it without encryption"),
    (b"Obj\x01", "an Avro file", "store it as Parquet or JSON lines"),
    (b"BZh", "compressed with bzip2", "decompress it, or compress it with gzip or zstd"),
    (b"\xfd7zXZ\x00", "compressed with xz", "decompress it, or compress it with gzip or zstd"),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook", "unpack it, or save it as CSV"),
    (b"SQLite format 3\x00", "an SQLite database", "use the sql source"),
    (b"\x80\x04\x95", "a Python pickle", "store it as JSON lines"),
    (b"version https://git-lfs.github.com/", "a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`"),
)
_UTF16_PAIRS = (re.compile(rb"(?:[\x09-\x7e]\x00){4}"), re.compile(rb"(?:\x00[\x09-\x7e]){4}"))
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_ARRAY_START = re.compile(rb"\[\s*(?:\{|\Z)|\[\s*\]|\[[ \t]*\r?\n")
_PRETTY_OBJECT = re.compile(rb"\{[ \t]*\r?\n\s*\"")
_QUOTED = re.compile(r'"[^"]*"')
SEPARATOR_LINE = re.compile(r"\"?sep=(.)\"?\s*")
"""A first line in which a spreadsheet says what separates the fields, before the header."""

_HEADER_CELL = re.compile(r'\s*"?[\w .#/-]*"?\s*')


def foreign(head: bytes) -> tuple[str, str] | None:
    """Return what the bytes are and what to do about it, when they are nothing that could hold rows."""
    for magic, what, remedy in _MAGIC:
        if head.startswith(magic):
            return what, remedy
    if any(pattern.match(head) for pattern in _UTF16_PAIRS):
        return "UTF-16 text", "convert it with `iconv -f UTF-16 -t UTF-8`"
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it"
    if not head.startswith((PARQUET, *ARROW)) and len(_CONTROL.findall(head[:4096])) * 20 > len(head[:4096]):
        if any(map(_is_text_in, ("utf-16-le", "utf-16-be"), [head[:4096]] * 2)):
            return "UTF-16 text", "convert it with `iconv -f UTF-16 -t UTF-8`"
        return "binary data", "store the rows as JSON lines, a JSON array, CSV or Parquet"
    start = text_start(head)[:512].lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page, probably an error or login page in place of the data", "check where it was fetched from"
    if start.startswith(b"<"):
        return "XML or HTML, perhaps an error message in place of the data", "check where it was fetched from"
    return None


def _is_text_in(encoding: str, head: bytes) -> bool:
    """Whether bytes are text in an encoding of two bytes a character; of other bytes some are none."""
    text = head[: len(head) & ~1].decode(encoding, "replace").replace("\r", "").replace("\n", "").replace("\t", "")
    return bool(text) and text.isprintable() and "\ufffd" not in text


def text_format(head: bytes) -> Format | None:
    """Return the text format that the bytes look like; None when nothing speaks for one."""
    start = text_start(head)
    if _ARRAY_START.match(start):
        return "JSON array"
    if start.startswith(b"{"):
        return "JSON lines"
    return "CSV" if _looks_like_csv(start) else None


def is_pretty_object(head: bytes) -> bool:
    """Tell whether the file holds one JSON object over several lines."""
    return bool(_PRETTY_OBJECT.match(text_start(head)))


def is_json_object(head: bytes) -> bool:
    """Tell whether the first line is a whole JSON object."""
    return _is_json(text_start(head).split(b"\n", 1)[0])


def text_start(head: bytes) -> bytes:
    """Return the bytes without byte order mark and leading white space."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")


def delimiter(header: str) -> str:
    """Return what separates the fields of a CSV file's first line; what stands in quotes separates nothing."""
    if named := SEPARATOR_LINE.fullmatch(header):
        return named[1]
    bare = _QUOTED.sub("", header)
    return max((",", "\t", ";", "|"), key=bare.count)


def _looks_like_csv(start: bytes) -> bool:
    """Several plain names in the first line, and a second line that is no JSON either."""
    lines = start.split(b"\n", 2)
    if SEPARATOR_LINE.fullmatch(lines[0].decode("utf-8", "replace")):
        return True
    header = lines[0].decode("utf-8", "replace")
    cells = header.split(delimiter(header))
    if len(cells) < 2 or not all(_HEADER_CELL.fullmatch(cell) for cell in cells):
        return False
    return len(lines) < 2 or not _is_json(lines[1])


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
