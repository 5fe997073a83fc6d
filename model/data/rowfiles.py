"""The files of training rows and of held-out rows: written under temporary names, dealt out by the split."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from model.data.formats import Content
from model.data.records import Record, printable
from model.data.split import SMALL_ROWS, Share, SmallestHashes, percent_threshold
from model.files import RunDirectory, fsync_path

BUFFER_BYTES = 1 << 20


class Row(NamedTuple):
    """A valid row.

    Attributes: the number of its source, the hash by which it is held out or not, another one by which it may be drawn,
    where it stands, and its normalised content as JSON.
    """

    part: int
    value: int
    draw: int
    record: Record
    encoded: bytes


class RowFiles:
    """The two files under their temporary names, and which row goes into which.

    Which rows have the smallest hashes depends on all rows: they wait in one file and are dealt out at the end. Of many
    rows and a mere share to hold out, each row's own hash decides at once.

    Parameters
    ----------
    share
        How many rows to hold out.
    parts
        How many sources there are.
    stack
        Closes the files, and removes those that have not got their names by then.
    """

    def __init__(self, directory: RunDirectory, *, share: Share, parts: int, stack: ExitStack) -> None:
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
        self.counts = [[0, 0] for _ in range(parts)]
        """By source how many rows are trained on, and how many are held out."""

    @property
    def rows(self) -> int:
        """The number of rows to train on."""
        return sum(train for train, _ in self.counts)

    @property
    def evaluation_rows(self) -> int:
        """The number of rows that are held out."""
        return sum(held_out for _, held_out in self.counts)

    def add(self, row: Row) -> None:
        """Write one row, with its place in the source."""
        record = row.record
        file = b',"file":' + json.dumps(printable(record.file)).encode() if record.file else b""
        line = b'%b,"row":%d%b}\n' % (row.encoded[:-1], record.number, file)
        if self._waiting is None:
            self._deal(row.value, row.part, line)
            return
        self._smallest.add(row.value)
        self._waiting.write(b"%d %d " % (row.value, row.part) + line)
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
            value, part, line = entry.split(b" ", 2)
            self._deal(int(value), int(part), line)
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

    def _deal(self, value: int, part: int, line: bytes) -> None:
        held_out = value < self._threshold
        self.counts[part][held_out] += 1
        if held_out:
            self._evaluation.write(line)
        else:
            self._train.write(line)
            self._example = self._example or line

    def _temporary(self, path: Path) -> BinaryIO:
        temporary = path.with_name(path.name + ".tmp")
        self._stack.callback(temporary.unlink, missing_ok=True)
        return self._stack.enter_context(temporary.open("w+b", buffering=BUFFER_BYTES))


def encode_line(document: dict[str, Any]) -> bytes:
    """Return a document as one JSON line."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
