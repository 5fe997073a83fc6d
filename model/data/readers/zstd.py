"""Bytes that are compressed with zstd, as they are without it."""

from __future__ import annotations

import io
from typing import Any, BinaryIO


class ZstdError(Exception):
    """The compressed data is damaged."""


class Decompressed(io.RawIOBase):
    """The content of a compressed stream, which is read as it is needed.

    Raises
    ------
    EOFError
        When the stream ends within a frame.
    ZstdError
        When it is damaged.
    """

    def __init__(self, stream: BinaryIO) -> None:
        import pyarrow as pa

        self._source = pa.PythonFile(stream, mode="r")
        self._content: Any = pa.CompressedInputStream(self._source, "zstd")

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes, 0 at the end."""
        try:
            data = self._content.read(len(buffer))
        except OSError as error:
            if error.errno is not None:
                raise  # the disk's, not the file's
            if "Truncated" in str(error):
                raise EOFError from error
            raise ZstdError(str(error).splitlines()[0]) from error
        buffer[: len(data)] = data
        return len(data)
