"""An experiment: its runs ranked, and each setting that differs drawn against the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.api.registry import Run
from finetune.registry.pages.text import decimal, number

from .runs import base_path, loss_of
from .settings import IGNORED, differences

WIDTH, HEIGHT = 300, 140
MAX_SCATTERS = 6
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


def ranked(runs: Sequence[Run]) -> list[Run]:
    """The lowest held-out loss first; runs without one last, newest first."""
    return sorted(runs, key=lambda run: (loss_of(run).value is None, loss_of(run).value or 0.0))


def scatters(namespace: str, runs: Sequence[Run]) -> list[Scatter]:
    """A picture for each setting that differs between runs that have a loss."""
    measured = [run for run in runs if loss_of(run).value is not None]
    if len(measured) < 2:
        return []
    rows = differences([run.spec for run in measured], ignored=IGNORED)
    losses = [loss_of(run).value or 0.0 for run in measured]
    best = min(losses)
    found = []
    for row in rows:
        if not row.differs or row.is_ignored:
            continue
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
