"""Several runs beside each other: only what differs, then what came of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from finetune.api.registry import Run
from finetune.registry.pages.charts import Chart, Line, draw
from finetune.registry.pages.queries import Part
from finetune.registry.pages.text import UNKNOWN, clean, decimal, number

from .runs import State, base_path, loss_of, state_of, step_of
from .settings import Difference, differences

MOST = 8
COMPARED = (("Held-out loss", "evaluationLoss"), ("Training loss", "loss"), ("Learning rate", "learningRate"))


@dataclass(frozen=True, kw_only=True)
class Column:
    """One of the runs."""

    uid: str
    name: str
    href: str
    state: State
    without: str
    """The comparison without it; empty where two are left."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number of every run, and how far it is from the first one's."""

    name: str
    values: tuple[str, ...]
    deltas: tuple[str, ...]
    best: int | None
    """The place of the best, where one is."""


@dataclass(frozen=True, kw_only=True)
class DatasetPair:
    """Two versions of one dataset that the runs have learned."""

    name: str
    old: int
    new: int
    href: str
    """Where their rows are compared."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The page's content but its charts."""

    columns: tuple[Column, ...]
    settings: tuple[Difference, ...]
    equal: int
    """Settings that are the same in all, which are left out."""
    ignored: int
    results: tuple[Result, ...]
    datasets: tuple[DatasetPair, ...]


def comparison(
    namespace: str,
    runs: Sequence[Run],
    *,
    best: Mapping[str, tuple[float, int]],
    ignored: Sequence[str],
    show_equal: bool,
) -> Comparison:
    """The comparison; `best` is the lowest held-out loss and its step by uid."""
    rows = differences([{**run.spec, "dataset": _dataset(run)} for run in runs], ignored=ignored)
    uids = [run.uid for run in runs]
    return Comparison(
        columns=tuple(
            Column(
                uid=run.uid,
                name=run.name,
                href=f"{base_path(namespace)}/runs/{run.uid}",
                state=state_of(run),
                without=_address(namespace, [uid for uid in uids if uid != run.uid]) if len(runs) > 2 else "",
            )
            for run in runs
        ),
        settings=tuple(row for row in rows if not row.is_ignored and (row.differs or show_equal)),
        equal=sum(not row.differs and not row.is_ignored for row in rows),
        ignored=sum(row.is_ignored for row in rows),
        results=tuple(_results(runs, best)),
        datasets=tuple(_dataset_pairs(namespace, runs)),
    )


def compare_charts(runs: Sequence[Run], outlines: Mapping[tuple[str, str], Sequence[Part]]) -> list[Chart]:
    """The same metric of all runs in one picture."""
    bases = {loss_of(run).base for run in runs} - {None}
    base = bases.pop() if len(bases) == 1 else None
    live = any(not (run.outcome and run.outcome.ended) for run in runs)
    charts = []
    for title, metric in COMPARED:
        lines = [
            Line(label=run.name, metric=metric, run=run.uid, parts=outlines.get((run.uid, metric), ()), place=place)
            for place, run in enumerate(runs)
        ]
        chart = draw(title, lines, base=base if metric == "evaluationLoss" else None, is_live=live)
        if chart is not None:
            charts.append(chart)
    return charts


def table(compared: Comparison) -> str:
    """The comparison as CSV."""
    return csv_of(
        [
            ("", *(column.name for column in compared.columns)),
            *((row.path, *row.values) for row in compared.settings),
            *((result.name, *result.values) for result in compared.results),
        ]
    )


def csv_of(rows: Iterable[Sequence[str]]) -> str:
    """Rows as CSV. A cell that a spreadsheet would take for a formula begins with an apostrophe."""
    out = io.StringIO()
    csv.writer(out).writerows([_cell(cell) for cell in row] for row in rows)
    return out.getvalue()


def _cell(text: str) -> str:
    text = clean(text)
    formula = text.startswith(("=", "+", "-", "@", "\t", "\r")) and decimal(text) is None
    return f"'{text}" if formula else text


def _dataset(run: Run) -> str:
    if run.dataset_name:
        return f"{run.dataset_name}/{run.dataset_version}"
    return str(run.spec.get("dataset", UNKNOWN))[:200]


def _results(runs: Sequence[Run], best: Mapping[str, tuple[float, int]]) -> list[Result]:
    lowest = [best.get(run.uid, (loss_of(run).value, None)) for run in runs]
    losses = [value for value, _ in lowest]
    notes = ["" if step is None else f" @{step:,}" for _, step in lowest]
    outcomes = [run.outcome for run in runs]
    adapters = [run.adapter for run in runs]
    hours = [
        outcome.gpu_seconds / 3600 if outcome and outcome.gpu_seconds is not None else None for outcome in outcomes
    ]
    accuracy = [decimal(adapter.reward_accuracy) if adapter else None for adapter in adapters]
    found = [
        _result("held-out loss, best", losses, notes=notes, lower_is_better=True),
        _result("held-out loss of the base", [loss_of(run).base for run in runs]),
        _result("training loss, final", [decimal(each.final_loss) if each else None for each in adapters]),
        _result("reward accuracy", accuracy, lower_is_better=False),
        _result("reward margin", [decimal(each.reward_margin) if each else None for each in adapters]),
        _result("steps", [step_of(run)[0] for run in runs]),
        _result("tokens", [each.tokens if each else None for each in adapters]),
        _result("GPU hours", hours),
    ]
    return [result for result in found if any(value != UNKNOWN for value in result.values)]


def _result(
    name: str,
    values: Sequence[float | int | None],
    *,
    notes: Sequence[str] | None = None,
    lower_is_better: bool | None = None,
) -> Result:
    known = [value for value in values if value is not None]
    best = None
    if lower_is_better is not None and len(known) > 1 and len(set(known)) > 1:
        best = values.index(min(known) if lower_is_better else max(known))
    first = values[0]
    deltas = tuple(
        "" if place == 0 or value is None or first is None or value == first else _signed(value - first)
        for place, value in enumerate(values)
    )
    texts = tuple(number(value) + ((notes or [""] * len(values))[place]) for place, value in enumerate(values))
    return Result(name=name, values=texts, deltas=deltas, best=best)


def _signed(value: float) -> str:
    return ("+" if value > 0 else "−") + number(abs(value), 3)  # noqa: RUF001 - a true minus


def _dataset_pairs(namespace: str, runs: Sequence[Run]) -> list[DatasetPair]:
    versions: dict[str, set[int]] = {}
    for run in runs:
        if run.dataset_name and run.dataset_version:
            versions.setdefault(run.dataset_name, set()).add(run.dataset_version)
    pairs = []
    for name, numbers in sorted(versions.items()):
        ordered = sorted(numbers)
        for old, new in pairwise(ordered):
            href = f"{base_path(namespace)}/datasets/{name}?version={new}&against={old}"
            pairs.append(DatasetPair(name=name, old=old, new=new, href=href))
    return pairs


def _address(namespace: str, uids: Sequence[str]) -> str:
    return f"{base_path(namespace)}/compare?" + "&".join(f"run={uid}" for uid in uids)
