"""A curve for a terminal, in braille dots: two dots a column, four a row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each dot of a braille character, by row and column."""
EMPTY = 0x2800


def curve(values: Sequence[float], *, width: int = 60, height: int = 6) -> list[str]:
    """Lines that draw the values from left to right, the largest and the smallest beside them.

    Where there are more values than dots, a column spans from the least to the greatest of its values: no peak is lost.
    Values that are not finite are left out; without any there are no lines.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return []
    low, high = min(finite), max(finite)
    rows = height * 4
    spans = _spans(finite, min(2 * width, max(2, len(finite))))
    grid = [[0] * ((len(spans) + 1) // 2) for _ in range(height)]
    levels = [(_level(least, low, high, rows), _level(most, low, high, rows)) for least, most in spans]
    for x, (bottom, top) in enumerate(_joined(levels)):
        for y in range(bottom, top + 1):
            row = rows - 1 - y
            grid[row // 4][x // 2] |= DOTS[row % 4][x % 2]
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"}
    edge = max(len(label) for label in labels.values())
    drawn = ("".join(chr(EMPTY + bits) for bits in line) for line in grid)
    return [f"{labels.get(number, ''):>{edge}} {line}".rstrip() for number, line in enumerate(drawn)]


def bar(percent: int, *, width: int = 24) -> str:
    """A bar of progress, such as `[######......]`."""
    done = width * max(0, min(100, percent)) // 100
    return f"[{'#' * done}{'.' * (width - done)}]"


def _spans(values: Sequence[float], columns: int) -> list[tuple[float, float]]:
    """The least and the greatest value of each column."""
    edges = [len(values) * column // columns for column in range(columns + 1)]
    parts = [values[start : max(end, start + 1)] for start, end in pairwise(edges) if start < len(values)]
    return [(min(part), max(part)) for part in parts]


def _level(value: float, low: float, high: float, rows: int) -> int:
    return 0 if high == low else round((value - low) / (high - low) * (rows - 1))


def _joined(levels: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The columns, stretched to where the one before ends, so that a steep curve has no holes."""
    joined = list(levels[:1])
    for (low, high), (bottom, top) in pairwise(levels):
        joined.append(
            (min(bottom, max(high + 1, 0)) if bottom > high else bottom, max(top, low - 1) if top < low else top)
        )
    return joined
