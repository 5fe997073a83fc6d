"""Adapters of runs that still train, as people see them: listed, found, deleted. `FileStore` takes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.api.files import InterimAdapter, InterimAdapters
from finetune.api.registry import AdapterFile, adapter_digest
from finetune.registry.database import Database
from finetune.registry.errors import NotFound
from finetune.registry.schema import run_files

from .common import record
from .interim_rows import FOLDER, best_of, give_up, is_interim, stored_rows
from .runs import adapter_name, find_named_run

NEWEST, BEST = "latest", "best"
"""What people may say instead of a step."""


class InterimStore:
    """Gives back adapters of runs that still train, and deletes them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of_run(self, namespace: str, name: str) -> InterimAdapters:
        """What is kept of a run, named by uid or by name, by step. Raises `NotFound` for a run that is not known."""
        async with self._database.reading() as connection:
            run = await find_named_run(connection, namespace, name)
            return InterimAdapters(items=await _of_run(connection, run))

    async def find(self, namespace: str, adapter: str, name: str, step: str) -> InterimAdapter:
        """One of them: by its step, or the `best`, or the `latest`. Raises `NotFound`, naming what there is."""
        async with self._database.reading() as connection:
            run = await find_named_run(connection, namespace, name)
            return _choose(await _of_run(connection, run), namespace, adapter, run, step)

    async def delete(self, namespace: str, adapter: str, name: str, step: str, *, actor: str) -> InterimAdapter:
        """Give up the files of one of them. Raises `NotFound`."""

        async def transaction(connection: AsyncConnection) -> InterimAdapter:
            run = await find_named_run(connection, namespace, name, lock=True)
            found = _choose(await _of_run(connection, run), namespace, adapter, run, step)
            await give_up(connection, run.id, [found.step])
            await record(
                connection,
                actor=actor,
                action="DeleteAdapter",
                namespace=namespace,
                subject=found.reference,
                details={"sha256": found.sha256},
            )
            return found

        return await self._database.write(transaction)


async def _of_run(connection: AsyncConnection, run: Any) -> list[InterimAdapter]:
    rows = await stored_rows(connection, run.id)
    if not rows:
        return []
    files: defaultdict[int, list[AdapterFile]] = defaultdict(list)
    query = select(run_files).where(run_files.c.run_id == run.id, is_interim).order_by(run_files.c.path)
    for row in await connection.execute(query):
        step, _, path = row.path.removeprefix(FOLDER).partition("/")
        files[int(step)].append(AdapterFile(path=path, bytes=row.bytes, sha256=row.sha256))
    return [
        InterimAdapter(
            name=adapter_name(run.spec, run.experiment),
            run_name=run.name,
            run_uid=run.uid,
            step=row.step,
            train_loss=row.train_loss,
            evaluation_loss=row.evaluation_loss,
            base_evaluation_loss=row.base_evaluation_loss,
            newest=row is rows[-1],
            best=row is best_of(rows),
            sha256=adapter_digest(files[row.step]),
            bytes=sum(file.bytes for file in files[row.step]),
            files=files[row.step],
            created_time=row.created_time,
        )
        for row in rows
        if files[row.step]  # which an older registry may have given up
    ]


def _choose(items: Sequence[InterimAdapter], namespace: str, adapter: str, run: Any, step: str) -> InterimAdapter:
    mine = adapter_name(run.spec, run.experiment)
    if mine != adapter:
        raise NotFound(
            f"run {run.name!r} trains adapter {mine!r}, not {adapter!r}", hint=f"write {mine}@{run.name}/{step}"
        )
    for item in items:
        if step == str(item.step) or (step == BEST and item.best) or (step == NEWEST and item.newest):
            return item
    kept = ", ".join(str(item.step) for item in items)
    raise NotFound(
        f"no adapter of step {step} of run {run.name!r} is kept",
        hint=f"kept are those of the steps {kept}"
        if kept
        else "the newest and the best are kept while a run trains, once it was evaluated; one that has succeeded has a "
        f"version instead: finetune adapters list {adapter} -n {namespace}",
    )
