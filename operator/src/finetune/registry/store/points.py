"""Points: what trainers measure step by step, bounded for each run, and how far each of them is.

Everything is ordered by attempts, steps and the registry's own clock; a trainer's clock decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby, product
from operator import itemgetter
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.api.registry import (
    Metric,
    ProgressByRun,
    Series,
    SeriesList,
    StatusPost,
    StepValues,
    TrainerStatus,
)
from finetune.registry.database import Database
from finetune.registry.errors import AttemptOver, Invalid, RunEnded
from finetune.registry.schema import metric_points, metrics, run_progress, runs
from finetune.registry.thinning import Point, thin

from .common import dialect_of, insert_missing, now, run_missing

MAX_METRICS = 64
"""Metrics of one run."""
MAX_POINTS = 2000
"""Points of one metric of one run. They become `MAX_POINTS // 2` before there are more."""
THIN_EVERY_STEPS = 500

NO_POINTS = frozenset({"step", "totalSteps", "epoch", "checkpointStep"})
"""Numbers of a trainerStatus that say where the run is, and not how well it does."""
NAMES_OF_TRANSFORMERS = {
    "current_step": "step",
    "total_steps": "totalSteps",
    "current_epoch": "epoch",
    "learning_rate": "learningRate",
    "grad_norm": "gradientNorm",
    "eval_loss": "evaluationLoss",
    "rewards/accuracies": "rewardAccuracy",
    "rewards/margins": "rewardMargin",
}
"""The names of its `KubeflowCallback`, and ours."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a run is, as its posts have told."""

    attempt: int = 0
    step: int | None = None
    attempt_step: int | None = None
    """The first step that this attempt told of, and when: the rest is estimated from there."""
    attempt_time: datetime | None = None
    since_thinning: int = 0
    metric_names: tuple[str, ...] = ()


class PointStore:
    """Stores what trainers post, and gives it back."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, namespace: str, uid: str, post: StatusPost) -> int | None:
        """Store a post, all of it or nothing; returns the newest step.

        The same post twice is stored once. The first post of a new attempt takes back what earlier ones told of steps
        that are made again. Raises `NotFound`, `RunEnded`, `AttemptOver` and, for too many metrics, `Invalid`.
        """
        status = in_our_names(post.trainer_status)
        points = [*post.points] or _points_of(status)
        values = {each.step: {k: v for k, v in each.values.items() if v is not None} for each in points}

        async def transaction(connection: AsyncConnection) -> int | None:
            query = select(runs.c.id, runs.c.name, runs.c.created_time, runs.c.ended)
            run = (await connection.execute(query.where(runs.c.uid == uid, runs.c.namespace == namespace))).first()
            if run is None:
                raise run_missing(namespace, uid)
            if run.ended:
                raise RunEnded(f"run {run.name!r} has ended: it takes no more progress", hint="stop its trainer")
            time = now()
            row = await self._progress_locked(connection, run.id, time)
            before, last = _position(row), TrainerStatus.model_validate(row.trainer_status)
            position, rewound_to = move(before, post, _step_of(status, values), time, run.name)
            if rewound_to is not None:
                later = metric_points.c.step > rewound_to
                await connection.execute(delete(metric_points).where(metric_points.c.run_id == run.id, later))
            if not post.points:
                _leave_out_repetitions(values, status, last)
            position = _with_metrics(position, values, run.name)
            elapsed = max(0, int((time - run.created_time).total_seconds()))
            await _insert(connection, run.id, values, attempt=position.attempt, seconds=elapsed)
            if position.since_thinning >= THIN_EVERY_STEPS:
                await _thin(connection, run.id)
                position = replace(position, since_thinning=0)
            told = _timed(status, position, time, measured=post.attempt is not None)
            await _store(connection, run.id, position, told, time)
            return position.step

        return await self._database.write(transaction)

    async def _progress_locked(self, connection: AsyncConnection, run_id: int, time: datetime) -> Row[Any]:
        values = {"trainer_status": {}, "updated_time": time, "attempt": 0, "since_thinning": 0, "metric_names": []}
        await insert_missing(connection, run_progress, {"run_id": run_id, **values})
        query = select(run_progress).where(run_progress.c.run_id == run_id).with_for_update(key_share=True)
        return (await connection.execute(query)).one()

    async def latest(self, uids: Sequence[str]) -> ProgressByRun:
        """The newest status of each run that has one."""
        query = select(runs.c.uid, run_progress.c.trainer_status).join(run_progress).where(runs.c.uid.in_(uids))
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        return ProgressByRun(items={row.uid: TrainerStatus.model_validate(row.trainer_status) for row in rows})

    async def series(self, namespace: str, uids: Sequence[str], names: Sequence[str], *, points: int) -> SeriesList:
        """The named metrics of the runs, each thinned to at most `points`; those without points are left out."""
        wanted = select(runs.c.id, runs.c.uid, runs.c.name).where(runs.c.uid.in_(uids), runs.c.namespace == namespace)
        named = select(metrics.c.id, metrics.c.name).where(metrics.c.name.in_(names)).order_by(metrics.c.name)
        async with self._database.reading() as connection:
            of_run = (await connection.execute(wanted.order_by(runs.c.id))).all()
            of_metric = (await connection.execute(named)).all()
            found = await _points_of_all(connection, [each.id for each in of_run], [each.id for each in of_metric])
        items = []
        for run, metric in product(of_run, of_metric):
            thinned = thin(found.get((run.id, metric.id), ()), points)
            if thinned:
                items.append(
                    Series(
                        run=run.uid,
                        name=run.name,
                        metric=metric.name,
                        steps=[point.step for point in thinned],
                        values=[point.value for point in thinned],
                        seconds=[point.seconds for point in thinned],
                        attempts=[point.attempt for point in thinned],
                    )
                )
        return SeriesList(items=items)


def in_our_names(status: TrainerStatus) -> TrainerStatus:
    """The status with our names for its metrics; a name that is ours already wins."""
    ours = {metric.name for metric in status.metrics}
    renamed = [
        Metric(name=NAMES_OF_TRANSFORMERS.get(metric.name, metric.name), value=metric.value)
        for metric in status.metrics
        if NAMES_OF_TRANSFORMERS.get(metric.name) not in ours
    ]
    return status.model_copy(update={"metrics": renamed})


def move(
    before: Position, post: StatusPost, step: int | None, time: datetime, name: str
) -> tuple[Position, int | None]:
    """The run's position after a post, and the step after which points are to be forgotten, if any.

    A post that names its attempt belongs there. Of others, which `KubeflowCallback` makes, a new attempt is one that
    starts over: it says that nothing is done, or tells of an earlier step than the one before. Raises `AttemptOver`.
    """
    rewound_to: int | None = None
    position = before
    if post.attempt is not None:
        if post.attempt < before.attempt:
            raise AttemptOver(
                f"attempt {post.attempt} of run {name!r} is over: attempt {before.attempt} has begun",
                hint="only the newest attempt tells of a run",
            )
        if post.attempt > before.attempt:
            rewound_to = post.start_step
            position = replace(before, attempt=post.attempt, attempt_step=None, attempt_time=None)
    elif step is None and post.trainer_status.progress_percentage == 0:
        position = replace(before, attempt=before.attempt + 1, attempt_step=None, attempt_time=None)
    elif step is not None and before.step is not None and step < before.step:
        rewound_to = step - 1
        if before.attempt_step is not None:
            position = replace(before, attempt=before.attempt + 1, attempt_step=None, attempt_time=None)
    if rewound_to is not None and before.step is not None:
        position = replace(position, step=min(before.step, rewound_to))
    if step is not None:
        if position.attempt_step is None:
            position = replace(position, attempt_step=step, attempt_time=time)
        position = replace(position, step=max(step, position.step or 0))
    return position, rewound_to


def remaining_seconds(position: Position, total_steps: int | None, time: datetime) -> int | None:
    """What is left at the pace of this attempt, by the registry's clock; None while nothing can be said.

    Time since the attempt's first post, over the steps made since then, times the steps to come.
    """
    if total_steps is None or position.step is None or position.attempt_step is None or position.attempt_time is None:
        return None
    made = position.step - position.attempt_step
    if made <= 0:
        return None
    return round((time - position.attempt_time).total_seconds() / made * max(0, total_steps - position.step))


def _timed(status: TrainerStatus, position: Position, time: datetime, *, measured: bool) -> TrainerStatus:
    """The status with our time, and with our estimate unless the trainer has `measured` this attempt alone."""
    changes: dict[str, Any] = {"last_updated_time": time}
    if not measured:
        changes["estimated_remaining_seconds"] = (
            0
            if status.progress_percentage == 100
            else remaining_seconds(position, _integer(status.value("totalSteps")), time)
        )
        if status.value("step") is None and position.step is not None:
            step = Metric(name="step", value=str(position.step))
            changes["metrics"] = [*status.metrics[:63], step]
    return status.model_copy(update=changes)


def _step_of(status: TrainerStatus, values: Mapping[int, object]) -> int | None:
    told = _integer(status.value("step"))
    return max(filter(None, [told, max(values, default=None)]), default=told)


def _points_of(status: TrainerStatus) -> list[StepValues]:
    step = _integer(status.value("step"))
    if step is None:
        return []
    numbers = {each.name: _finite(each.value) for each in status.metrics if each.name not in NO_POINTS}
    return [StepValues(step=step, values=numbers)]


def _leave_out_repetitions(values: dict[int, dict[str, float]], status: TrainerStatus, last: TrainerStatus) -> None:
    """An evaluation's result stands in all later posts, too: it is of the step that told it first."""
    for numbers in values.values():
        for name in [each for each in numbers if each.startswith("eval") and status.value(each) == last.value(each)]:
            del numbers[name]


def _with_metrics(position: Position, values: Mapping[int, Mapping[str, float]], name: str) -> Position:
    told = {metric for numbers in values.values() for metric in numbers}
    known = sorted(told | set(position.metric_names))
    if len(known) > MAX_METRICS:
        another = min(told - set(position.metric_names))
        raise Invalid(
            f"run {name!r} would have {len(known)} metrics, {another!r} is one of the new ones",
            hint=f"post at most {MAX_METRICS} different names in a run's life",
        )
    return replace(position, metric_names=tuple(known), since_thinning=position.since_thinning + len(values))


async def _insert(
    connection: AsyncConnection, run_id: int, values: Mapping[int, Mapping[str, float]], *, attempt: int, seconds: int
) -> None:
    ids = await _metric_ids(connection, {name for numbers in values.values() for name in numbers})
    rows = [
        {
            "run_id": run_id,
            "metric_id": ids[name],
            "step": step,
            "attempt": attempt,
            "seconds": seconds,
            "value": value,
        }
        for step, numbers in values.items()
        for name, value in numbers.items()
    ]
    if rows:
        await connection.execute(dialect_of(connection).insert(metric_points).on_conflict_do_nothing(), rows)


async def _metric_ids(connection: AsyncConnection, names: Iterable[str]) -> dict[str, int]:
    wanted = sorted(names)  # one order for all: two transactions that add the same names do not wait for each other
    query = select(metrics.c.name, metrics.c.id).where(metrics.c.name.in_(wanted))
    found = {row.name: row.id for row in await connection.execute(query)}
    missing = [name for name in wanted if name not in found]
    if missing:
        await insert_missing(connection, metrics, [{"name": name} for name in missing])
        found |= {row.name: row.id for row in await connection.execute(query)}
    return found


async def _thin(connection: AsyncConnection, run_id: int) -> None:
    """Keep each metric so far below its limit that the next look comes before it is reached."""
    query = select(metric_points.c.metric_id).where(metric_points.c.run_id == run_id)
    many = query.group_by(metric_points.c.metric_id).having(func.count() > MAX_POINTS - THIN_EVERY_STEPS)
    for metric_id in (await connection.execute(many)).scalars().all():
        points = await _points(connection, run_id, metric_id)
        kept = {point.step for point in thin(points, MAX_POINTS // 2)}
        gone = [{"gone": point.step} for point in points if point.step not in kept]
        this = (metric_points.c.run_id == run_id) & (metric_points.c.metric_id == metric_id)
        await connection.execute(delete(metric_points).where(this, metric_points.c.step == bindparam("gone")), gone)


async def _points_of_all(
    connection: AsyncConnection, run_ids: Sequence[int], metric_ids: Sequence[int]
) -> dict[tuple[int, int], list[Point]]:
    """The points of each run's metrics, by one question that the key answers in its order."""
    columns = (metric_points.c.step, metric_points.c.value, metric_points.c.seconds, metric_points.c.attempt)
    key = (metric_points.c.run_id, metric_points.c.metric_id)
    query = select(*key, *columns).where(key[0].in_(run_ids), key[1].in_(metric_ids))
    rows = (await connection.execute(query.order_by(*key, metric_points.c.step))).all()
    return {pair: [Point(*row[2:]) for row in each] for pair, each in groupby(rows, key=itemgetter(0, 1))}


async def _points(connection: AsyncConnection, run_id: int, metric_id: int) -> list[Point]:
    columns = (metric_points.c.step, metric_points.c.value, metric_points.c.seconds, metric_points.c.attempt)
    query = select(*columns).where(metric_points.c.run_id == run_id, metric_points.c.metric_id == metric_id)
    return [Point(*row) for row in await connection.execute(query.order_by(metric_points.c.step))]


async def _store(
    connection: AsyncConnection, run_id: int, position: Position, status: TrainerStatus, time: datetime
) -> None:
    document = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    values = {name: getattr(position, name) for name in Position.__dataclass_fields__}
    values |= {"metric_names": list(position.metric_names), "trainer_status": document, "updated_time": time}
    await connection.execute(update(run_progress).where(run_progress.c.run_id == run_id).values(**values))


def _position(row: Row[Any]) -> Position:
    values = {name: getattr(row, name) for name in Position.__dataclass_fields__}
    return Position(**{**values, "metric_names": tuple(row.metric_names)})


def _integer(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 16 else None


def _finite(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
