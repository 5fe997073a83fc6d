"""A database with many runs, written past the registry's calls: those would take an hour."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.registry.database import Database, parse_url
from finetune.registry.migrate import migrate
from finetune.registry.schema import experiments, metrics, run_progress, runs
from tests.support.pages import spec

NAMESPACE = "bench"
RUNNING = 3
"""The run that has not ended."""
METRICS = ("loss", "evaluationLoss", "learningRate")
START = datetime(2026, 1, 1, tzinfo=UTC)
AT_ONCE = 100


def uid_of(number: int) -> str:
    """The uid of a run by its number, from 1."""
    return f"00000000-0000-4000-8000-{number:012d}"


async def fill(url: str, *, runs: int, points: int) -> None:
    """Migrate the database and fill it."""
    parsed = parse_url(url)
    migrate(parsed)
    database = Database(parsed)
    try:
        await database.write(_names)
        for first in range(1, runs + 1, AT_ONCE):
            numbers = range(first, min(runs, first + AT_ONCE - 1) + 1)

            async def some(connection: AsyncConnection, numbers: range = numbers) -> None:
                await _runs(connection, numbers, points)

            await database.write(some)
    finally:
        await database.close()


async def _names(connection: AsyncConnection) -> None:
    values = [{"id": place, "name": name} for place, name in enumerate(METRICS, start=1)]
    await connection.execute(insert(metrics), values)
    named = [
        {"id": number, "namespace": NAMESPACE, "name": f"experiment-{number}", "created_time": START}
        for number in range(1, 51)
    ]
    await connection.execute(insert(experiments), named)


async def _runs(connection: AsyncConnection, numbers: range, points: int) -> None:
    await connection.execute(insert(runs), [_run(number) for number in numbers])
    await connection.execute(insert(run_progress), [_progress(number, points) for number in numbers])
    rows = [row for number in numbers for row in _points(number, points)]
    await connection.exec_driver_sql(
        "INSERT INTO metric_points (run_id, metric_id, step, attempt, seconds, value) VALUES (?, ?, ?, ?, ?, ?)", rows
    )


def _run(number: int) -> dict[str, Any]:
    created = START + timedelta(minutes=10 * number)
    failed, ended = number % 7 == 0, number != RUNNING
    return {
        "id": number,
        "uid": uid_of(number),
        "namespace": NAMESPACE,
        "name": f"run-{number}",
        "experiment_id": 1 + number % 50,
        "method": "SFT",
        "spec": spec(learningRate=f"{1 + number % 9}e-5"),
        "base_model": "meta-llama/Llama-3.1-8B",
        "created_time": created,
        "phase": ("Failed" if failed else "Succeeded") if ended else "Training",
        "reason": "DatasetInvalid" if failed else None,
        "message": f"train.jsonl row {number}: completion is empty" if failed else None,
        "evaluation_loss": None if failed else 1.4 + (number % 100) / 500,
        "base_evaluation_loss": 2.1,
        "gpu_seconds": 3600,
        "started_time": created,
        "finished_time": created + timedelta(hours=1) if ended else None,
        "ended": ended,
    }


def _progress(number: int, points: int) -> dict[str, Any]:
    told = [{"name": "step", "value": str(points)}, {"name": "totalSteps", "value": str(2 * points)}]
    return {
        "run_id": number,
        "trainer_status": {"progressPercentage": 50, "metrics": told},
        "updated_time": START + timedelta(minutes=10 * number + 60),
        "attempt": 1,
        "step": points,
        "attempt_step": 1,
        "attempt_time": START,
        "since_thinning": 0,
        "metric_names": list(METRICS),
    }


def _points(number: int, points: int) -> list[tuple[int, int, int, int, int, float]]:
    rows = []
    for step in range(1, points + 1):
        loss = 1.4 + (number % 100) / 500 + math.exp(-step / 200) + 0.05 * math.sin(step * 0.7 + number)
        rows.append((number, 1, step, 1, 3 * step, loss))
        rows.append((number, 3, step, 1, 3 * step, 2e-4 * (1 - step / 2000)))
        if step % 20 == 0:
            rows.append((number, 2, step, 1, 3 * step, loss + 0.1))
    return rows
