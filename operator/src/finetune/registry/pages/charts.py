"""Curves as SVG: what stands on a page before, or without, JavaScript. Pure functions from points to coordinates."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from .queries import Part
from .text import number

WIDTH, HEIGHT = 640, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 8, 24
SPARK_WIDTH, SPARK_HEIGHT = 96, 20
SMALLEST = 1e-300
"""An extent below is none: a power of ten for its ticks would be 0."""
MAX_ROWS = 20
"""Of the table behind a chart."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of a chart: the name in the legend, what it is of, and its shape."""

    label: str
    metric: str
    run: str
    parts: Sequence[Part]
    place: int = 0
    """Which of the palette's colours it has, from 0."""


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A value on an axis: where, and what stands there."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Mark(Tick):
    """A step that is marked."""

    step: int


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A line in the coordinates of the picture."""

    label: str
    place: int
    points: str
    """As SVG's `points` has them."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture of curves over steps, its caption and the table behind it."""

    title: str
    caption: str
    metrics: str
    """Names of the metrics, as the address of the points has them."""
    runs: str
    lines: tuple[Drawn, ...]
    base: float | None
    """The base model's value."""
    base_at: float | None
    """Where that is drawn."""
    marks: tuple[Mark, ...]
    """Steps at which an attempt went on from a checkpoint."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_live: bool = False

    width = WIDTH
    height = HEIGHT
    left = LEFT
    bottom = HEIGHT - BOTTOM
    right = WIDTH - RIGHT


def sparkline(parts: Sequence[Part]) -> str:
    """The points of a small curve without axes; empty when there is nothing to see."""
    if len(parts) < 2:
        return ""
    low, high = min(part.low for part in parts), max(part.high for part in parts)
    first, last = parts[0].step, parts[-1].step
    x = _scale(first, last, 1, SPARK_WIDTH - 1)
    y = _scale(low, high, SPARK_HEIGHT - 2, 2)
    return " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in _path(parts))


def draw(
    title: str,
    lines: Sequence[Line],
    *,
    base: float | None = None,
    marks: Iterable[int] = (),
    is_live: bool = False,
) -> Chart | None:
    """The chart of some lines; None where none of them has a point.

    Also those without points are named: a live one gets them later, and colours go by the place among all.
    """
    shown = [line for line in lines if line.parts]
    if not shown:
        return None
    values = [bound for line in shown for part in line.parts for bound in (part.low, part.high)]
    low, high = min([*values, *filter(None, [base])]), max([*values, *filter(None, [base])])
    first = min(line.parts[0].step for line in shown)
    last = max(line.parts[-1].last for line in shown)
    x = _scale(first, last, LEFT, WIDTH - RIGHT)
    y = _scale(low, high, HEIGHT - BOTTOM, TOP)
    steps = [step for step in _ticks(first, last) if step == int(step)]  # of two or three there are no halves
    return Chart(
        title=title,
        caption=caption(shown, base),
        metrics=",".join(dict.fromkeys(line.metric for line in lines)),
        runs=",".join(dict.fromkeys(line.run for line in lines)),
        lines=tuple(
            Drawn(
                label=line.label,
                place=line.place,
                points=" ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in _path(line.parts)),
            )
            for line in (lines if is_live else shown)
        ),
        base=base,
        base_at=None if base is None else round(y(base), 1),
        marks=tuple(Mark(at=round(x(step), 1), text=f"{step:,}", step=step) for step in marks if first <= step <= last),
        x_ticks=tuple(Tick(at=round(x(step), 1), text=f"{step:,.0f}") for step in steps),
        y_ticks=tuple(Tick(at=round(y(value), 1), text=number(value)) for value in _ticks(low, high)),
        header=("step", *(line.label for line in shown)),
        rows=tuple(_table(shown)),
        is_live=is_live,
    )


def caption(lines: Sequence[Line], base: float | None) -> str:
    """What the curves show, in words."""
    said = []
    for line in lines:
        start, end = line.parts[0], line.parts[-1]
        if len(line.parts) == 1:
            said.append(f"{line.label} is {number(end.low)} at step {end.last:,}")
            continue
        before, after = _middle(start), _middle(end)
        verb = "fell" if after < before else "rose" if after > before else "stayed"
        said.append(f"{line.label} {verb} from {number(before)} to {number(after)} by step {end.last:,}")
    if base is not None:
        said.append(f"the base model's is {number(base)}")
    return "; ".join(said) + "."


def between(steps: Sequence[int], known: Sequence[int], values: Sequence[float]) -> list[int]:
    """What a growing number was at each of `steps`, on the straight line between the steps at which it is known.

    Both lists of steps are sorted; outside of what is known the nearest value stands.
    """
    found = []
    for step in steps:
        place = bisect_left(known, step)
        if place == 0 or place == len(known) or known[place] == step:
            found.append(round(values[min(place, len(known) - 1)]))
            continue
        share = (step - known[place - 1]) / (known[place] - known[place - 1])
        found.append(round(values[place - 1] + share * (values[place] - values[place - 1])))
    return found


def _table(lines: Sequence[Line]) -> Iterable[tuple[str, ...]]:
    steps = sorted({part.step for line in lines for part in line.parts})
    every = max(1, math.ceil(len(steps) / MAX_ROWS))
    chosen = [step for place, step in enumerate(steps) if place % every == 0 or place == len(steps) - 1]
    for step in chosen:
        cells = []
        for line in lines:
            part = next((part for part in line.parts if part.step == step), None)
            cells.append("" if part is None else number(_middle(part)))
        yield (f"{step:,}", *cells)


def _middle(part: Part) -> float:
    return (part.low + part.high) / 2


def _path(parts: Sequence[Part]) -> Iterable[tuple[int, float]]:
    """Lowest and highest of every part, so that no spike is lost."""
    for part in parts:
        yield part.step, part.high
        if part.low != part.high:
            yield part.step, part.low


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From values to places in the picture. Made for thousands of calls."""
    # Both are divided first: the difference of two large doubles can be infinite.
    half, extent, length = low / 2, high / 2 - low / 2, end - start
    if extent == 0:
        return lambda _: (start + end) / 2
    return lambda value: start + (value / 2 - half) / extent * length


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers between two."""
    extent = high - low
    if extent < SMALLEST or not math.isfinite(extent):
        return [low]
    rough = extent / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if magnitude * factor >= rough)
    first = math.ceil(low / step) * step
    return [first + place * step for place in range(7) if first + place * step <= high + step * 1e-9]
