"""Fewer points for the same curve: the ends, and the extremes of each part, so that no spike is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """One number of a run."""

    step: int
    """Optimizer step, from 1."""
    value: float
    seconds: int
    """Since the run was recorded, by the registry's clock."""
    attempt: int


def thin(points: Sequence[Point], limit: int) -> list[Point]:
    """At most `limit` of the points, sorted by step as they came.

    Kept are the first, the last, and the lowest and highest of each of equal parts of the range of steps: with them the
    lowest and the highest of all, one of which is the best. `limit` is at least 4.

    Source: "M4: A Visualization-Oriented Time Series Data Aggregation" (Jugel et al., 2014), without the first and
    last of each part, which only matter where a part is one pixel.
    """
    if len(points) <= limit:
        return list(points)
    parts = (limit - 2) // 2
    start = points[0].step
    span = points[-1].step - start + 1
    lowest: dict[int, Point] = {}
    highest: dict[int, Point] = {}
    for point in points:
        part = (point.step - start) * parts // span
        if part not in lowest or point.value < lowest[part].value:
            lowest[part] = point
        if part not in highest or point.value > highest[part].value:
            highest[part] = point
    return sorted({points[0], points[-1], *lowest.values(), *highest.values()})
