"""What people do with runs: put them aside, describe them, delete them. The audit trail tells of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.registry.database import Database
from finetune.registry.errors import Conflict
from finetune.registry.schema import (
    adapter_versions,
    adapters,
    metric_points,
    run_files,
    run_parents,
    run_progress,
    run_results,
    runs,
)
from finetune.registry.store.common import now, record
from finetune.registry.store.runs import find_run

BELONGING = (metric_points, run_progress, run_results, run_files, run_parents)
"""What goes with a run, all of it with a column `run_id`."""


class RunKeeping:
    """Changes what people may change of recorded runs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def archive(self, namespace: str, uids: Sequence[str], *, archived: bool, actor: str) -> list[str]:
        """Put runs aside, or bring them back; returns the uids of those that this changed."""

        async def transaction(connection: AsyncConnection) -> list[str]:
            is_archived = runs.c.archived_time.is_not(None)
            query = select(runs.c.uid, runs.c.name).where(runs.c.namespace == namespace, runs.c.uid.in_(uids))
            rows = (await connection.execute(query.where(~is_archived if archived else is_archived))).all()
            found = [row.uid for row in rows]
            change = update(runs).where(runs.c.uid.in_(found))
            await connection.execute(change.values(archived_time=now() if archived else None))
            for row in rows:
                await _record(connection, "ArchiveRun" if archived else "RestoreRun", namespace, row, actor=actor)
            return found

        return await self._database.write(transaction)

    async def describe(self, namespace: str, uid: str, *, tags: Mapping[str, str], notes: str, actor: str) -> Any:
        """Replace tags and notes; returns the run's row as it was. Raises `NotFound`."""

        async def transaction(connection: AsyncConnection) -> Any:
            row = await find_run(connection, namespace, uid, lock=True)
            change = update(runs).where(runs.c.id == row.id)
            await connection.execute(change.values(tags=dict(tags) or None, notes=notes or None))
            await _record(connection, "DescribeRun", namespace, row, actor=actor, tags=dict(tags))
            return row

        return await self._database.write(transaction)

    async def delete(self, namespace: str, uid: str, *, actor: str) -> None:
        """Delete a run with its curves and its result, for good.

        Raises `NotFound`, and `Conflict` while it has not ended, or when an adapter was made by it: the adapter's
        lineage needs it.
        """

        async def transaction(connection: AsyncConnection) -> None:
            row = await find_run(connection, namespace, uid, lock=True)
            if not row.ended:
                raise Conflict(
                    f"run {row.name!r} has not ended",
                    hint=f"delete the object first: kubectl delete trainingrun {row.name} -n {namespace}",
                )
            made = (
                select(adapters.c.name, adapter_versions.c.version)
                .join(adapter_versions, adapter_versions.c.adapter_id == adapters.c.id)
                .where(adapter_versions.c.run_id == row.id)
            )
            adapter = (await connection.execute(made)).first()
            if adapter is not None:
                raise Conflict(
                    f"run {row.name!r} made adapter {adapter.name} version {adapter.version}, whose lineage needs it",
                    hint="archive the run instead: lists leave it out then",
                )
            for table in BELONGING:
                await connection.execute(delete(table).where(table.c.run_id == row.id))
            await connection.execute(delete(runs).where(runs.c.id == row.id))
            await _record(connection, "DeleteRun", namespace, row, actor=actor)

        await self._database.write(transaction)


async def _record(
    connection: AsyncConnection, action: str, namespace: str, row: Any, *, actor: str, **details: Any
) -> None:
    await record(
        connection,
        actor=actor,
        action=action,
        namespace=namespace,
        subject=row.name,
        details={"uid": row.uid, **details},
    )
