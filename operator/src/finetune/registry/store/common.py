"""What the stores share: getting or making a named row, pages, the audit trail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Table, and_, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.registry.errors import NotFound
from finetune.registry.schema import audit

PAGE_SIZE = 200


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def fields(row: Any) -> dict[str, Any]:
    """The columns of a row by name."""
    return dict(row._mapping)  # noqa: SLF001 - documented API; the underscore only avoids column names


async def insert_missing(
    connection: AsyncConnection, table: Table, values: Mapping[str, Any] | Sequence[Mapping[str, Any]]
) -> bool:
    """Insert one row or several, each unless one with the same key exists; returns whether any was inserted.

    When another transaction is inserting the same key, PostgreSQL waits here for its end.
    """
    query = dialect_of(connection).insert(table).values(values).on_conflict_do_nothing()
    counted = query.execution_options(preserve_rowcount=True)  # else PostgreSQL's is not kept
    return bool((await connection.execute(counted)).rowcount > 0)


def dialect_of(connection: AsyncConnection) -> Any:
    """The module of SQLAlchemy whose `insert` knows what to do on a conflict."""
    return sqlite if connection.dialect.name == "sqlite" else postgresql


async def named_row_locked(
    connection: AsyncConnection, table: Table, *, namespace: str, name: str, values: Mapping[str, Any]
) -> Any:
    """The row `namespace`/`name`, made with `values` if missing, locked until the transaction ends."""
    await insert_missing(connection, table, {"namespace": namespace, "name": name, **values})
    query = select(table).where(named(table, namespace, name)).with_for_update(key_share=True)
    return (await connection.execute(query)).one()


def named(table: Table, namespace: str, name: str) -> ColumnElement[bool]:
    """The condition that finds a row by namespace and name."""
    return and_(table.c.namespace == namespace, table.c.name == name)


def run_missing(namespace: str, uid: str) -> NotFound:
    """The refusal for a run that nobody has recorded."""
    return NotFound(
        f"run {uid!r} is not known in namespace {namespace!r}",
        hint=f"the operator records it with PUT runs/{uid} before its pod starts",
    )


async def record(
    connection: AsyncConnection,
    *,
    actor: str,
    action: str,
    namespace: str,
    subject: str,
    details: Mapping[str, Any],
) -> None:
    """Write one line of the audit trail, in the transaction that does what it says."""
    await connection.execute(
        insert(audit).values(
            time=now(),
            actor=actor[:512],
            action=action,
            namespace=namespace,
            subject=subject,
            details=dict(details),
        )
    )
