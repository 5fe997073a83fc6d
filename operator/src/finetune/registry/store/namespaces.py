"""Which namespace of the cluster a name means: one that comes back with another uid inherits nothing.

Rows are scoped by a key. The key of a namespace that is there is its name; when the name comes back as another
namespace, the rows of the former one get a key that no request can name, and stay until an administrator forgets them,
or gives them to the namespace that has the name now, as after a cluster was restored from a backup.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Table, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.api.registry import DELETED
from finetune.registry.database import Database
from finetune.registry.errors import Conflict, NotFound
from finetune.registry.schema import audit, contents, dataset_versions, datasets, metadata, namespaces, runs

from .common import now, record
from .outcomes import FORGOTTEN_KEY

MAX_MET = 10_000
"""Namespaces whose uid is remembered as seen."""


class NamespaceStore:
    """Keeps the rows of namespaces apart that had one name after the other."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._met: dict[str, str] = {}

    async def meet(self, name: str, uid: str, *, actor: str) -> None:
        """A caller has to do with the namespace of this uid: see that the rows of `name` are its own.

        The first uid that is seen of a name takes what is there.
        """
        if self._met.get(name) == uid:
            return

        async def transaction(connection: AsyncConnection) -> None:
            query = select(namespaces).where(namespaces.c.key == name).with_for_update()
            row = (await connection.execute(query)).first()
            if row is not None and row.uid == uid:
                return
            if row is not None:
                await _retire(connection, row, actor=actor)
            await connection.execute(insert(namespaces).values(key=name, name=name, uid=uid, seen_time=now()))

        await self._database.write(transaction)
        if len(self._met) >= MAX_MET:
            self._met.clear()
        self._met[name] = uid

    async def listed(self) -> list[Any]:
        """All namespaces that were seen: `key`, `name`, `uid`, `seen_time`, `retired_time`, by name."""
        async with self._database.reading() as connection:
            query = select(namespaces).order_by(namespaces.c.name, namespaces.c.id)
            return list((await connection.execute(query)).all())

    async def forget(self, key: str, *, actor: str) -> dict[str, int]:
        """Delete everything of a namespace but its audit trail; returns the number of rows by table.

        `key` is a name, or the key of a former namespace (see `listed`). Raises `NotFound` when it has no rows.
        """

        async def transaction(connection: AsyncConnection) -> dict[str, int]:
            mine = dataset_versions.c.dataset_id.in_(select(datasets.c.id).where(datasets.c.namespace == key))
            uploads = select(dataset_versions.c.content_id).where(mine)
            ids = (await connection.execute(uploads)).scalars().all()
            counts = {}
            for table in reversed(metadata.sorted_tables):  # what refers to others goes before them
                if table is audit or (condition := belongs_to(table, key)) is None:
                    continue
                counts[table.name] = (await connection.execute(delete(table).where(condition))).rowcount
            for start in range(0, len(ids), 500):
                await connection.execute(delete(contents).where(contents.c.id.in_(ids[start : start + 500])))
            seen = await connection.execute(delete(namespaces).where(namespaces.c.key == key))
            if not seen.rowcount and not any(counts.values()):
                raise NotFound(f"nothing is known of namespace {key!r}", hint="finetune registry namespaces lists them")
            await record(
                connection,
                actor=actor,
                action="ForgetNamespace",
                namespace=key,
                subject=key,
                details={name: count for name, count in counts.items() if count},
            )
            return counts

        counts = await self._database.write(transaction)
        self._met.pop(key, None)
        return counts

    async def adopt(self, key: str, *, actor: str) -> str:
        """Give the rows of a former namespace to the one that has its name now; returns the name.

        Raises `NotFound` for a key that is not a former namespace's, `Conflict` when the present one has rows.
        """

        async def transaction(connection: AsyncConnection) -> str:
            query = select(namespaces).where(namespaces.c.key == key, namespaces.c.retired_time.is_not(None))
            row = (await connection.execute(query.with_for_update())).first()
            if row is None:
                raise NotFound(f"{key!r} is no former namespace", hint="finetune registry namespaces lists their keys")
            for table in _roots():
                query = select(func.count()).select_from(table).where(table.c.namespace == row.name)
                if (await connection.execute(query)).scalar_one():
                    raise Conflict(
                        f"namespace {row.name!r} has {table.name} of its own by now",
                        hint=f"forget these first, if they may go: finetune registry forget {row.name}",
                    )
            for table in _roots():
                change = update(table).where(table.c.namespace == key).values(namespace=row.name)
                await connection.execute(change)
            await connection.execute(delete(namespaces).where(namespaces.c.key == key))
            details = {"uid": row.uid, "key": key}
            await record(
                connection,
                actor=actor,
                action="AdoptNamespace",
                namespace=row.name,
                subject=row.name,
                details=details,
            )
            return str(row.name)

        return await self._database.write(transaction)


def belongs_to(table: Table, key: str) -> ColumnElement[bool] | None:
    """The condition that finds a namespace's rows in a table; None for one whose rows belong to no namespace.

    A table belongs where it says so itself, or where what it refers to belongs.
    """
    if "namespace" in table.c:
        return table.c.namespace == key
    paths = []
    for column in table.c:
        for reference in column.foreign_keys:
            above = belongs_to(reference.column.table, key)
            if above is not None:
                paths.append(column.in_(select(reference.column).where(above)))
    return or_(*paths) if paths else None


def _roots() -> list[Table]:
    return [table for table in metadata.sorted_tables if "namespace" in table.c and table is not audit]


async def _retire(connection: AsyncConnection, row: Any, *, actor: str) -> None:
    key = f"{FORGOTTEN_KEY}{row.id}"
    change = update(namespaces).where(namespaces.c.id == row.id)
    await connection.execute(change.values(key=key, retired_time=now()))
    gone = {
        "ended": True,
        "phase": DELETED,
        "reason": "NamespaceDeleted",
        "message": f"namespace {row.name!r} was deleted while the run had not ended",
    }
    unfinished = update(runs).where(runs.c.namespace == row.name, runs.c.ended.is_(False))
    await connection.execute(unfinished.values(**gone))
    for table in _roots():
        await connection.execute(update(table).where(table.c.namespace == row.name).values(namespace=key))
    details = {"uid": row.uid, "key": key}
    await record(
        connection, actor=actor, action="RetireNamespace", namespace=row.name, subject=row.name, details=details
    )
