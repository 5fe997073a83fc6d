"""Takes some of the rows of a mix: they wait in a file until all sources were read and each one's share is known.

Which rows are taken is drawn by the seed: by a hash of each row's content that has nothing to do with the one by which
rows are held out.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from model.data.formats import Content
from model.data.parts import Part, smallest, taken
from model.data.records import Record
from model.data.rowfiles import BUFFER_BYTES, Row


class Drawing:
    """The rows that wait, and the draws of those of which not all are taken, at 8 bytes each.

    Parameters
    ----------
    path
        The file to wait in.
    parts
        The sources.
    stack
        Removes the file.
    """

    def __init__(self, path: Path, parts: Sequence[Part], stack: ExitStack) -> None:
        self._parts = parts
        self._draws = [array("Q") for _ in parts]
        stack.callback(path.unlink, missing_ok=True)
        self._file = stack.enter_context(path.open("w+b", buffering=BUFFER_BYTES))

    def add(self, row: Row, _content: Content) -> None:
        """Let a row wait."""
        if self._parts[row.part].is_bounded:
            self._draws[row.part].append(row.draw)
        place = [row.part, row.value, row.draw, row.record.number, row.record.file]
        self._file.write(json.dumps(place).encode() + b"\n" + row.encoded + b"\n")

    def deal(self, take: Callable[[Row, Content], None]) -> None:
        """Give the rows that are taken, in the order in which they came."""
        bounds = [
            smallest(draws, number) if part.is_bounded else (1 << 64, 0)
            for part, draws, number in zip(self._parts, self._draws, taken(self._parts), strict=True)
        ]
        equal = [number for _, number in bounds]
        self._file.seek(0)
        for line in self._file:
            part, value, draw, number, file = json.loads(line)
            encoded = next(self._file)
            bound = bounds[part][0]
            if draw == bound and equal[part]:
                equal[part] -= 1
            elif draw >= bound:
                continue
            encoded = encoded.removesuffix(b"\n")
            take(Row(part, value, draw, Record(number, None, file), encoded), json.loads(encoded))
