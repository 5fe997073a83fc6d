"""The files of training rows and of held-out rows: written under temporary names, dealt out by the split."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from model.data.formats import Content
from model.data.records import Record, printable
from model.data.split import SmallestHashes, percent_threshold
from model.files import RunDirectory, fsync_path

_BUFFER_BYTES = 1 << 20


class RowFiles:
    """The two files under their temporary names, and which row goes into which.

    With a share to hold out, each row's own hash decides at once. With a number of rows to hold out, that
    depends on all rows: they are first written to one file and dealt out afterwards.

    Parameters
    ----------
    percent
        Share of the rows to hold out.
    max_rows
        Number of rows to hold out instead; None for a share.
    stack
        Closes the files, and removes those that have not got their names by then.
    """

    def __init__(self, directory: RunDirectory, *, percent: int | None, max_rows: int | None, stack: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._train = self._temporary(directory.train_rows)
        self._evaluation = self._temporary(directory.evaluation_rows)
        self._all: BinaryIO | None = None
        self._threshold = percent_threshold(percent or 0)
        self._smallest = SmallestHashes(max_rows or 0)
        if max_rows:
            self._all = self._temporary(directory.dataset / "rows.jsonl")
        self._example = b""
        self.rows = 0
        self.evaluation_rows = 0

    def add(self, value: int, record: Record, encoded: bytes) -> None:
        """Write one row, whose hash is `value` and whose content is a JSON object, with its place in the source."""
        file = b',"file":' + json.dumps(printable(record.file)).encode() if record.file else b""
        line = b'%b,"row":%d%b}\n' % (encoded[:-1], record.number, file)
        if self._all is None:
            self._deal(value, line)
        else:
            self._smallest.add(value)
            self._all.write(b"%d " % value + line)

    def deal(self) -> None:
        """Deal out the rows that waited for it."""
        if self._all is None:
            return
        self._threshold = self._smallest.threshold()
        self._all.seek(0)
        for entry in self._all:
            value, _, line = entry.partition(b" ")
            self._deal(int(value), line)

    def publish(self) -> None:
        """Bring both files to the disk and give them their names."""
        for file, path in (
            (self._train, self._directory.train_rows),
            (self._evaluation, self._directory.evaluation_rows),
        ):
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        fsync_path(self._directory.dataset)

    @property
    def example(self) -> Content | None:
        """The first training row as it was written."""
        content: Content | None = json.loads(self._example) if self._example else None
        return content

    def _deal(self, value: int, line: bytes) -> None:
        if value < self._threshold:
            self._evaluation.write(line)
            self.evaluation_rows += 1
        else:
            self._train.write(line)
            self._example = self._example or line
            self.rows += 1

    def _temporary(self, path: Path) -> BinaryIO:
        temporary = path.with_name(path.name + ".tmp")
        self._stack.callback(temporary.unlink, missing_ok=True)
        return self._stack.enter_context(temporary.open("w+b", buffering=_BUFFER_BYTES))


def encode_line(document: dict[str, Any]) -> bytes:
    """Return a document as one JSON line."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
