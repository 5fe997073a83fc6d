"""One data file: its format by name and content, and one clear error when it is something else."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from model.data.readers import sniff
from model.data.readers.base import DataFile, damaged, refusal
from model.data.readers.csv_table import csv_table
from model.data.readers.json_array import json_array
from model.data.readers.lines import bounded_lines, json_lines
from model.data.readers.parquet import arrow, parquet
from model.data.readers.zstd import Decompressed, ZstdError
from model.data.records import Record

HEAD_BYTES = 1 << 20
"""What the format is told by."""

EXTENSIONS: dict[str, sniff.Format] = {
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON array",
    ".csv": "CSV",
    ".tsv": "CSV",
    ".parquet": "Parquet",
    ".arrow": "Arrow",
    ".feather": "Arrow",
}
_REMEDIES: dict[sniff.Format, str] = {
    "JSON lines": "name it .jsonl",
    "JSON array": "name it .json, or write one object a line",
    "CSV": "name it .csv",
    "Parquet": "name it .parquet",
    "Arrow": "name it .arrow",
}


def has_data_extension(name: str) -> bool:
    """Tell whether a file's name says that it holds rows."""
    return _extension(name) in EXTENSIONS


def bare_name(name: str) -> str:
    """Return a file's name in lower case, without the end that says how it is compressed."""
    name = name.lower()
    ends = (end for _, ends in sniff.COMPRESSIONS.values() for end in ends)
    return next((name.removesuffix(end) for end in ends if name.endswith(end)), name)


def read(file: DataFile) -> Iterator[Record]:
    """Yield the file's rows.

    Raises
    ------
    FailureError
        Code 3, when the file as a whole is not what its name says, or is damaged or cut off.
    """
    number = 0
    with ExitStack() as stack:
        try:
            for record in _records(file, stack):
                number = record.number
                yield record
        except EOFError as error:
            raise damaged(file.name, number, "is cut off: the compressed data ends too early") from error
        except (gzip.BadGzipFile, zlib.error, ZstdError) as error:
            raise damaged(file.name, number, f"is damaged: {error}") from error


def _records(file: DataFile, stack: ExitStack) -> Iterator[Record]:
    raw = stack.enter_context(file.open())
    stream = _buffered(raw, file.buffer_bytes)
    head = stream.peek()[:HEAD_BYTES]
    wanted = EXTENSIONS.get(_extension(file.name))
    for method, (magic, ends) in sniff.COMPRESSIONS.items():
        if head.startswith(magic):
            stream = _decompressed(file.name, wanted, stream, method)
            head = stream.peek()[:HEAD_BYTES]
            break
        if file.name.lower().endswith(ends):
            what = f"is not {method} although its name says so{_found(head)}"
            raise refusal(file.name, what, "name it after what it is")
    form = _format(file.name, wanted, head)
    if form == "JSON lines":
        return json_lines(bounded_lines(stream), file.label)
    if form == "CSV":
        return csv_table(stream, file)
    if form == "JSON array":
        return json_array(stream, file)
    if form == "Arrow":
        return arrow(stream, file)
    return parquet(cast(BinaryIO, stream.detach()), file)  # it has buffers of its own, one for each column


def _decompressed(name: str, wanted: sniff.Format | None, stream: BinaryIO, method: str) -> io.BufferedReader:
    ends = sniff.COMPRESSIONS[method][1]
    if wanted in ("Parquet", "Arrow"):
        raise refusal(name, f"is compressed with {method} as a whole", f"decompress it: {wanted} compresses by itself")
    if wanted is not None and not name.lower().endswith(ends):
        bare = PurePosixPath(name).name
        raise refusal(name, f"is compressed with {method}", f"name it {bare}{ends[0]}, or decompress it")
    if method == "gzip":
        return _buffered(gzip.GzipFile(fileobj=stream, mode="rb"), HEAD_BYTES)
    return _buffered(cast(BinaryIO, Decompressed(stream)), HEAD_BYTES)


def _buffered(stream: BinaryIO | gzip.GzipFile, size: int) -> io.BufferedReader:
    return io.BufferedReader(cast(io.RawIOBase, stream), size)


def _format(name: str, wanted: sniff.Format | None, head: bytes) -> sniff.Format:
    """Return the format to read the file as: the one that its name says, unless its content says another."""
    if (found := sniff.foreign(head)) is not None:
        raise refusal(name, f"is {found[0]}", found[1])
    seen = _binary_format(head) or sniff.text_format(head)
    if wanted in ("Parquet", "Arrow") and seen != wanted:
        raise refusal(name, f"is no {wanted} file{_found(head)}", "copy it again, or name it after what it is")
    if wanted is None:
        if seen is None and head.strip():
            what = f"begins with {_start(head)}, and its name says no format"
            raise refusal(name, what, "name it .jsonl, .json, .csv or .parquet")
        return seen or "JSON lines"
    if wanted == "JSON array":
        return _json_format(name, seen, head)
    certain = seen not in (None, wanted) and (seen != "JSON lines" or sniff.is_json_object(head))
    if certain:
        assert seen is not None
        raise refusal(name, f"holds {_words(seen)}, not {_words(wanted)}", _REMEDIES[seen])
    if wanted == "JSON lines" and sniff.is_pretty_object(head):
        raise refusal(name, "holds a JSON object over several lines", "write one object a line")
    return wanted


def _binary_format(head: bytes) -> sniff.Format | None:
    if head.startswith(sniff.PARQUET):
        return "Parquet"
    return "Arrow" if head.startswith(sniff.ARROW) else None


def _json_format(name: str, seen: sniff.Format | None, head: bytes) -> sniff.Format:
    """Return how to read a .json file: as an array, or as the lines that many tools write under this name."""
    start = sniff.text_start(head)
    if start.startswith(b"[") or not start:
        return "JSON array" if start else "JSON lines"
    if sniff.is_pretty_object(head):
        raise refusal(name, "holds a JSON object over several lines", "write an array of rows, or one object a line")
    if start.startswith(b"{"):
        return "JSON lines"
    remedy = _REMEDIES[seen] if seen else "write an array of rows, or one object a line"
    raise refusal(name, f"is not JSON: it begins with {_start(head)}", remedy)


def _extension(name: str) -> str:
    return PurePosixPath(bare_name(name)).suffix


def _words(form: sniff.Format) -> str:
    return f"a {form}" if form == "JSON array" else form


def _found(head: bytes) -> str:
    if not head:
        return ": it is empty"
    found = sniff.foreign(head)
    return f": it is {found[0]}" if found else f": it begins with {_start(head)}"


def _start(head: bytes) -> str:
    line, _, _ = sniff.text_start(head)[:200].partition(b"\n")
    return repr(line.decode("utf-8", "replace").rstrip("\r")[:40])
