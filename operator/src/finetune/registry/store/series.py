"""Named series of numbered versions: what datasets and adapters have in common.

A series is a row of one table (`namespace`, `name`, `last_version`), its versions are rows of another. Numbers come
from a counter that only goes up, taken while the series' row is locked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, ScalarSelect, Select, Table, func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.registry.errors import NotFound

from .common import PAGE_SIZE, named, named_row_locked, now


@dataclass(frozen=True, kw_only=True)
class Series:
    """The two tables of one kind of series.

    Parameters
    ----------
    noun: what one is called in messages.
    names, versions: the tables; `query` selects rows of `versions` with the name beside them, `owner` is the column of
        `versions` that refers to `names`.
    offered: the versions of which one can be the newest.
    how_to_make: the hint for a series that does not exist, from its namespace and name.
    """

    noun: str
    names: Table
    versions: Table
    owner: Column[int]
    offered: ColumnElement[bool]
    query: Callable[[], Select[Any]]
    how_to_make: Callable[[str, str], str]

    async def locked(self, connection: AsyncConnection, namespace: str, name: str) -> Any:
        """The row of the series, made when missing, locked until the transaction ends."""
        values = {"last_version": 0, "created_time": now()}
        return await named_row_locked(connection, self.names, namespace=namespace, name=name, values=values)

    async def hold(self, connection: AsyncConnection, namespace: str, name: str) -> None:
        """Let no version of a series be deleted before the transaction ends."""
        query = select(self.names.c.id).where(named(self.names, namespace, name))
        await connection.execute(query.with_for_update(read=True))

    async def take_number(self, connection: AsyncConnection, row: Any) -> int:
        """The next number of a series whose row is locked; never given again."""
        version: int = row.last_version + 1
        await connection.execute(update(self.names).where(self.names.c.id == row.id).values(last_version=version))
        return version

    async def find(self, connection: AsyncConnection, namespace: str, name: str, version: int | None) -> Any:
        """The row of one version; of the newest when `version` is None. Raises `NotFound`, naming what exists."""
        wanted = self._newest() if version is None else version
        query = self.query().where(named(self.names, namespace, name), self.versions.c.version == wanted)
        row = (await connection.execute(query)).first()
        if row is not None:
            return row
        newest = select(self._newest()).select_from(self.names).where(named(self.names, namespace, name))
        found = (await connection.execute(newest)).first()
        if found is None:
            raise self._missing(namespace, name)
        if found[0] is None:
            raise NotFound(
                f"no version of {self.noun} {name!r} in namespace {namespace!r} is offered any more",
                hint=self.how_to_make(namespace, name),
            )
        raise NotFound(
            f"{self.noun} {name!r} in namespace {namespace!r} has no version {version}",
            hint=f"its newest version is {found[0]}",
        )

    def _newest(self) -> ScalarSelect[Any]:
        """The number of the newest version that is offered, in a query on `names`."""
        query = select(func.max(self.versions.c.version)).where(self.owner == self.names.c.id, self.offered)
        return query.correlate(self.names).scalar_subquery()

    async def newest(
        self, connection: AsyncConnection, namespace: str, after: str | None
    ) -> tuple[Sequence[Any], str | None]:
        """A page of the newest version of every series, sorted by name, and where the next page starts."""
        query = self.query().where(self.names.c.namespace == namespace, self.versions.c.version == self._newest())
        if after is not None:
            query = query.where(self.names.c.name > after)
        rows, more = await _page(connection, query.order_by(self.names.c.name))
        return rows, rows[-1].name if more else None

    async def all_of(
        self, connection: AsyncConnection, namespace: str, name: str, before: int | None
    ) -> tuple[Sequence[Any], str | None]:
        """A page of the versions of one series, newest first, and where the next page starts. Raises `NotFound`."""
        query = self.query().where(named(self.names, namespace, name))
        if before is not None:
            query = query.where(self.versions.c.version < before)
        rows, more = await _page(connection, query.order_by(self.versions.c.version.desc()))
        if not rows and before is None:
            raise self._missing(namespace, name)
        return rows, str(rows[-1].version) if more else None

    def _missing(self, namespace: str, name: str) -> NotFound:
        return NotFound(
            f"{self.noun} {name!r} does not exist in namespace {namespace!r}", hint=self.how_to_make(namespace, name)
        )


async def _page(connection: AsyncConnection, query: Select[Any]) -> tuple[Sequence[Any], bool]:
    """The first rows of a query, and whether there are more."""
    rows = (await connection.execute(query.limit(PAGE_SIZE + 1))).all()
    return rows[:PAGE_SIZE], len(rows) > PAGE_SIZE
