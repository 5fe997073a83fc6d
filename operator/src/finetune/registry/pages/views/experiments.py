"""An experiment: its runs ranked, and each setting that differs drawn against the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.api.registry import Run
from finetune.registry.pages.text import decimal, number

from .compare import csv_of
from .runs import base_path, loss_of, state_of
from .settings import IGNORED, Difference, differences

WIDTH, HEIGHT = 300, 140
WIDE, TALL, EDGE, TOP = 960, 260, 60, 34
MAX_SCATTERS = 6
MAX_AXES = 7
MOST_RUNS = 200


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A run in a picture."""

    x: float
    y: float
    href: str
    text: str
    is_best: bool


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """One setting against the held-out loss."""

    setting: str
    dots: tuple[Dot, ...]
    low: str
    high: str
    values: tuple[str, ...]
    """Left to right, where the setting is no number."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An upright line of the parallel coordinates, and the values at its ends."""

    x: float
    name: str
    low: str
    high: str


@dataclass(frozen=True, kw_only=True)
class Thread:
    """A run, drawn from axis to axis."""

    points: str
    text: str
    is_best: bool


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """All settings that differ beside each other, and the held-out loss at the right."""

    axes: tuple[Axis, ...]
    threads: tuple[Thread, ...]

    width, height, top, bottom = WIDE, TALL, TOP, TALL - 24


def ranked(runs: Sequence[Run]) -> list[Run]:
    """The lowest held-out loss first; runs without one last, newest first."""
    return sorted(runs, key=lambda run: (loss_of(run).value is None, loss_of(run).value or 0.0))


def varied(runs: Sequence[Run]) -> tuple[list[Run], list[Difference]]:
    """The runs that have a loss, and the settings that differ between them."""
    measured = [run for run in runs if loss_of(run).value is not None]
    rows = differences([run.spec for run in measured], ignored=IGNORED) if len(measured) > 1 else []
    return measured, [row for row in rows if row.differs and not row.is_ignored]


def parallel(runs: Sequence[Run]) -> Parallel | None:
    """A line for each run through its settings to its loss; None where fewer than two settings differ."""
    measured, rows = varied(runs)
    if len(rows) < 2:
        return None
    rows = rows[:MAX_AXES]
    losses = [loss_of(run).value or 0.0 for run in measured]
    low, high = min(losses), max(losses)
    columns = [(row.path, *_places(row.values)) for row in rows]
    columns.append(("held-out loss", [_share(loss, low, high) for loss in losses], (number(low), number(high))))
    step = (WIDE - 2 * EDGE) / (len(columns) - 1)
    axes = tuple(
        Axis(x=round(EDGE + place * step, 1), name=name, low=ends[0], high=ends[-1])
        for place, (name, _, ends) in enumerate(columns)
    )
    bottom = TALL - 24
    threads = [
        Thread(
            points=" ".join(
                f"{axis.x},{bottom - shares[place] * (bottom - TOP):.1f}"
                for axis, (_, shares, _) in zip(axes, columns, strict=True)
            ),
            text=f"{run.name}: {', '.join(f'{row.path} {row.values[place]}' for row in rows)}, "
            f"held-out loss {number(loss)}",
            is_best=loss == low,
        )
        for place, (run, loss) in enumerate(zip(measured, losses, strict=True))
    ]
    return Parallel(axes=axes, threads=tuple(sorted(threads, key=lambda thread: thread.is_best)))


def table(runs: Sequence[Run]) -> str:
    """The runs as CSV, as they are ranked: settings that differ, then what came of them."""
    rows = [row for row in differences([run.spec for run in runs], ignored=IGNORED) if row.differs]
    rows = [row for row in rows if not row.is_ignored]
    lines: list[Sequence[str]] = [
        ("run", "uid", "state", *(row.path for row in rows), "heldOutLoss", "baseHeldOutLoss", "adapter")
    ]
    for place, run in enumerate(runs):
        loss, made = loss_of(run), run.adapter
        numbers = ("" if value is None else repr(value) for value in (loss.value, loss.base))
        adapter = f"{made.name}@{made.version}" if made else ""
        values = (row.values[place] for row in rows)
        lines.append((run.name, run.uid, state_of(run).word, *values, *numbers, adapter))
    return csv_of(lines)


def scatters(namespace: str, runs: Sequence[Run]) -> list[Scatter]:
    """A picture for each setting that differs between runs that have a loss."""
    measured, rows = varied(runs)
    losses = [loss_of(run).value or 0.0 for run in measured]
    best = min(losses, default=0.0)
    found = []
    for row in rows:
        xs, values = _places(row.values)
        low, high = min(losses), max(losses)
        dots = tuple(
            Dot(
                x=round(10 + x * (WIDTH - 20), 1),
                y=round(10 + (1 - _share(loss, low, high)) * (HEIGHT - 20), 1),
                href=f"{base_path(namespace)}/runs/{run.uid}",
                text=f"{run.name}: {row.path} {value}, held-out loss {number(loss)}",
                is_best=loss == best,
            )
            for run, loss, value, x in zip(measured, losses, row.values, xs, strict=True)
        )
        found.append(Scatter(setting=row.path, dots=dots, low=number(low), high=number(high), values=values))
    return found[:MAX_SCATTERS]


def _places(values: Sequence[str]) -> tuple[list[float], tuple[str, ...]]:
    """Where values stand from left (0) to right (1): numbers by size or its logarithm, words sorted."""
    numbers = [decimal(value) for value in values]
    if all(each is not None for each in numbers):
        known = [each for each in numbers if each is not None]
        if min(known) > 0 and max(known) / min(known) >= 100:
            known = [math.log10(each) for each in known]
        low, high = min(known), max(known)
        ends = (min(values, key=float), max(values, key=float))
        return [_share(each, low, high) for each in known], ends
    names = sorted(set(values))
    places: Mapping[str, int] = {name: place for place, name in enumerate(names)}
    return [places[value] / max(1, len(names) - 1) for value in values], tuple(names[:8])


def _share(value: float, low: float, high: float) -> float:
    return 0.5 if high == low else (value - low) / (high - low)
