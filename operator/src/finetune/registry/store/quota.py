"""How much a namespace may keep, and how long the registry keeps what nobody has named.

What counts is what people can see: the bytes of its datasets' rows, and of its adapters' files, the same bytes once.
Two uploads at once may pass the limit together; the next one is refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

from sqlalchemy import and_, exists, func, or_, select, true
from sqlalchemy.ext.asyncio import AsyncConnection

from finetune.registry.database import Database
from finetune.registry.errors import RegistryFault
from finetune.registry.schema import (
    adapter_aliases,
    adapter_versions,
    adapters,
    dataset_versions,
    datasets,
    run_files,
    runs,
)

from .interim_rows import is_interim


class QuotaExceeded(RegistryFault):
    """A namespace has as much in the registry as it may."""

    status = 507
    reason = "QuotaExceeded"

    def __init__(self, namespace: str, *, used: int, wanted: int, limit: int) -> None:
        super().__init__(
            f"namespace {namespace!r} has {used} of its {limit} bytes in the registry: {wanted} more do not fit",
            hint="delete versions of datasets or adapters (finetune datasets delete, finetune adapters delete), or ask "
            "an administrator to raise --namespace-bytes or --namespace-quota (in the chart "
            "registry.store.namespaceBytes and namespaceQuotas)",
        )


class Quota:
    """Refuses what is more than a namespace may have; without a limit, nothing. `others` have limits of their own."""

    def __init__(self, database: Database, limit: int | None, others: Mapping[str, int] | None = None) -> None:
        self._database = database
        self._limit = limit
        self._others = others or {}

    def _limit_of(self, namespace: str) -> int | None:
        return self._others.get(namespace, self._limit or 0) or None

    async def check(
        self, connection: AsyncConnection, namespace: str, wanted: int, *, finishing: int | None = None
    ) -> None:
        """Raises `QuotaExceeded` when so many bytes more do not fit.

        `finishing` is the run whose finished adapter they are: its interim ones do not count, for they go then.
        """
        limit = self._limit_of(namespace)
        if limit is None or wanted <= 0:
            return
        used = await used_bytes(connection, namespace, finishing=finishing)
        if used + wanted > limit:
            raise QuotaExceeded(namespace, used=used, wanted=wanted, limit=limit)

    async def within(self, namespace: str, blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The same blocks, as long as they fit. Raises `QuotaExceeded`."""
        limit = self._limit_of(namespace)
        if limit is None:
            async for block in blocks:
                yield block
            return
        async with self._database.reading() as connection:
            used = await used_bytes(connection, namespace)
        come = 0
        async for block in blocks:
            come += len(block)
            if used + come > limit:
                raise QuotaExceeded(namespace, used=used, wanted=come, limit=limit)
            yield block


async def used_bytes(connection: AsyncConnection, namespace: str, *, finishing: int | None = None) -> int:
    """How many bytes of rows and files a namespace has, without the interim adapters of the run `finishing`."""
    kept = and_(datasets.c.namespace == namespace, dataset_versions.c.deleted_time.is_(None))
    rows = select(func.coalesce(func.sum(dataset_versions.c.bytes), 0)).join(datasets).where(kept)
    each = (
        select(run_files.c.sha256, func.max(run_files.c.bytes).label("bytes"))
        .join(runs, runs.c.id == run_files.c.run_id)
        .where(runs.c.namespace == namespace, run_files.c.held.is_(True))
        .where(true() if finishing is None else ~and_(run_files.c.run_id == finishing, is_interim))
        .group_by(run_files.c.sha256)
        .subquery()
    )
    files = select(func.coalesce(func.sum(each.c.bytes), 0))
    return int((await connection.execute(rows)).scalar_one()) + int((await connection.execute(files)).scalar_one())


async def superfluous(database: Database, keep: int) -> list[tuple[str, str, int]]:
    """Namespace, name and version of the adapter versions that retention takes.

    They are stored, older than the `keep` newest that are not deleted, and without an alias. What a run that has not
    ended goes on from is refused when it is to be deleted.
    """
    newer = adapter_versions.alias("newer")
    alive = or_(newer.c.mark.is_(None), newer.c.mark != "Deleted")
    count = (
        select(func.count())
        .select_from(newer)
        .where(newer.c.adapter_id == adapter_versions.c.adapter_id, newer.c.version > adapter_versions.c.version, alive)
        .correlate(adapter_versions)
        .scalar_subquery()
    )
    named = exists().where(adapter_aliases.c.adapter_version_id == adapter_versions.c.id)
    query = (
        select(adapters.c.namespace, adapters.c.name, adapter_versions.c.version)
        .join(adapters, adapters.c.id == adapter_versions.c.adapter_id)
        .where(or_(adapter_versions.c.mark.is_(None), adapter_versions.c.mark != "Deleted"))
        .where(adapter_versions.c.stored_time.is_not(None), ~named, count >= keep)
        .order_by(adapter_versions.c.id)
    )
    async with database.reading() as connection:
        return [(row.namespace, row.name, row.version) for row in await connection.execute(query)]
