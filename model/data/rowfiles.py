"""The files of training rows and of held-out rows: written under temporary names, dealt out by the split."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

from model.data.formats import Content
from model.data.records import Record, printable
from model.data.split import SMALL_ROWS, Share, SmallestHashes, percent_threshold
from model.files import RunDirectory, fsync_path

_BUFFER_BYTES = 1 << 20


class RowFiles:
    """The two files under their temporary names, and which row goes into which.

    Which rows have the smallest hashes depends on all rows: they wait in one file and are dealt out at the end. Of many
    rows and a mere share to hold out, each row's own hash decides at once.

    Parameters
    ----------
    share
        How many rows to hold out.
    stack
        Closes the files, and removes those that have not got their names by then.
    """

    def __init__(self, directory: RunDirectory, *, share: Share, stack: ExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._share = share
        self._train = self._temporary(directory.train_rows)
        self._evaluation = self._temporary(directory.evaluation_rows)
        self._waiting: BinaryIO | None = None
        self._waiting_rows = 0
        self._threshold = 0
        self._smallest = SmallestHashes(share.largest)
        if not share.is_nothing:
            self._waiting = self._temporary(directory.dataset / "rows.jsonl")
        self._example = b""
        self.rows = 0
        self.evaluation_rows = 0

    def add(self, value: int, record: Record, encoded: bytes) -> None:
        """Write one row, whose hash is `value` and whose content is a JSON object, with its place in the source."""
        file = b',"file":' + json.dumps(printable(record.file)).encode() if record.file else b""
        line = b'%b,"row":%d%b}\n' % (encoded[:-1], record.number, file)
        if self._waiting is None:
            self._deal(value, line)
            return
        self._smallest.add(value)
        self._waiting.write(b"%d " % value + line)
        self._waiting_rows += 1
        if self._share.max_rows is None and self._share.percent is not None and self._waiting_rows > SMALL_ROWS:
            self._deal_waiting(percent_threshold(self._share.percent))

    def deal(self) -> None:
        """Deal out the rows that waited for it."""
        if self._waiting is not None:
            self._deal_waiting(self._smallest.threshold(self._share.of(self._waiting_rows)))

    def _deal_waiting(self, threshold: int) -> None:
        """Deal out the rows that wait, and those after them at once."""
        assert self._waiting is not None
        self._threshold = threshold
        self._waiting.seek(0)
        for entry in self._waiting:
            value, _, line = entry.partition(b" ")
            self._deal(int(value), line)
        self._waiting = None

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
