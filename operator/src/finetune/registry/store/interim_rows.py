"""Rows of interim adapters: those of a run's evaluations while it trains, of which the newest and the best are kept.

Their files are rows of `run_files` as those of finished adapters are, below `steps/<step>/`, so that the same things
keep them, count them and remove them. They are given up once the run's finished adapter is in the store; those of a run
that ends without one stay for a while (see `garbage`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, String, and_, cast, delete, exists, insert, literal, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.api.files import InterimRequest
from finetune.registry.schema import interim_adapters, run_files, run_progress

FOLDER = "steps/"

is_interim: ColumnElement[bool] = run_files.c.path.startswith(FOLDER)
"""Rows of `run_files` that belong to an adapter of a run that still trains."""


def path_in_run(step: int, path: str) -> str:
    """What a file of a step's adapter is called among the files of its run."""
    return f"{FOLDER}{step}/{path}"


async def add(
    connection: AsyncConnection,
    run_id: int,
    step: int,
    request: InterimRequest,
    *,
    held: set[tuple[str, int]],
    time: datetime,
) -> list[str]:
    """Take note of a step's adapter and its files; `held` are digests and sizes of those that the store has.

    It takes the place of an earlier one of its step, of what earlier attempts have made of steps that are made again,
    and of what has not come whole. Returns the digests of the files that were given up.
    """
    replaced = or_(
        interim_adapters.c.step == step,
        and_(interim_adapters.c.attempt < request.attempt, interim_adapters.c.step > request.start_step),
        interim_adapters.c.stored.is_(False),
    )
    query = select(interim_adapters.c.step).where(interim_adapters.c.run_id == run_id, replaced)
    gone = await give_up(connection, run_id, (await connection.execute(query)).scalars().all())
    files = [
        {
            "run_id": run_id,
            "path": path_in_run(step, file.path),
            "bytes": file.bytes,
            "sha256": file.sha256,
            "held": (file.sha256, file.bytes) in held,
        }
        for file in request.files
    ]
    await connection.execute(insert(run_files), files)
    said = request.model_dump(include={"attempt", "train_loss", "evaluation_loss", "base_evaluation_loss"})
    values = {"run_id": run_id, "step": step, "created_time": time, "stored": False, **said}
    await connection.execute(insert(interim_adapters).values(values))
    return gone


async def latest_attempt(connection: AsyncConnection, run_id: int) -> int:
    """The newest attempt that has told of a run, by its progress or by an adapter; 0 without one."""
    told = select(run_progress.c.attempt).where(run_progress.c.run_id == run_id)
    sent = select(interim_adapters.c.attempt).where(interim_adapters.c.run_id == run_id)
    return max((await connection.execute(told.union_all(sent))).scalars(), default=0)


async def settle_interim(connection: AsyncConnection, run_id: int) -> list[str]:
    """Note which of a run's interim adapters the store has whole, and keep the newest and the best of these.

    Returns the digests of the files that were given up.
    """
    awaited = exists().where(
        run_files.c.run_id == run_id,
        run_files.c.path.startswith(literal(FOLDER) + cast(interim_adapters.c.step, String) + "/"),
        run_files.c.held.is_(False),
    )
    whole = and_(interim_adapters.c.run_id == run_id, interim_adapters.c.stored.is_(False), ~awaited)
    if not (await connection.execute(update(interim_adapters).where(whole).values(stored=True))).rowcount:
        return []
    rows = await stored_rows(connection, run_id)
    kept = {rows[-1].step, best_of(rows).step}
    return await give_up(connection, run_id, [row.step for row in rows if row.step not in kept])


async def give_up(connection: AsyncConnection, run_id: int, steps: Sequence[int] | None = None) -> list[str]:
    """Forget these interim adapters of a run, or all; returns the digests of their files, which others may need."""
    if steps is not None and not steps:
        return []
    files, adapters = and_(run_files.c.run_id == run_id, is_interim), interim_adapters.c.run_id == run_id
    if steps is not None:
        files = and_(files, or_(*(run_files.c.path.startswith(path_in_run(step, "")) for step in steps)))
        adapters = and_(adapters, interim_adapters.c.step.in_(steps))
    gone = await connection.execute(delete(run_files).where(files).returning(run_files.c.sha256))
    digests = list(gone.scalars())
    await connection.execute(delete(interim_adapters).where(adapters))
    return digests


async def stored_rows(connection: AsyncConnection, run_id: int) -> Sequence[Any]:
    """The interim adapters of a run that the store has whole, by step."""
    query = select(interim_adapters).where(interim_adapters.c.run_id == run_id, interim_adapters.c.stored.is_(True))
    return (await connection.execute(query.order_by(interim_adapters.c.step))).all()


def best_of(rows: Sequence[Any]) -> Any:
    """The row with the lowest loss; of equal ones the newest."""
    return min(rows, key=lambda row: (float(row.evaluation_loss), -row.step))
