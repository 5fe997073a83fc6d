"""Parquet and Arrow, a few rows at a time: columns are read through small buffers, never a row group as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from io import BufferedReader
from typing import Any, BinaryIO

from model.data.decode import MAX_LINE_BYTES
from model.data.readers.base import DataFile, check_columns, damaged
from model.data.readers.lines import invalid, too_long
from model.data.records import Record

BUFFER_BYTES = 1 << 20
BATCH_BYTES = 8 << 20
MAX_BATCH_ROWS = 256
"""Few, since a dictionary's text counts once in the file's metadata and once a row in memory."""


def parquet(stream: BinaryIO, file: DataFile) -> Iterator[Record]:
    """Yield one record a row, lists and structs as Python's, without the nulls that stand for keys of other rows.

    Raises
    ------
    FailureError
        Code 3, when the file is cut off or damaged, or has a column twice.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        table = ParquetFile(stream, buffer_size=BUFFER_BYTES, pre_buffer=False)
        check_columns(file, table.schema_arrow.names)
        nested = any(pa.types.is_nested(column.type) for column in table.schema_arrow)
        for batch in table.iter_batches(_batch_rows(table.metadata), use_threads=False):
            for value in _values(batch):
                number += 1
                yield Record(number, _without_filler(value) if nested else value, file.label)
    except (pa.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the file's
        text = str(error).splitlines()[0].rstrip(". ") if str(error) else type(error).__name__
        what = "is cut off" if "magic bytes not found in footer" in text else f"is damaged ({text:.200})"
        raise damaged(file.name, number, what) from error


def arrow(stream: BufferedReader, file: DataFile) -> Iterator[Record]:
    """Yield one record a row of an Arrow file or stream, as `datasets` keeps a saved dataset, like those of Parquet.

    Raises
    ------
    FailureError
        Code 3, when the file is cut off or damaged, or has a column twice.
    """
    import pyarrow as pa

    number = 0
    try:
        opened = pa.ipc.open_file(stream) if stream.peek(6)[:6] == b"ARROW1" else pa.ipc.open_stream(stream)
        check_columns(file, opened.schema.names)
        nested = any(pa.types.is_nested(column.type) for column in opened.schema)
        batches = (
            iter(opened) if hasattr(opened, "__iter__") else map(opened.get_batch, range(opened.num_record_batches))
        )
        for batch in batches:
            for start in range(0, batch.num_rows, MAX_BATCH_ROWS):
                for value in _values(batch.slice(start, MAX_BATCH_ROWS)):
                    number += 1
                    yield Record(number, _without_filler(value) if nested else value, file.label)
    except (pa.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not the file's
        text = str(error).splitlines()[0].rstrip(". ") if str(error) else type(error).__name__
        raise damaged(file.name, number, f"is cut off or damaged ({text:.200})") from error


def _without_filler(value: Any, depth: int = 0) -> Any:
    """Return a value without the nulls within turns and tools, at any depth.

    All structs of a column have the keys of all rows: a call would have the arguments of every other tool, too.
    Nulls of a row and of its turns stay, for they say that something is missing.
    """
    if isinstance(value, dict):
        return {key: _without_filler(item, depth + 1) for key, item in value.items() if item is not None or depth < 2}
    if isinstance(value, list):
        return [_without_filler(item, depth) for item in value]
    return value


def _batch_rows(metadata: Any) -> int:
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    row_bytes = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=0)
    return max(1, min(MAX_BATCH_ROWS, BATCH_BYTES // max(row_bytes, 1)))


def _values(batch: Any) -> Iterator[Any]:
    if batch.nbytes <= MAX_LINE_BYTES:
        try:
            yield from batch.to_pylist(maps_as_pydicts="strict")
        except (ValueError, OverflowError, KeyError):
            pass
        else:
            return
    # One row is too long or cannot be told in Python's types: find it, and keep the others.
    for index in range(batch.num_rows):
        yield _value(batch.slice(index, 1))


def _value(row: Any) -> Any:
    if row.nbytes > MAX_LINE_BYTES:
        return too_long()
    try:
        return row.to_pylist(maps_as_pydicts="strict")[0]
    except (ValueError, OverflowError, KeyError) as error:
        return invalid(f"cannot be read: {error}")
