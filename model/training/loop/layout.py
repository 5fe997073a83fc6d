"""How rows are laid out for one pass through the model, and where the learned tokens are in it.

All that is known of a batch beforehand is worked out here, on the CPU: nobody asks the device how long a row is, for
that would wait until it has done all that it was given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy
import torch

from model.training.rows.tokens import IGNORED

Batch = dict[str, Any]
"""Tensors by name, and what the host knows: `shape`, and which examples these are (`pair`, `row`)."""
Row = dict[str, Any]
"""input_ids and labels, each a sequence of whole numbers, and how many tokens are `shared` with the row before."""
GPU_WIDTH = 128
"""Padded rows on a GPU get a width that is a multiple of this: the fewer shapes, the fewer plans of its libraries."""


class Layout(StrEnum):
    """What becomes of the rows of a micro-batch."""

    PADDED = "Padded"
    """Each is filled up to the longest at its end. No mask: a token sees what precedes it, and that is no padding."""
    SEGMENTED = "Segmented"
    """One sequence, in which a pair's answers share their prompt. Attention is told the rows: `attention.attend`."""


@dataclass(frozen=True)
class Shape:
    """What the host knows of a batch."""

    learned: tuple[int, ...]
    """The learned tokens of each row."""
    tokens: int
    """The tokens of all rows: no padding, and a shared prompt in each row that it begins."""

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.learned)


@dataclass(frozen=True)
class Segments:
    """Where the rows of a joined sequence lie, and which tokens each of them sees."""

    rows: tuple[tuple[int, int], ...]
    """Of each row its own tokens, and how many it shares with the beginning of the row before it."""
    queries: torch.Tensor
    """Where each row's own tokens begin in the sequence, and the sequence's end, (rows + 1,), int32."""
    keys: torch.Tensor
    """The same with the shared tokens before each row's own: of the sequence that `places` makes."""
    places: torch.Tensor | None
    """For each of those tokens its place in the joined sequence, (keys,); None when they are the same."""

    @property
    def longest_own(self) -> int:
        """The most tokens that a row has of its own."""
        return max(own for own, _ in self.rows)

    @property
    def longest(self) -> int:
        """The tokens of the longest row, with those that it shares."""
        return max(own + shared for own, shared in self.rows)

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int]]) -> Segments:
        """Return the segments of rows, each given as its own tokens and the shared ones."""
        starts = numpy.cumsum([0, *(own for own, _ in rows)])
        places = None
        if any(shared for _, shared in rows):
            parts = [numpy.empty(0, numpy.int64)]
            for index, (own, shared) in enumerate(rows):
                if shared:
                    parts.append(starts[index - 1] + numpy.arange(shared))
                parts.append(starts[index] + numpy.arange(own))
            places = torch.from_numpy(numpy.concatenate(parts))
        ends = numpy.cumsum([0, *(own + shared for own, shared in rows)])
        queries, keys = (torch.from_numpy(borders.astype(numpy.int32)) for borders in (starts, ends))
        # The very same tensor where nothing is shared: kernels take that for the simple case.
        return cls(tuple(rows), queries, queries if places is None else keys, places)

    def moved(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Segments:
        """Return the same with each tensor moved."""
        queries = move(self.queries)
        if self.places is None:
            return Segments(self.rows, queries, queries, None)
        return Segments(self.rows, queries, move(self.keys), move(self.places))


@dataclass(frozen=True)
class Step:
    """The rows of an optimizer step that are a process's, laid out."""

    rows: list[int]
    """Their numbers, the longest first."""
    parts: int
    """In how many parts each micro-batch is."""
    micro_batches: list[Batch]


class Collator:
    """Lays rows out for one forward pass.

    Padding is told by length, never by the token: many tokenizers pad with the end token, which must be learned.
    Joined rows keep their own positions.

    Parameters
    ----------
    pad_token_id
        What stands in the padding; it is never looked at.
    layout
        How.
    width
        Of which padded rows get a multiple.
    positions
        Which padding does not go beyond: those that the model has; None: any number.
    """

    def __init__(self, pad_token_id: int, layout: Layout, *, width: int = 1, positions: int | None = None) -> None:
        self._pad_token_id = pad_token_id
        self.layout = layout
        self._width, self._positions = width, positions

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Return what goes through the model, and what is learned of it.

        input_ids
            (rows, tokens); of joined rows (1, tokens), with their position_ids and `Segments`.
        targets, places
            The learned tokens, row by row, and the places in the flattened input_ids that predict them.
        counts
            The learned tokens of each row, (rows,).
        shape
            `Shape`.
        """
        ids = [numpy.asarray(row["input_ids"], dtype=numpy.int64) for row in rows]
        shared = [int(row.get("shared", 0)) for row in rows]
        learned = [_learned(row["labels"], count) for row, count in zip(rows, shared, strict=True)]
        laid_out, places = self._join(ids, shared, learned) if self.joins else self._pad(ids, learned)
        counts = tuple(len(part) for part in learned)
        targets = [part[where] for part, where in zip(ids, learned, strict=True)]
        return laid_out | {
            "targets": torch.from_numpy(numpy.concatenate(targets)),
            "places": torch.from_numpy(numpy.concatenate(places)),
            "counts": torch.tensor(counts),
            "shape": Shape(counts, sum(map(len, ids))),
        }

    @property
    def width(self) -> int:
        """What padded rows get a multiple of; 0 where rows are joined."""
        return 0 if self.joins else self._width

    @property
    def joins(self) -> bool:
        """Whether rows become one sequence."""
        return self.layout is Layout.SEGMENTED

    def _pad(self, ids: list[Any], learned: list[Any]) -> tuple[Batch, list[Any]]:
        longest = max(map(len, ids))
        width = math.ceil(longest / self._width) * self._width
        width = max(longest, min(width, self._positions or width))
        padded = numpy.full((len(ids), width), self._pad_token_id, numpy.int64)
        for index, row in enumerate(ids):
            padded[index, : len(row)] = row
        places = [index * width + where - 1 for index, where in enumerate(learned)]
        return {"input_ids": torch.from_numpy(padded)}, places

    @staticmethod
    def _join(ids: list[Any], shared: list[int], learned: list[Any]) -> tuple[Batch, list[Any]]:
        segments = Segments.of([(len(row) - count, count) for row, count in zip(ids, shared, strict=True)])
        positions = [numpy.arange(count, len(row)) for row, count in zip(ids, shared, strict=True)]
        places, start, before = [], 0, 0
        for row, count, where in zip(ids, shared, learned, strict=True):
            # A row's first learned token that follows a shared prompt is predicted at the prompt's end.
            places.append(numpy.where(where > count, start - count, before) + where - 1)
            start, before = start + len(row) - count, start
        return {
            "input_ids": torch.from_numpy(numpy.concatenate([r[n:] for r, n in zip(ids, shared, strict=True)])[None]),
            "position_ids": torch.from_numpy(numpy.concatenate(positions)[None]),
            "segments": segments,
        }, places


def _learned(labels: Sequence[int], shared: int) -> Any:
    """Return the places of a row's learned tokens; never its first one, which nothing predicts."""
    (where,) = numpy.nonzero(numpy.asarray(labels) != IGNORED)
    return where[where >= max(1, shared)]


class PairCollator:
    """Lays out pairs: each one's chosen row and, right behind it, its rejected row, and the pairs' numbers."""

    def __init__(self, rows: Collator) -> None:
        self._rows = rows

    def __call__(self, pairs: Sequence[dict[str, Any]]) -> Batch:
        """Return what `Collator` does for both rows of each pair, and the numbers of the pairs as `pair`."""
        rows: list[Row] = [
            {"input_ids": pair[f"{side}_input_ids"], "labels": pair[f"{side}_labels"]}
            for pair in pairs
            for side in ("chosen", "rejected")
        ]
        if self._rows.joins:
            for chosen, rejected in zip(rows[::2], rows[1::2], strict=True):
                rejected["shared"] = shared_prompt(chosen, rejected)
        return self._rows(rows) | {"pair": [pair["pair"] for pair in pairs]}


class LabelCollator:
    """Lays out rows with labels, and their numbers."""

    def __init__(self, rows: Collator) -> None:
        self._rows = rows

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Return what `Collator` does for the rows, their numbers as `row`, and desirable, (rows,)."""
        return self._rows(rows) | {
            "row": [row["row"] for row in rows],
            "desirable": torch.tensor([row["desirable"] for row in rows], dtype=torch.bool),
        }


def shared_prompt(chosen: Row, rejected: Row) -> int:
    """Return how many tokens two rows begin with alike before one of them has a learned token."""
    length = min(len(chosen["input_ids"]), len(rejected["input_ids"]))
    ids, labels = (
        [numpy.asarray(row[name])[:length] for row in (chosen, rejected)] for name in ("input_ids", "labels")
    )
    alike = (ids[0] == ids[1]) & (labels[0] == IGNORED) & (labels[1] == IGNORED)
    return length if alike.all() else int(alike.argmin())


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on a device; the host goes on at once and does not wait for the copies."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

    def moved(value: Any) -> Any:
        if isinstance(value, Segments):
            return value.moved(move)
        return move(value) if isinstance(value, torch.Tensor) else value

    return {name: moved(value) for name, value in batch.items()}


def read(values: Mapping[str, Any]) -> dict[str, float]:
    """Return numbers, of which those on a device are asked for all at once: each time the host would wait for it."""
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    found = {name: float(value) for name, value in values.items() if name not in tensors}
    if tensors:
        numbers = torch.stack([value.detach().double() for value in tensors.values()]).tolist()
        found |= dict(zip(tensors, numbers, strict=True))
    return {name: found[name] for name in values}
